from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import nanort as nr
from nanort import ops
from nanort.kernels import library
from nanort.ops.examples import normal, shuffled
from tolerances import assert_near

CASES: list[tuple[nr.Op, Callable[..., torch.Tensor], list[tuple[Any, ...]]]] = [
    (ops.add, library.add, [(normal(1, 5, 7), normal(2, 5, 7)), (normal(1, 0, 7), normal(2, 0, 7))]),
    (ops.gather, library.gather, [(normal(1, 5, 7, 2), shuffled(1, 5)[:3]), (normal(1, 5, 7), shuffled(1, 5)[:0])]),
    (ops.embedding, library.embedding, [(shuffled(1, 9)[:4].int(), normal(1, 9, 5))]),
    (ops.page_gather, library.page_gather, [(normal(1, 6, 2, 4, 3, 5), shuffled(1, 6)[:4])]),
    (ops.argmax, library.argmax, [(normal(1, 5, 7),), (normal(1, 0, 7),)]),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("op", "kernel", "calls"), CASES)
def test_results_are_those_of_the_reference(
    op: nr.Op, kernel: Callable[..., torch.Tensor], calls: list[tuple[Any, ...]], dtype: torch.dtype
) -> None:
    assert op.kernels["torch"] == f"{library.__name__}:{op.name}"
    for call in calls:
        args = [arg.to(dtype) if arg.is_floating_point() else arg for arg in call]
        expected = op(*args)
        out = torch.full_like(expected, 99)
        assert kernel(*args, out=out, scratch=None, sms=3) is out
        assert torch.equal(out, expected)
        assert torch.equal(kernel(*args), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (0, 5), (1, 5), (7, 5), (2, 3, 5), (4, 0)])
def test_linear(shape: tuple[int, ...], bias: bool, residual: bool, dtype: torch.dtype) -> None:
    x, weight = normal(1, *shape).to(dtype), normal(2, 3, shape[-1]).to(dtype) / 3
    ends = [normal(3, 3).to(dtype) if bias else None, normal(4, *shape[:-1], 3).to(dtype) if residual else None]
    exact = ops.linear(x.double(), weight.double(), *(None if end is None else end.double() for end in ends))
    whole = torch.full((3, *exact.shape), 99.0, dtype=dtype)
    library.linear(x, weight, *ends, out=whole[1], scratch=None, sms=3)
    assert_near(whole[1], exact)
    assert (whole[[0, 2]] == 99).all()
    assert_near(library.linear(x, weight, *ends), exact)


def test_linear_adds_a_residual_whose_rows_are_not_in_one_piece() -> None:
    x, weight, residual = normal(1, 2, 3, 5), normal(2, 4, 5), normal(3, 2, 6, 4)[:, :3]
    torch.testing.assert_close(library.linear(x, weight, None, residual), x @ weight.T + residual)


def test_linear_fills_rows_of_a_wider_tensor() -> None:
    x, weight, residual = normal(1, 4, 5), normal(2, 3, 5), normal(3, 4, 9)[:, 3:6]
    wide = torch.full((4, 9), 99.0, dtype=torch.float64)
    library.linear(x, weight, None, residual, out=wide[:, 3:6])
    torch.testing.assert_close(wide[:, 3:6], x @ weight.T + residual)
    assert (wide[:, [0, 1, 2, 6, 7, 8]] == 99).all()
