"""Prefill attention against its reference in float64, over caches whose pages are shuffled and NaN wherever unused."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from triton import knobs
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import InterpreterBuilder

from nanort import ops
from nanort.kernels import prefill_attention as module
from nanort.kernels.kernel import Typical, meta
from nanort.kernels.launch import Launch
from nanort.kernels.prefill_attention import prefill_attention
from test_attention import Cache, cache, queries
from tolerances import assert_near

ALL_NAN = pytest.mark.filterwarnings("ignore:All-NaN slice")  # so the interpreter complains where numpy seeks a maximum
Segments = Sequence[tuple[int, int]]
"""Of each request, the tokens that precede its rows in the cache, and its rows."""


def rows_of(segments: Segments, index: torch.dtype = torch.int64) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions and requests of such rows, request after request."""
    positions = [torch.arange(past, past + rows, dtype=index) for past, rows in segments]
    requests = [torch.full((rows,), request, dtype=index) for request, (_, rows) in enumerate(segments)]
    return torch.cat(positions), torch.cat(requests)


def filled(segments: Segments, page_size: int, kv_heads: int, dim: int, dtype: torch.dtype) -> Cache:
    return cache([past + rows for past, rows in segments], page_size, kv_heads, dim, dtype)


def exact(
    q: torch.Tensor, kv: torch.Tensor, pages: torch.Tensor, positions: torch.Tensor, requests: torch.Tensor
) -> torch.Tensor:
    return ops.prefill_attention(q.double(), kv.double(), pages, positions, requests)


@pytest.mark.parametrize(
    ("sms", "dtype"), [(1, torch.float16), (3, torch.float32), (3, torch.float16), (7, torch.float32)]
)
@pytest.mark.parametrize(
    ("segments", "page_size", "heads", "kv_heads", "dim"),
    [
        ([(0, 1)], 16, 4, 4, 6),
        ([(0, 130)], 16, 4, 2, 64),
        ([(129, 31)], 64, 8, 2, 16),
        ([(0, 5), (7, 33), (60, 4), (0, 1)], 4, 9, 3, 40),
        ([(63, 1), (64, 1), (65, 2)], 64, 2, 1, 128),
        ([(11, 40), (0, 3)], 24, 7, 1, 20),
    ],
)
def test_it_is_the_reference(
    segments: Segments, page_size: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, sms: int
) -> None:
    found = filled(segments, page_size, kv_heads, dim, dtype)
    positions, requests = rows_of(segments)
    args = (queries(len(positions), heads, dim, dtype), found.kv, found.pages, positions, requests)
    assert_near(prefill_attention(*args, sms=sms), exact(*args))


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_rows_in_any_order(index: torch.dtype) -> None:
    segments = [(3, 20), (0, 9), (90, 11)]
    found = filled(segments, 16, 2, 16, torch.float16)
    positions, requests = rows_of(segments, index)
    order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(4))
    q, positions, requests = queries(len(order), 8, 16, torch.float16), positions[order], requests[order]
    pages = found.pages.to(index)
    out = prefill_attention(q, found.kv, pages, positions, requests, sms=3)
    assert_near(out, exact(q, found.kv, pages, positions, requests))


@pytest.mark.parametrize("ordered", [True, False])
def test_large_tiles_over_many_pieces(ordered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 128 lines, more of them than programs, which are taken in the order of what their rows see, or not."""
    monkeypatch.setattr(module, "MOST_ORDERED", 1024 if ordered else 0)
    segments = [(0, 150), (70, 59)]
    found = filled(segments, 16, 1, 16, torch.float16)
    positions, requests = rows_of(segments)
    args = (queries(len(positions), 4, 16, torch.float16), found.kv, found.pages, positions, requests)
    garbage = torch.full((prefill_attention.scratch_bytes(*args, sms=3),), 77, dtype=torch.uint8)
    assert bool(len(garbage)) is ordered
    assert_near(prefill_attention(*args, scratch=garbage, sms=3), exact(*args))


@pytest.mark.parametrize("dim", [136, 256])
def test_wide_heads(dim: int) -> None:
    found = filled([(30, 40)], 16, 1, dim, torch.float16)
    args = (queries(40, 2, dim, torch.float16), found.kv, found.pages, *rows_of([(30, 40)]))
    assert_near(prefill_attention(*args, sms=3), exact(*args))


@ALL_NAN
def test_a_request_of_nan_does_not_reach_its_neighbours() -> None:
    """Within one tile, whose products are made for all of its lines."""
    segments = [(0, 5), (0, 5), (40, 5)]
    found = filled(segments, 4, 2, 16, torch.float32)
    found.kv[found.pages[1].long()] = torch.nan
    positions, requests = rows_of(segments)
    args = (queries(15, 4, 16, torch.float32), found.kv, found.pages, positions, requests)
    out = prefill_attention(*args, sms=1)
    assert out[5:10].isnan().all()
    others = requests != 1
    assert_near(out[others], exact(*args)[others])


def test_parts_of_larger_tensors() -> None:
    """Rows at an offset, heads of a joint tensor, a cache among others; nothing beside ``out`` is written."""
    segments = [(6, 21), (0, 30)]
    positions, requests = rows_of(segments)
    found = filled(segments, 16, 2, 16, torch.float16)
    q = queries(60, 12, 24, torch.float16)[5:56, 2:6, :16]
    layers = torch.stack((torch.full_like(found.kv, torch.nan), found.kv), 1)
    table = torch.cat((torch.full_like(found.pages, 10**6), found.pages), 1)[:, found.pages.shape[1] :]
    around = torch.full((60, 8, 16), torch.nan, dtype=torch.float16)
    out = around[5:56, :4]
    given = prefill_attention(q, layers[:, 1], table, positions, requests, out=out, sms=3)
    assert given is out
    assert_near(out, exact(q, found.kv, found.pages, positions, requests))
    around[5:56, :4] = torch.nan
    assert around.isnan().all()


def test_padding_of_a_bucket() -> None:
    """Rows at position 0 of a request whose only page is page 0, which is all ones."""
    found = filled([(4, 9)], 4, 2, 16, torch.float32)
    positions, requests = rows_of([(4, 9), (0, 1), (0, 1)])
    table = torch.cat((found.pages, torch.zeros_like(found.pages[:1])))
    q = queries(11, 4, 16, torch.float32)
    out = prefill_attention(q, found.kv, table, positions, requests.clamp(max=1), sms=3)
    assert_near(out[9:], torch.ones(2, 4, 16, dtype=torch.float64))
    assert not out.isnan().any()


@pytest.mark.parametrize("sms", [1, 3])
def test_rows_without_tokens_get_zeros(sms: int) -> None:
    """Beside a row of their request that sees some, in a tile of their own, and in the last tile of three."""
    found = filled([(0, 4), (0, 9), (0, 1)], 4, 1, 16, torch.float16)
    positions, requests = torch.full((100,), -1), torch.repeat_interleave(torch.arange(3), torch.tensor([4, 40, 56]))
    positions[:6] = torch.tensor([0, -1, 3, 1, 8, 4])
    args = queries(100, 4, 16, torch.float16), found.kv, found.pages, positions, requests
    out = prefill_attention(*args, sms=sms)
    assert not out[positions < 0].any()
    some = positions >= 0
    assert_near(out[some], exact(args[0][some], found.kv, found.pages, positions[some], requests[some]))


def test_no_program_takes_a_piece_before_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the last ones would go to whoever began first, not to whoever is free."""
    done: list[str] = []
    for name in ("create_masked_store", "create_atomic_rmw"):
        call = getattr(InterpreterBuilder, name)
        noted = lambda *args, name=name, call=call: (done.append(name), call(*args))[1]  # noqa: E731
        monkeypatch.setattr(InterpreterBuilder, name, noted)
    found = filled([(0, 96)], 16, 1, 16, torch.float16)
    args = queries(96, 4, 16, torch.float16), found.kv, found.pages, *rows_of([(0, 96)])
    prefill_attention(*args, sms=1)
    assert done[-6:] == ["create_masked_store", "create_atomic_rmw"] * 3


def test_no_rows() -> None:
    found = filled([(0, 3)], 4, 2, 16, torch.float32)
    nothing = torch.empty(0, dtype=torch.int64)
    q = queries(0, 4, 16, torch.float32)
    assert prefill_attention(q, found.kv, found.pages, nothing, nothing).shape == (0, 4, 16)
    assert not prefill_attention.launches(
        q, found.kv, found.pages, nothing, nothing, out=torch.empty_like(q), scratch=None, sms=4
    )


@pytest.mark.parametrize("sms", [1, 8, 132])
@pytest.mark.parametrize("rows", [1, 100, 4096])
def test_its_grid_keeps_to_its_sms(rows: int, sms: int) -> None:
    q, kv, index = meta(rows, 32, 128), meta(9, 2, 16, 8, 128), meta(rows, dtype=torch.int32)
    call = Typical("", "", prefill_attention, (q, kv, meta(1, 9, dtype=torch.int32), index, index))
    *before, launch = call.launches(sms)
    assert 1 <= launch.programs <= sms * module.tile(4 * rows, 8, 128, 2, sms).per_sm
    assert all(first.programs == 1 for first in before)


def test_the_longest_come_first() -> None:
    """Three tiles of 32 rows: one request of 32, the end of a long one with the start of the next, the rest of that."""
    positions = torch.cat((torch.arange(32), torch.arange(500, 520), torch.arange(44)))
    requests = torch.repeat_interleave(torch.arange(3), torch.tensor([32, 20, 44]))
    plan = torch.full((4,), -1, dtype=torch.int32)
    sizes = {"lines": 4 * 96, "tiles": 3, "programs": 2, "GROUP": 4, "TILE": 128, "BLOCK": 64, "TILES": 4}
    Launch(module._order, 1, {"plan": plan, "positions": positions, "requests": requests, **sizes})()
    assert plan.tolist() == [2, 1, 2, 0]


def test_float64_is_refused() -> None:
    found = filled([(0, 3)], 4, 2, 16, torch.float64)
    args = (queries(3, 4, 16, torch.float64), found.kv, found.pages, *rows_of([(0, 3)]))
    assert "float64" in prefill_attention.refuses(*args)
    with pytest.raises(ValueError, match="takes float16, bfloat16 and float32"):
        prefill_attention(*args)


@ALL_NAN
@pytest.mark.parametrize("page_size", [4, 64])
@pytest.mark.parametrize("wrong", ["request", "position", "page"])
def test_indices_are_checked_for_debugging(wrong: str, page_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = filled([(0, 6)], page_size, 2, 16, torch.float32)
    positions, requests = rows_of([(0, 6)])
    q = queries(6, 4, 16, torch.float32)
    monkeypatch.setattr(knobs.runtime, "debug", True)
    assert_near(
        prefill_attention(q, found.kv, found.pages, positions, requests),
        exact(q, found.kv, found.pages, positions, requests),
    )
    if wrong == "request":
        requests[2] = 1
    elif wrong == "position":
        positions[5] = page_size * found.pages.shape[1]
    else:
        found.pages[0, 5 // page_size] = len(found.kv)
    with pytest.raises(InterpreterError, match=rf"a {wrong} is (outside|beyond)"):
        prefill_attention(q, found.kv, found.pages, positions, requests)
