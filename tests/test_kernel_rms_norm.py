from __future__ import annotations

import pytest
import torch

from frames import Frame
from nanort import ops
from nanort.kernels.kernel import meta
from nanort.kernels.rms_norm import WIDEST, add_rms_norm, rms_norm, typical
from nanort.ops.examples import normal
from tolerances import assert_near

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16])


@DTYPES
@pytest.mark.parametrize("sms", [1, 3, 7])
@pytest.mark.parametrize(
    "shape", [(1, 1), (7, 5), (33, 129), (2, 3, 64), (70, 576), (3, 4096), (2, WIDEST + 5)], ids=str
)
def test_they_are_the_references(shape: tuple[int, ...], sms: int, dtype: torch.dtype) -> None:
    x, residual, weight = (normal(k, *shape[k // 2 * (len(shape) - 1) :]).to(dtype) for k in range(3))
    plain, normed, total = (Frame(shape, dtype) for _ in range(3))
    rms_norm(x, weight, eps=1e-3, out=plain.tensor, sms=sms)
    assert_near(plain.tensor, ops.rms_norm(x.double(), weight.double(), eps=1e-3))
    add_rms_norm(x, residual, weight, eps=1e-3, out=(normed.tensor, total.tensor), sms=sms)
    assert torch.equal(total.tensor, residual + x)
    assert_near(normed.tensor, ops.rms_norm(total.tensor.double(), weight.double(), eps=1e-3))
    for frame in (plain, normed, total):
        frame.check()


def test_results_that_are_not_given_are_allocated() -> None:
    x, residual, weight = normal(1, 3, 8).float(), normal(2, 3, 8).float(), normal(3, 8).float()
    assert_near(rms_norm(x, weight), ops.rms_norm(x.double(), weight.double()))
    for found, exact in zip(
        add_rms_norm(x, residual, weight), ops.add_rms_norm(x.double(), residual.double(), weight.double()), strict=True
    ):
        assert_near(found, exact)


def test_it_rounds_where_the_reference_does() -> None:
    """Greedy tokens flip where the two best logits are close: before the weight, not after it alone."""
    x, weight = normal(1, 64, 512).half(), normal(2, 512).half()
    same = (rms_norm(x, weight) == ops.rms_norm(x, weight)).double().mean()
    assert same > 0.999, "rounded once, a tenth of the elements differ"


@DTYPES
@pytest.mark.parametrize("width", [96, 3000, WIDEST + 100])
def test_columns_of_a_product_are_taken_as_they_are(width: int, dtype: torch.dtype) -> None:
    both, weight = normal(1, 7, 2 * width).to(dtype), normal(2, width).to(dtype)
    both[0] = both[-1] = torch.nan
    x, residual = both[1:-1].chunk(2, dim=-1)
    exact = ops.add_rms_norm(x.double(), residual.double(), weight.double())
    for x_like, residual_like in ((x, residual), (x.contiguous(), residual), (x, residual.contiguous())):
        assert_near(add_rms_norm(x_like, residual_like, weight)[0], exact[0])
    assert_near(rms_norm(x, weight), ops.rms_norm(x.double(), weight.double()))


@pytest.mark.parametrize("shape", [(0, 8), (3, 0)], ids=str)
def test_nothing_is_nothing(shape: tuple[int, int]) -> None:
    x, weight = torch.ones(shape), torch.ones(shape[1])
    assert [out.shape for out in (rms_norm(x, weight), *add_rms_norm(x, x, weight))] == [shape] * 3


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(4, 4, dtype=torch.float64), r"takes all of float16, .* not torch\.float32, torch\.float64"),
        (torch.ones(4, 4).half(), r"not torch\.float16, torch\.float32"),
        (torch.ones(4, 4).T, "takes rows that are contiguous"),
    ],
)
def test_what_they_do_not_take_is_refused(x: torch.Tensor, message: str) -> None:
    weight = torch.ones(4)
    with pytest.raises(ValueError, match=message):
        rms_norm(x, weight)
    with pytest.raises(ValueError, match=message):
        add_rms_norm(x, x, weight)


@pytest.mark.parametrize("shape", [(2048, 4096), (100, 576), (1000, 128), (16, 20000)], ids=str)
def test_the_demand_counts_the_tiles_that_are_shared_out(shape: tuple[int, int]) -> None:
    x, weight = meta(*shape), meta(shape[1])
    launches = add_rms_norm.launches(x, x, weight, out=(x, x), scratch=None, sms=10**6)
    assert ops.add_rms_norm.work((x, x, weight), (x, x), {}).tiles == launches[0].programs
    assert ops.rms_norm.work((x, weight), (x,), {}).tiles == launches[0].programs


def test_typical_calls_occupy_no_more_than_the_sms_they_are_given() -> None:
    for call in typical():
        assert [launch.programs for launch in call.launches(3)] == [3 * launch.programs for launch in call.launches(1)]
