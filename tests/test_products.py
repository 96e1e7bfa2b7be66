"""Products are those of torch, whatever library makes them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nanort.ops import products
from nanort.ops.products import product

SHAPES = [
    ((7, 5), (3, 5)),
    ((1, 576), (64, 576)),
    ((2, 3, 9), (4, 9)),
    ((5,), (3, 5)),
    ((0, 5), (3, 5)),
    ((4, 0), (3, 0)),
]


@pytest.mark.parametrize(("x", "weight"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("biased", [False, True])
def test_a_product_is_torchs(x: tuple[int, ...], weight: tuple[int, ...], dtype: torch.dtype, biased: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator).to(dtype) for shape in (x, weight))
    bias = torch.randn(weight[0], generator=generator).to(dtype) if biased else None
    close = {"atol": 1e-4, "rtol": 1e-5} if dtype is torch.float32 else {}  # sums in another order
    torch.testing.assert_close(product(a, b, bias), F.linear(a, b, bias), **close)


def test_strides_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(96, 33, generator=generator).t(), torch.randn(64, 192, generator=generator)[:, ::2]
    torch.testing.assert_close(product(x, weight), F.linear(x, weight), atol=1e-4, rtol=1e-5)
    assert product(x, weight).is_contiguous()


def test_shapes_need_no_numbers_and_gradients_flow() -> None:
    assert product(torch.empty(7, 5, device="meta"), torch.empty(3, 5, device="meta")).shape == (7, 3)
    weight = torch.ones(3, 5, requires_grad=True)
    with torch.enable_grad():
        product(torch.ones(7, 5), weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.eq(7).all()


def test_this_build_has_the_faster_library_or_does_without() -> None:
    assert (products.ONEDNN is not None) == (
        torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
