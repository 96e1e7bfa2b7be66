from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from triton import knobs

import nanort as nr
from nanort import ops
from nanort.kernels import moe, products
from nanort.kernels import route as routing
from nanort.kernels.kernel import Kernel, meta
from nanort.kernels.moe import expert_combine, expert_linear
from nanort.kernels.route import route
from nanort.ops.moe import touched
from tolerances import TOLERANCES, assert_near

DTYPES = [torch.float32, torch.float16]
SHAPES = [(1, 1, 1, 1), (1, 70, 4, 2), (37, 33, 5, 3), (70, 128, 9, 1), (6, 96, 16, 16), (0, 8, 4, 2)]
"""Rows, length of a row, experts, and experts of a row."""


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def drawn(seed: int, rows: int, experts: int, chosen: int) -> torch.Tensor:
    """Different experts for each row, the first more often."""
    generator = torch.Generator().manual_seed(seed)
    likely = torch.arange(experts, 0, -1).double().expand(max(rows, 1), experts)
    return torch.multinomial(likely, chosen, generator=generator)[:rows]


def garbage(kernel: Kernel, *args: torch.Tensor, sms: int, **static: Any) -> torch.Tensor:
    """Scratch that holds NaN, and indices that are nowhere."""
    return torch.full((kernel.scratch_bytes(*args, sms=sms, **static),), 0xFF, dtype=torch.uint8)


def within(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A copy of these rows in a larger tensor of NaN, and that tensor."""
    around = torch.full((len(rows) + 3, rows.shape[1] + 16), torch.nan, dtype=rows.dtype)
    inside = around[2:-1, 8:-8]
    inside.copy_(rows)
    return inside, around


# route.


@pytest.mark.parametrize("sms", [1, 3, 7])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_route_takes_the_largest_logits_and_weighs_them_alone(
    dtype: torch.dtype, shape: tuple[int, int, int, int], sms: int
) -> None:
    rows, n, experts, top_k = shape
    x, weight = normal(1, rows, n, dtype=dtype), normal(2, experts, n, dtype=dtype) / 4
    scratch = garbage(route, x, weight, sms=sms, top_k=top_k)
    chosen, weights = route(x, weight, top_k=top_k, scratch=scratch, sms=sms)
    exact = x.double() @ weight.double().T
    logits = exact.gather(1, chosen)
    assert all(len(set(row)) == top_k for row in chosen.tolist())
    assert_near(logits.to(dtype), exact.topk(top_k).values)  # which of two that are rounded to one number is open
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(weights.double(), logits.softmax(dim=1), rtol=tolerance, atol=tolerance)
    assert (chosen.dtype, weights.dtype) == (torch.int64, torch.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_route_can_weigh_experts_among_all(dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    rows, n, experts, top_k = shape
    x, weight = normal(1, rows, n, dtype=dtype), normal(2, experts, n, dtype=dtype) / 4
    scratch = garbage(route, x, weight, sms=3, top_k=top_k, normalize=False)
    chosen, weights = route(x, weight, top_k=top_k, normalize=False, scratch=scratch, sms=3)
    assert torch.equal(chosen, route(x, weight, top_k=top_k, sms=3)[0])
    exact = (x.double() @ weight.double().T).softmax(dim=1).gather(1, chosen)
    torch.testing.assert_close(weights.double(), exact, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


def test_route_takes_the_first_of_equals() -> None:
    weight = torch.zeros(6, 8)
    weight[[1, 4], 0] = 1.0
    chosen, weights = route(torch.ones(3, 8), weight, top_k=4)
    assert chosen.tolist() == [[1, 4, 0, 2]] * 3
    assert_near(weights, torch.tensor([1.0, 1.0, 0.0, 0.0]).softmax(0).expand(3, 4))


@pytest.mark.parametrize("sms", [1, 7])
def test_route_of_many_rows_and_long_ones(sms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is summed in parts where there are few tiles, and by larger tiles where there are many rows."""
    for rows, n, few in ((5, 1100, 1024), (70, 40, 8)):
        monkeypatch.setattr(routing, "FEW_ROWS", few)
        x, weight = normal(3, rows, n, dtype=torch.float16), normal(4, 7, n, dtype=torch.float16) / 16
        assert routing._route_parts(x, weight)[0] == (3 if n == 1100 else 1)
        chosen, weights = route(x, weight, top_k=2, sms=sms)
        wanted, exact = ops.route(x.double(), weight.double(), top_k=2)
        assert torch.equal(chosen, wanted)
        torch.testing.assert_close(weights.double(), exact, rtol=4e-3, atol=4e-3)


def test_route_of_rows_in_a_larger_tensor() -> None:
    x, _ = within(normal(5, 9, 32))
    weight = normal(6, 4, 32)
    chosen, weights = torch.full((11, 2), -7), torch.full((11, 2), torch.nan)
    route(x, weight, out=(chosen[1:-1], weights[1:-1]), top_k=2, sms=3)
    wanted, exact = ops.route(x.double(), weight.double(), top_k=2)
    assert torch.equal(chosen[1:-1], wanted)
    assert_near(weights[1:-1], exact)
    assert chosen[[0, -1]].eq(-7).all()
    assert weights[[0, -1]].isnan().all()


@pytest.mark.parametrize(("rows", "n"), [(150, 7168), (70, 14336), (2000, 4096)])
def test_route_asks_for_as_much_scratch_wherever_its_arguments_lie(rows: int, n: int) -> None:
    x, weight = meta(rows, n), meta(8, n)
    shifted = meta(8 * n + 1)[1:].view(8, n)
    assert products.copied(x, weight) > products.copied(x, shifted)
    assert route.scratch_bytes(x, shifted, sms=3, top_k=2) == route.scratch_bytes(x, weight, sms=3, top_k=2)
    for tile in (routing._route_tile(x, weight), routing._route_tile(x, shifted)):
        assert routing._route_parts(x, weight)[1] % tile.depth == 0


def test_route_in_scratch_that_other_kernels_need_more_of() -> None:
    x, weight = normal(5, 3, 8), normal(6, 4, 8)
    scratch = torch.full((route.scratch_bytes(x, weight, sms=3, top_k=2) + 2,), 0xFF, dtype=torch.uint8)
    assert torch.equal(route(x, weight, scratch=scratch, sms=3)[0], route(x, weight, sms=3)[0])
    assert (scratch[-2:] == 0xFF).all()


# expert_linear and expert_combine.


@pytest.mark.parametrize("sms", [1, 3, 7])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_are_those_of_each_rows_experts(
    dtype: torch.dtype, shape: tuple[int, int, int, int], sms: int
) -> None:
    (rows, n, experts, chosen), m = shape, 72
    picked = drawn(7, rows, experts, chosen)
    x, up = normal(8, rows, n, dtype=dtype), normal(9, experts, m, n, dtype=dtype) / 8
    scratch = garbage(expert_linear, x, picked, up, sms=sms)
    found = expert_linear(x, picked, up, scratch=scratch, sms=sms)
    assert_near(found, ops.expert_linear(x.double(), picked, up.double()))
    y, weights = normal(10, rows, chosen * m, dtype=dtype), normal(11, rows, chosen).softmax(dim=1)
    down = normal(12, experts, n, m, dtype=dtype) / 8
    scratch = garbage(expert_combine, y, picked, weights, down, sms=sms)
    found = expert_combine(y, picked, weights, down, scratch=scratch, sms=sms)
    assert_near(found, ops.expert_combine(y.double(), picked, weights.double(), down.double()))


@pytest.mark.parametrize("rows", [4, 20, 80])  # by pairs of an expert: the tiles for few, for some and for many
def test_products_by_every_tile(rows: int) -> None:
    x, up = normal(13, rows, 144, dtype=torch.float16), normal(14, 2, 136, 144, dtype=torch.float16) / 8
    picked = drawn(15, rows, 2, 2)
    picked[: rows // 2, 1] = picked[: rows // 2, 0]  # also the same expert twice: nothing forbids it
    tile = {4: moe.FEW, 20: moe.SOME, 80: moe.MANY}[rows]
    assert moe._tile(x, picked.numel(), up) is tile
    assert_near(expert_linear(x, picked, up, sms=3), ops.expert_linear(x.double(), picked, up.double()))


def test_all_pairs_of_one_expert_and_more_than_are_sorted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moe, "SORT_BLOCK", 16)
    x, up = normal(16, 75, 16), normal(17, 6, 24, 16)
    for picked in (torch.full((75, 1), 4), drawn(18, 75, 6, 1), drawn(18, 75, 6, 1).int()):
        assert_near(expert_linear(x, picked, up, sms=3), ops.expert_linear(x.double(), picked, up.double()))


@pytest.mark.parametrize("n", [64, 60, 33])  # rows of weights that a copy engine takes, that it does not, of odd length
def test_products_of_rows_in_larger_tensors(n: int) -> None:
    rows, experts, m, chosen = 12, 4, 40, 2
    x, _ = within(normal(19, rows, n, dtype=torch.float16))
    y, _ = within(normal(20, rows, chosen * n, dtype=torch.float16))
    stack = normal(21, experts + 2, m, n, dtype=torch.float16) / 8
    stack[[0, -1]] = torch.nan
    weight = stack[1:-1]
    picked, weights = drawn(22, rows + 2, experts, chosen)[1:-1], normal(23, rows + 2, chosen)[1:-1]
    wide, around_wide = within(torch.full((rows, chosen * m), torch.nan, dtype=torch.float16))
    assert products.copied(x, weight) == (n == 64)
    expert_linear(x, picked, weight, out=wide, sms=3)
    assert_near(wide, ops.expert_linear(x.double(), picked, weight.double()))
    narrow, around_narrow = within(torch.full((rows, m), torch.nan, dtype=torch.float16))
    expert_combine(y, picked, weights, weight, out=narrow, sms=3)
    assert_near(narrow, ops.expert_combine(y.double(), picked, weights.double(), weight.double()))
    for inside, around in ((wide, around_wide), (narrow, around_narrow)):
        assert around.isfinite().sum() == inside.numel()


def test_experts_that_no_row_takes_are_not_read() -> None:
    x, up = normal(24, 9, 32), normal(25, 8, 48, 32)
    picked = torch.tensor([[1, 5]]).expand(9, 2).contiguous()
    up[[0, 2, 3, 4, 6, 7]] = torch.nan
    assert_near(expert_linear(x, picked, up, sms=3), ops.expert_linear(x.double(), picked, up.double()))


@pytest.mark.parametrize("wrong", [-1, 4])
def test_an_expert_that_is_not_there_is_refused_where_kernels_are_debugged(
    wrong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, picked, up = normal(26, 3, 16), torch.tensor([[0], [wrong], [3]]), normal(27, 4, 8, 16)
    expert_linear(x, picked, up)  # what such a pair gives is left open
    monkeypatch.setattr(knobs.runtime, "debug", True)
    with pytest.raises(Exception, match="an expert that is not there"):
        expert_linear(x, picked, up)


# Plans.


@pytest.mark.parametrize("rows", [8, 128, 2048])
def test_declared_tiles_are_those_of_pairs_spread_evenly(rows: int) -> None:
    x, picked, weight = meta(rows, 4096), meta(rows, 2, dtype=torch.int64), meta(8, 14336, 4096)
    tile = moe._tile(x, 2 * rows, weight)
    asked: nr.Demand = ops.expert_linear.work(
        (x, picked, weight), ops.expert_linear.outputs((x, picked, weight), {}), {}
    )
    read = math.ceil(touched(8, 2, rows))
    assert asked.tiles == read * math.ceil(2 * rows / read / tile.rows) * math.ceil(14336 / tile.columns)
    scratch = meta(expert_linear.scratch_bytes(x, picked, weight, sms=132), dtype=torch.uint8)
    launched = expert_linear.launches(x, picked, weight, out=meta(rows, 2 * 14336), scratch=scratch, sms=10**9)
    assert launched[1].programs >= asked.tiles  # no routing gives more tiles than programs that may be wanted


def test_what_the_kernels_do_not_take_is_said() -> None:
    x, picked, weights, weight = torch.zeros(4, 8), torch.zeros(4, 2).long(), torch.zeros(4, 2), torch.zeros(3, 6, 8)
    wide = torch.zeros(4, 16)
    assert route.refuses(x, weight[0], top_k=2) == ""
    assert expert_linear.refuses(x, picked, weight) == expert_combine.refuses(wide, picked, weights, weight) == ""
    assert "float64" in route.refuses(x.double(), weight[0].double())
    assert "float64" in expert_linear.refuses(x.double(), picked, weight.double())
    assert "float64" in expert_combine.refuses(wide, picked, weights.double(), weight)
    assert "rows of x" in expert_linear.refuses(torch.zeros(8, 4).T, picked, weight)
    assert "contiguous weights" in expert_linear.refuses(x, picked, weight.mT)
    assert "contiguous experts" in expert_linear.refuses(x, picked.T.contiguous().T, weight)
    assert "contiguous experts" in expert_combine.refuses(wide, picked, weights.T.contiguous().T, weight)
