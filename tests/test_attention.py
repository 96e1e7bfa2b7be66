from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

import nanort as nr
from nanort import ops
from tolerances import TOLERANCES, assert_near

DTYPES = list(TOLERANCES)


@dataclass
class Cache:
    """The same tokens twice: in pages, in random order among pages of NaN, and request by request without pages."""

    kv: torch.Tensor
    pages: torch.Tensor
    keys: list[torch.Tensor]
    values: list[torch.Tensor]


def cache(lengths: Sequence[int], page_size: int, kv_heads: int, dim: int, dtype: torch.dtype, seed: int = 0) -> Cache:
    """Requests of these lengths; page 0 belongs to none and is all ones, the rest of the cache is NaN."""
    generator = torch.Generator().manual_seed(seed)
    width = max(-(-length // page_size) for length in lengths) + 1
    kv = torch.full((len(lengths) * width + 1, 2, page_size, kv_heads, dim), torch.nan, dtype=dtype)
    kv[0] = 1
    pages = torch.randperm(len(kv) - 1, generator=generator).reshape(len(lengths), width).int() + 1
    keys, values = (
        [torch.randn(n, kv_heads, dim, generator=generator, dtype=torch.float64).to(dtype) for n in lengths]
        for _ in range(2)
    )
    for request, length in enumerate(lengths):
        for token in range(length):
            page = pages[request, token // page_size]
            kv[page, 0, token % page_size] = keys[request][token]
            kv[page, 1, token % page_size] = values[request][token]
    return Cache(kv, pages, keys, values)


def dense(q: torch.Tensor, found: Cache, positions: torch.Tensor, requests: torch.Tensor) -> torch.Tensor:
    """Attention in float64, row by row and head by head, over keys and values that lie in no pages."""
    out = torch.empty(q.shape, dtype=torch.float64)
    for row, (position, request) in enumerate(zip(positions.tolist(), requests.tolist(), strict=True)):
        for head in range(q.shape[1]):
            shared = head // (q.shape[1] // found.keys[request].shape[1])
            keys = found.keys[request][: position + 1, shared].double()
            scores = keys @ q[row, head].double() / q.shape[2] ** 0.5
            out[row, head] = scores.softmax(dim=0) @ found.values[request][: position + 1, shared].double()
    return out


def queries(rows: int, heads: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(rows, heads, dim, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("page_size", [4, 16, 64])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 8), (9, 3, 5), (8, 1, 16)])
def test_decode_attention(heads: int, kv_heads: int, dim: int, page_size: int, dtype: torch.dtype) -> None:
    lengths = [1, 2, page_size - 1, page_size, page_size + 1, 131]
    found = cache(lengths, page_size, kv_heads, dim, dtype)
    q, requests = queries(len(lengths), heads, dim, dtype), torch.arange(len(lengths))
    positions = torch.tensor(lengths) - 1
    out = ops.decode_attention(q, found.kv, found.pages, positions)
    assert_near(out, dense(q, found, positions, requests))


@pytest.mark.parametrize("dtype", DTYPES)
def test_decode_rows_find_their_request_in_a_shared_table(dtype: torch.dtype) -> None:
    found = cache([7, 30, 12], 4, 2, 6, dtype)
    q, requests, positions = queries(5, 4, 6, dtype), torch.tensor([2, 0, 1, 1, 2]), torch.tensor([11, 6, 29, 3, 0])
    out = ops.decode_attention(q, found.kv, found.pages, positions, requests)
    assert_near(out, dense(q, found, positions, requests))
    assert torch.equal(out, ops.decode_attention(q, found.kv, found.pages[requests], positions))


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_decode_rows_of_unlike_lengths_are_taken_in_parts(dtype: torch.dtype) -> None:
    lengths = [(37 * row) % 91 + 1 for row in range(40)]
    found = cache(lengths, 4, 3, 5, dtype)
    q, requests, positions = queries(40, 9, 5, dtype), torch.arange(40), torch.tensor(lengths) - 1
    out = ops.decode_attention(q, found.kv, found.pages, positions)
    assert_near(out, dense(q, found, positions, requests))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("page_size", [4, 16, 64])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 8), (9, 3, 5), (8, 1, 16)])
def test_prefill_attention(heads: int, kv_heads: int, dim: int, page_size: int, dtype: torch.dtype) -> None:
    """One request from its start, one of a single token, one after 40 cached tokens: in one call, rows shuffled."""
    lengths, pasts = [33, 1, 57], [0, 0, 40]
    found = cache(lengths, page_size, kv_heads, dim, dtype)
    positions = torch.cat([torch.arange(past, length) for past, length in zip(pasts, lengths, strict=True)])
    requests = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths) - torch.tensor(pasts))
    order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(1))
    q, positions, requests = queries(len(order), heads, dim, dtype), positions[order], requests[order]
    out = ops.prefill_attention(q, found.kv, found.pages, positions, requests)
    assert_near(out, dense(q, found, positions, requests))


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_prefill_and_decode_agree(kv_heads: int) -> None:
    found = cache([19], 4, kv_heads, 6, torch.float64)
    q, positions, requests = queries(19, 4, 6, torch.float64), torch.arange(19), torch.zeros(19, dtype=torch.int64)
    together = ops.prefill_attention(q, found.kv, found.pages, positions, requests)
    one_by_one = ops.decode_attention(q, found.kv, found.pages, positions, requests)
    torch.testing.assert_close(together, one_by_one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("operate", [ops.decode_attention, ops.prefill_attention])
def test_a_row_does_not_depend_on_its_neighbours(operate: nr.Op) -> None:
    """Beside a row a thousand times as long, and beside one whose own tokens are NaN."""
    found = cache([3, 3000, 5], 16, 2, 8, torch.float32)
    found.kv[found.pages[2].long()] = torch.nan
    q, positions, requests = queries(3, 4, 8, torch.float32), torch.tensor([2, 2999, 4]), torch.arange(3)
    among = operate(q, found.kv, found.pages, positions, requests)
    assert among[2].isnan().all()
    for row in range(2):
        part = slice(row, row + 1)
        alone = operate(q[part], found.kv, found.pages, positions[part], requests[part])
        torch.testing.assert_close(alone, among[part])
        assert not alone.isnan().any()


@pytest.mark.parametrize("layout", [nr.Layout(prefill=16), nr.Layout(prefill=(nr.Segment(16, past=64),)), None])
def test_a_plan_for_a_bucket_is_right_for_a_step_in_it(layout: nr.Layout | None) -> None:
    """Rows up to the bucket's are padding: at position 0 of a request whose page is the scratch page 0."""
    found = cache([9, 20], 4, 2, 6, torch.float64)
    positions = torch.cat((torch.arange(4, 9), torch.arange(14, 20)))
    requests = torch.tensor([0] * 5 + [1] * 6)
    q = queries(16, 4, 6, torch.float64)
    exact = dense(q[:11], found, positions, requests)
    table = torch.cat((found.pages, torch.zeros_like(found.pages[:1])))
    padded = ops.prefill_attention(
        q, found.kv, table, torch.cat((positions, torch.zeros(5, dtype=torch.int64))),
        torch.cat((requests, torch.full((5,), 2))), layout=layout,
    )  # fmt: skip  # rows, then their padding
    torch.testing.assert_close(padded[:11], exact, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(padded[11:], torch.ones(5, 4, 6, dtype=torch.float64))


@pytest.mark.parametrize("operate", [ops.decode_attention, ops.prefill_attention])
def test_positions_beyond_the_page_table_are_refused(operate: nr.Op) -> None:
    found = cache([8], 4, 2, 6, torch.float32)
    beyond = torch.tensor([4 * found.pages.shape[1]])
    with pytest.raises(IndexError):
        operate(queries(1, 4, 6, torch.float32), found.kv, found.pages, beyond, torch.tensor([0]))


def test_a_step_appends_then_attends() -> None:
    """A prompt in two chunks, then a token: what kv_append wrote is what attention sees."""
    kv, pages = torch.full((6, 2, 4, 2, 6), torch.nan, dtype=torch.float64), torch.tensor([[5, 2, 4]])
    k, v, q = (queries(10, heads, 6, torch.float64) * scale for heads, scale in ((2, 1), (2, 2), (4, 3)))
    found, outs = Cache(kv, pages, [k], [v]), []
    for low, high in ((0, 6), (6, 9), (9, 10)):
        positions, requests = torch.arange(low, high), torch.zeros(high - low, dtype=torch.int64)
        ops.kv_append(kv, k[low:high], v[low:high], pages[0, positions // 4] * 4 + positions % 4)
        operate = ops.decode_attention if high == 10 else ops.prefill_attention
        outs.append(operate(q[low:high], kv, pages, positions, requests))
    exact = dense(q, found, torch.arange(10), torch.zeros(10, dtype=torch.int64))
    torch.testing.assert_close(torch.cat(outs), exact, rtol=1e-12, atol=1e-12)


def test_a_negative_slot_is_refused() -> None:
    kv, row = torch.zeros(3, 2, 4, 1, 2), torch.ones(1, 1, 2)
    with pytest.raises(IndexError):
        ops.kv_append(kv, row, row, torch.tensor([-1]))
    assert not kv.any()
