from __future__ import annotations

from typing import Any

import pytest
import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from nanort import ops
from nanort.kernels import linear as module
from nanort.kernels.kernel import Kernel, meta
from nanort.kernels.linear import BESIDE, HALVES, RAGGED, SINGLES, Tile, coresident, linear, tiling, typical
from nanort.ops.examples import normal
from tolerances import assert_near
from touched import touched

KIB = 1024
KERNELS = [linear, coresident]
DTYPES = [torch.float32, torch.float16]
NAN = float("nan")


def arguments(
    m: int, n: int, k: int, dtype: torch.dtype, bias: bool = True, residual: bool = True
) -> list[torch.Tensor | None]:
    ends = [normal(3, n) if bias else None, normal(4, m, n) if residual else None]
    tensors = [normal(1, m, k), normal(2, n, k) / max(k, 1) ** 0.5, *ends]
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


def exact(args: list[torch.Tensor | None]) -> torch.Tensor:
    return ops.linear.reference(*(None if arg is None else arg.double() for arg in args))


def use(monkeypatch: pytest.MonkeyPatch, tile: Tile, split: int) -> None:
    monkeypatch.setattr(module, "tiling", lambda *_: (tile, split))


@pytest.mark.parametrize("sms", [1, 3, 7])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (5, 7, 9), (1, 40, 600), (33, 65, 130), (70, 130, 64), (7, 33, 0)])
def test_results_are_those_of_the_reference(
    sizes: tuple[int, int, int], kernel: Kernel, dtype: torch.dtype, sms: int
) -> None:
    args = arguments(*sizes, dtype)
    assert_near(kernel(*args, sms=sms), exact(args))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("bias", "residual"), [(True, False), (False, True), (False, False)])
def test_what_is_added_may_be_absent(bias: bool, residual: bool, kernel: Kernel) -> None:
    for sizes in ((20, 40, 64), (3, 40, 1024)):  # the latter shared out
        args = arguments(*sizes, torch.float32, bias, residual)
        assert_near(kernel(*args, sms=7), exact(args))


@pytest.mark.parametrize(("split", "beyond"), [(1, 0), (1, 3), (3, 8)])
@pytest.mark.parametrize("tile", [*HALVES, *BESIDE, *RAGGED, *SINGLES])
def test_every_tile(tile: Tile, split: int, beyond: int, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, tile, split)
    dtype = torch.float32 if tile in SINGLES else torch.float16
    args = arguments(tile.rows - 3, tile.columns + 5, 2 * tile.depth + beyond, dtype)
    assert_near(linear(*args, sms=3), exact(args))


def test_more_parts_than_there_are_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, SINGLES[0], 8)
    args = arguments(20, 70, 5 * SINGLES[0].depth, torch.float32)
    assert_near(linear(*args, sms=7), exact(args))


def test_rows_of_tiles_beyond_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, SINGLES[0], 2)
    args = arguments(16 * module.GROUP + 40, 200, 32, torch.float32)
    assert_near(linear(*args, sms=5), exact(args))


@pytest.mark.parametrize("shape", [(8,), (2, 3, 8), (2, 0, 8)])
def test_leading_dimensions(shape: tuple[int, ...]) -> None:
    args = [normal(1, *shape).float(), normal(2, 5, 8).float(), normal(3, 5).float(), normal(4, *shape[:-1], 5).float()]
    result = linear(*args, sms=3)
    assert result.shape == (*shape[:-1], 5)
    assert_near(result, exact(args))


@pytest.mark.parametrize("sizes", [(0, 5, 8), (4, 0, 8), (0, 0, 0)])
def test_nothing_is_launched_for_nothing(sizes: tuple[int, int, int]) -> None:
    args = arguments(*sizes, torch.float32)
    out = linear(*args, sms=3)
    assert out.shape == sizes[:2]
    assert linear.launches(*args, out=out, scratch=None, sms=3) == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("column", [0, 3, 8])
@pytest.mark.parametrize("split", [1, 3])
def test_slices_touch_nothing_beside_them(
    split: int, column: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, (SINGLES if dtype == torch.float32 else RAGGED)[0], split)
    args = arguments(19, 35, 64, dtype)
    wide = []
    for arg in (args[0], args[1], args[3]):
        assert arg is not None
        around = torch.full((len(arg) + 4, arg.shape[1] + 24), NAN, dtype=dtype)
        inside = around[2:-2, column : column + arg.shape[1]]
        wide.append(inside.copy_(arg))
    around = torch.full((19 + 4, 35 + 24), NAN, dtype=dtype)
    out = around[2:-2, column : column + 35]
    scratch = torch.full((4 * 100_000 + 3,), 255, dtype=torch.uint8)  # NaN, and not a whole number of float32
    assert linear(wide[0], wide[1], args[2], wide[2], out=out, scratch=scratch, sms=3) is out
    assert_near(out, exact(args))
    assert around.isnan().sum() == around.numel() - out.numel()


@pytest.mark.parametrize("k", [40, 37])
@pytest.mark.parametrize("split", [1, 2])
def test_only_what_is_given_is_touched(split: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, SINGLES[0], split)
    args = arguments(21, 75, k, torch.float32)
    out, scratch = torch.empty(21, 75), torch.empty(linear.scratch_bytes(*args, sms=3), dtype=torch.uint8)
    with touched(*args, out, scratch) as (*given, result, parts):
        linear(*args, out=out, scratch=scratch, sms=3)
    assert all(each.loaded.all() for each in given)
    assert result.stored.all()
    assert parts.stored.all()


def test_scratch_is_what_the_parts_take(monkeypatch: pytest.MonkeyPatch) -> None:
    tile = SINGLES[0]
    use(monkeypatch, tile, 3)
    args = arguments(tile.rows * 3, tile.columns, 100, torch.float32)
    assert linear.scratch_bytes(*args, sms=2) == 1 * 3 * tile.part_bytes  # one of three tiles is left
    out, scratch = torch.empty(tile.rows * 3, tile.columns), torch.full((3 * tile.part_bytes + 64,), 77).byte()
    linear(*args, out=out, scratch=scratch, sms=2)
    assert_near(out, exact(args))
    assert (scratch[-64:] == 77).all()
    use(monkeypatch, tile, 1)
    assert linear.scratch_bytes(*args, sms=2) == 0


def test_scratch_that_is_too_small_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, SINGLES[0], 3)
    args = arguments(5, 7, 100, torch.float32)
    scratch = torch.empty(linear.scratch_bytes(*args, sms=2) - 1, dtype=torch.uint8)
    with pytest.raises(ValueError, match="bytes of scratch"):
        linear(*args, scratch=scratch, sms=2)


def test_what_is_added_may_come_by_keyword() -> None:
    x, weight, bias, residual = arguments(5, 7, 9, torch.float32)
    assert_near(linear(x, weight, bias=bias, residual=residual, sms=3), exact([x, weight, bias, residual]))


@pytest.mark.parametrize("kernel", KERNELS)
def test_refusals(kernel: Kernel) -> None:
    x, weight = meta(4, 8), meta(5, 8)
    assert kernel.refuses(x, weight, meta(5), meta(4, 5)) == ""
    assert kernel.refuses(meta(6, 16)[1:5, 3:11], weight) == ""
    for args in (
        (meta(8, 4).T, weight),
        (x, meta(8, 5).T),
        (x, weight, None, meta(5, 4).T),
        (meta(4, 2, 8)[:, :1], weight),
    ):
        assert "contiguous" in kernel.refuses(*args)
    with pytest.raises(ValueError, match="float64"):
        kernel(normal(1, 4, 8), normal(2, 5, 8))


# What is launched.


def plan(kernel: Kernel, m: int, n: int, k: int, sms: int, dtype: torch.dtype = torch.bfloat16) -> Any:
    args = meta(m, k, dtype=dtype), meta(n, k, dtype=dtype)
    scratch = meta(kernel.scratch_bytes(*args, sms=sms), dtype=torch.uint8)
    return kernel.launches(*args, out=kernel.result(*args), scratch=scratch, sms=sms)


SHAPES = [(m, n, k) for m in (1, 64, 128, 670, 2048, 4096) for n, k in ((4096, 4096), (14336, 4096), (1024, 4096))]


@pytest.mark.parametrize("sms", [32, 64, 96, 132])
def test_programs_keep_to_their_sms(sms: int) -> None:
    for sizes in SHAPES:
        launches = plan(linear, *sizes, sms)
        assert all(0 < launch.programs <= sms * 4 for launch in launches)
        assert launches[0].programs <= sms * tiling(*sizes, 2, sms, HALVES)[0].per_sm
        assert plan(coresident, *sizes, sms)[0].programs <= sms


@pytest.mark.parametrize("sms", [32, 64, 96, 132])
def test_no_other_tile_promises_more(sms: int) -> None:
    for sizes in SHAPES:
        tile, split = tiling(*sizes, 2, sms, HALVES)
        least = min(other.nanoseconds(*sizes, 2, sms, 1) for other in HALVES)
        assert tile.nanoseconds(*sizes, 2, sms, split) <= least


@pytest.mark.parametrize(("n", "k"), [(14336, 4096), (4096, 14336), (4096, 4096)])
def test_few_sms_keep_their_share_of_a_large_product(n: int, k: int) -> None:
    whole, split = tiling(2048, n, k, 2, 132, HALVES)
    seconds = whole.nanoseconds(2048, n, k, 2, 132, split)[0]
    for sms in (64, 96):
        tile, split = tiling(2048, n, k, 2, sms, HALVES)
        assert tile.nanoseconds(2048, n, k, 2, sms, split)[0] * sms / 132 < 1.08 * seconds


def test_few_rows_are_shared_out_among_all_sms() -> None:
    for m, n in ((1, 4096), (16, 1024), (128, 4096)):
        assert sum(launch.programs for launch in plan(linear, m, n, 4096, 132)[:1]) > 0.9 * 132


def test_tiles_are_copied_by_an_engine_where_it_can() -> None:
    aligned, odd = plan(linear, 64, 128, 72, 4)[0], plan(linear, 64, 128, 73, 4)[0]
    assert isinstance(aligned.arguments["x"], TensorDescriptor)
    assert isinstance(aligned.arguments["weight"], TensorDescriptor)
    assert odd.arguments["weight"] is not None
    assert not isinstance(odd.arguments["weight"], TensorDescriptor)
    shifted = meta(65, 72).flatten()[1 : 1 + 64 * 72].view(64, 72)
    mixed = linear.launches(shifted, meta(128, 72), out=meta(64, 128), scratch=None, sms=100)[0]
    assert mixed.arguments["x"] is shifted
    assert isinstance(mixed.arguments["weight"], TensorDescriptor)


def test_a_coresident_program_leaves_room_for_two_of_attention() -> None:
    """On Hopper: 228 KiB and 64 Ki registers an SM, of which the system takes 1 KiB a program."""
    attention_bytes, attention_registers = 64 * KIB, 128 * 4 * 32
    for tile in BESIDE:
        shared_bytes = 2 * tile.stages * (tile.rows + tile.columns) * tile.depth + 64  # barriers
        assert tile.per_sm == 1
        assert shared_bytes + KIB + 2 * (attention_bytes + KIB) <= 228 * KIB
        if tile.registers:
            assert tile.registers * tile.warps * 32 + 2 * attention_registers <= 64 * KIB


def test_typical_calls_are_launched() -> None:
    names = [call.name for call in typical()]
    assert set(names) == {"linear.triton", "linear.coresident"}
    assert all(call.launches(132) for call in typical())
