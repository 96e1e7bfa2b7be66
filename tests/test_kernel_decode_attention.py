"""Decode attention against attention without pages, in float64: those of the cache are shuffled, and NaN if unused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from triton import knobs
from triton.runtime.errors import InterpreterError

from nanort.kernels import decode_attention as module
from nanort.kernels.decode_attention import coresident, decode_attention
from nanort.kernels.kernel import Kernel, meta
from test_attention import Cache, cache, dense, queries
from tolerances import assert_near

KERNELS = pytest.mark.parametrize("kernel", [decode_attention, coresident], ids=["triton", "coresident"])
SMS = pytest.mark.parametrize("sms", [1, 3, 7])
LENGTHS = [1, 150, 2, 63, 64, 65, 1]


def filled(
    lengths: Sequence[int], page_size: int, kv_heads: int, dim: int, dtype: torch.dtype = torch.float32
) -> tuple[Cache, torch.Tensor]:
    """Such requests, whose tables beyond their ends hold numbers of no pages, and the positions of their last rows."""
    found = cache(lengths, page_size, kv_heads, dim, dtype)
    for request, length in enumerate(lengths):
        found.pages[request, -(-length // page_size) :] = -(1 << 30)
    return found, torch.tensor(lengths) - 1


def garbage(kernel: Kernel, *args: torch.Tensor | None, sms: int) -> torch.Tensor:
    """The scratch that it asks for, full of NaN."""
    return torch.full((kernel.scratch_bytes(*args, sms=sms),), 255, dtype=torch.uint8)


@SMS
@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [(decode_attention, torch.float32), (decode_attention, torch.float16), (coresident, torch.float16)],
    ids=["triton-float32", "triton-float16", "coresident-float16"],
)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "page_size"),
    [(2, 2, 8, 4), (9, 3, 5, 16), (8, 1, 16, 64), (2, 1, 80, 16), (20, 1, 6, 5), (2, 1, 256, 128)],
)
def test_every_row_attends_to_its_tokens(
    heads: int, kv_heads: int, dim: int, page_size: int, dtype: torch.dtype, kernel: Kernel, sms: int
) -> None:
    found, positions = filled(LENGTHS, page_size, kv_heads, dim, dtype)
    args = queries(len(LENGTHS), heads, dim, dtype), found.kv, found.pages, positions
    out = kernel(*args, scratch=garbage(kernel, *args, sms=sms), sms=sms)
    assert_near(out, dense(args[0], found, positions, torch.arange(len(LENGTHS))))


@KERNELS
@pytest.mark.parametrize("sms", [2, 20])
@pytest.mark.parametrize("lengths", [[1], [900], [1, 500, 1]])
def test_a_context_is_shared_out_over_all_programs(lengths: list[int], sms: int, kernel: Kernel) -> None:
    """Its scores are so far apart that no power of two holds them."""
    found, positions = filled(lengths, 16, 2, 6, torch.float16)
    args = 40 * queries(len(lengths), 4, 6, torch.float16), found.kv, found.pages, positions
    out = kernel(*args, scratch=garbage(kernel, *args, sms=sms), sms=sms)
    assert_near(out, dense(args[0], found, positions, torch.arange(len(lengths))))


@KERNELS
def test_parts_of_large_heads_are_combined_a_few_at_a_time(kernel: Kernel) -> None:
    found, positions = filled([150], 16, 1, 256, torch.float16)
    args = queries(1, 16, 256, torch.float16), found.kv, found.pages, positions
    assert_near(kernel(*args, sms=7), dense(args[0], found, positions, torch.arange(1)))


@SMS
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_rows_find_their_request_in_a_shared_table(index: torch.dtype, sms: int) -> None:
    found, _ = filled([7, 130, 12], 4, 2, 6)
    positions, requests = torch.tensor([11, 6, 129, 3, 0]), torch.tensor([2, 0, 1, 1, 2])
    q, wide = queries(5, 4, 6, torch.float32), torch.full((3, 2 * found.pages.shape[1]), -1, dtype=index)
    pages = wide[:, : found.pages.shape[1]].copy_(found.pages)
    out = decode_attention(q, found.kv, pages, positions.to(index), requests.to(index), sms=sms)
    assert_near(out, dense(q, found, positions, requests))


@SMS
def test_more_rows_than_are_looked_at_at_once(sms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 4)
    found, _ = filled([3, 70], 4, 1, 6)
    requests = (torch.arange(18) % 9 == 5).long()
    positions, q = requests * 67 + 2, queries(18, 1, 6, torch.float32)
    out = decode_attention(q, found.kv, found.pages, positions, requests, sms=sms)
    assert_near(out, dense(q, found, positions, requests))


@KERNELS
def test_views_are_read_where_they_lie_and_nothing_else_is_written(kernel: Kernel) -> None:
    sms = 3
    found, positions = filled(LENGTHS, 16, 2, 6)
    q = queries(len(LENGTHS) + 2, 6, 8, torch.float32)[1:-1, :4, :6]
    args = q, found.kv, found.pages, positions
    buffer = torch.full((len(q) + 2, 5, 7), torch.nan)
    scratch = garbage(kernel, *args, sms=sms)
    longer = torch.cat((scratch, torch.full_like(scratch[:64], 7)))
    result = kernel(*args, out=buffer[1:-1, :4, :6], scratch=longer, sms=sms)
    assert_near(result, dense(q, found, positions, torch.arange(len(q))))
    result.fill_(torch.nan)
    assert buffer.isnan().all()
    assert (longer[len(scratch) :] == 7).all()


def test_keys_and_values_are_read_where_they_lie() -> None:
    """Two layers in one tensor, and pages that are not next to each other."""
    found, positions = filled(LENGTHS, 16, 2, 6)
    both = torch.full((len(found.kv), 2, *found.kv.shape[1:]), torch.nan)
    both[:, 1] = found.kv
    q = queries(len(LENGTHS), 4, 6, torch.float32)
    out = decode_attention(q, both[:, 1], found.pages, positions, sms=3)
    assert_near(out, dense(q, found, positions, torch.arange(len(LENGTHS))))


@KERNELS
def test_a_row_of_nan_stays_alone(kernel: Kernel) -> None:
    found, positions = filled([300, 40, 300], 16, 2, 8)
    found.kv[found.pages[1, :1].long()] = torch.nan
    q = queries(3, 4, 8, torch.float32)
    out = kernel(q, found.kv, found.pages, positions, sms=3)
    assert out[1].isnan().all()
    assert_near(out[::2], dense(q, found, positions, torch.arange(3))[::2])


@SMS
def test_requests_without_tokens_get_zeros(sms: int) -> None:
    found, positions = filled([5, 200, 7], 16, 2, 6)
    positions[0], found.pages[0] = -1, -(1 << 30)
    q = queries(3, 4, 6, torch.float32)
    out = decode_attention(q, found.kv, found.pages, positions, sms=sms)
    assert not out[0].any()
    assert_near(out[1:], dense(q[1:], found, positions[1:], torch.tensor([1, 2])))


@KERNELS
def test_no_rows_are_no_launch(kernel: Kernel) -> None:
    found, positions = filled([5], 16, 2, 6)
    args = queries(1, 4, 6, torch.float32)[:0], found.kv, found.pages[:0], positions[:0]
    assert kernel(*args).shape == (0, 4, 6)
    assert not kernel.launches(*args, out=torch.empty(0, 4, 6), scratch=None, sms=3)


@KERNELS
@pytest.mark.parametrize(
    ("page", "position", "request_", "message"),
    [
        (0, 0, 0, ""),
        (3, 0, 0, "a page is outside the cache"),
        (-1, 0, 0, "a page is outside the cache"),
        (0, 8, 0, "a position is beyond the page table"),
        (0, 0, 1, "a request is outside the page table"),
        (0, 0, -1, "a request is outside the page table"),
    ],
)
def test_debug_mode_refuses_indices_that_lead_outside(
    page: int, position: int, request_: int, message: str, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them lead to memory of tensors of which the cache and the table are parts, so that it may be tried."""
    kv, pages = torch.ones(5, 2, 4, 2, 6)[1:4], torch.full((3, 2), page)[1:2]
    q = queries(1, 4, 6, torch.float32)
    args = q, kv, pages, torch.tensor([position]), torch.tensor([request_])
    assert_near(kernel(*args, sms=1), torch.ones(1, 4, 6, dtype=torch.float64))
    monkeypatch.setattr(knobs.runtime, "debug", True)
    if not message:
        assert_near(kernel(*args, sms=1), torch.ones(1, 4, 6, dtype=torch.float64))
        return
    with pytest.raises(InterpreterError, match=message):
        kernel(*args, sms=1)


def test_refusals() -> None:
    def refusal(
        kernel: Kernel, heads: int, dim: int, dtype: torch.dtype = torch.float16, index: torch.dtype = torch.int32
    ) -> str:
        q, kv = meta(3, heads, dim, dtype=dtype), meta(9, 2, 16, 1, dim, dtype=dtype)
        return kernel.refuses(q, kv, meta(3, 4, dtype=index), meta(3, dtype=torch.int64), layout=None)

    beyond = "takes at most 8192 bytes of q, padded, to a head of the cache, not 16384"
    assert refusal(decode_attention, 65, 64) == refusal(coresident, 64, 64) == ""
    assert refusal(coresident, 65, 64) == beyond
    assert refusal(coresident, 8, 64, torch.float64) == "takes float16, bfloat16 and float32, not torch.float64"
    assert refusal(decode_attention, 8, 257) == "takes heads of at most 256 dimensions, not 257"
    index = "takes pages, positions and requests of int32 and int64, not torch.int16"
    assert refusal(decode_attention, 8, 64, index=torch.int16) == index
    q, kv, pages, positions = (
        meta(3, 4, 6),
        meta(9, 2, 4, 2, 6),
        meta(3, 4, dtype=torch.int32),
        meta(3, dtype=torch.int32),
    )
    assert decode_attention.refuses(q, kv, pages, positions, positions) == ""
    for args in ((q.mT.contiguous().mT, kv, pages, positions), (q, kv, pages.T.contiguous().T, positions)):
        assert decode_attention.refuses(*args) == "takes tensors whose last dimension is contiguous"


WAITS = """
import re
from itertools import islice
from nanort.kernels.decode_attention import typical
for call in islice(typical(), 2):
    assembly = call.launches(132)[0].compiled(90).ptx
    print(call.name, *re.findall(r"cp.async.wait_group\\s+(\\d+)", assembly))
"""


def test_loads_are_under_way_several_blocks_ahead() -> None:
    """A step of the loop waits until no more than so many copies, of keys and of values, are under way."""
    compiling = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    told = subprocess.run(
        [sys.executable, "-c", WAITS], env=compiling, check=True, capture_output=True, text=True
    ).stdout
    found = {line.split()[0]: max(map(int, line.split()[1:])) for line in told.splitlines()}
    assert found == {"decode_attention.triton": 2 * 3, "decode_attention.coresident": 2 * 2}
