"""gather, scatter, store: rows by their index or all, copied as they are, as are those of embedding and page_gather."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import gcd

import torch
import triton
import triton.language as tl

from nanort.kernels.kernel import Typical, kernel, meta
from nanort.kernels.launch import Launch

TILE_BYTES = 16384
"""What a program copies at a time: 128 bytes a thread, in loads of 16 that are under way at once."""
LEAST_BYTES = 4096
"""Narrower rows are copied several at a time."""
PER_SM = 8


@triton.jit
def _copy_rows(
    source,
    target,
    index,
    count,
    limit,
    units,
    source_stride,
    target_stride,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    GATHERS: tl.constexpr,
):
    """Row ``index[i]`` of the source to row i of the target, or row i to row ``index[i]``; strides are in units.

    Without an index, each row to its like.
    """
    blocks = tl.cdiv(units * UNIT, WIDTH)
    for piece in range(tl.program_id(0), tl.cdiv(count, ROWS) * blocks, tl.num_programs(0)):
        row = piece // blocks * ROWS + tl.arange(0, ROWS)
        column = piece % blocks * WIDTH + tl.arange(0, WIDTH)
        row = row.to(tl.int64)
        if index is None:
            named = row
        else:
            named = tl.load(index + row, mask=row < count, other=0).to(tl.int64)
            tl.device_assert((named >= 0) & (named < limit), "an index names no row")
        # UNIT is known to the compiler, so that it knows how far all of these are aligned.
        read = (named if GATHERS else row) * source_stride * UNIT
        write = (row if GATHERS else named) * target_stride * UNIT
        mask = (row < count)[:, None] & (column < units * UNIT)[None, :]
        found = tl.load(source + read[:, None] + column[None, :], mask=mask)
        tl.store(target + write[:, None] + column[None, :], found, mask=mask)


def row_stride(x: torch.Tensor, inner: int = 1) -> int | None:
    """Elements from a row to the next, a row being the last ``inner`` dimensions; None unless rows are contiguous."""
    if x.is_contiguous():
        return x.shape[x.dim() - inner :].numel()
    return x.stride(0) if x.dim() == inner + 1 and x[:1].is_contiguous() else None


def refuses_copy(indexed: torch.Tensor, index: torch.Tensor | None, rows: torch.Tensor | None = None) -> str:
    """Why :func:`copy_rows` does not take these."""
    if index is not None and not index.is_contiguous():
        return "takes a contiguous index"
    if any(x is not None and row_stride(x, x.dim() - 1) is None for x in (indexed, rows)):
        return "takes rows that are contiguous, each by itself"
    return ""


def copy_rows(
    source: torch.Tensor, target: torch.Tensor, index: torch.Tensor | None, *, gathers: bool, sms: int
) -> Sequence[Launch]:
    """Copies rows of any shape and dtype: those of the source that ``index`` names, or to those of the target.

    Without an index, all of them.
    """
    (source, source_bytes), (target, target_bytes) = _as_bytes(source), _as_bytes(target)
    count, width = len(source if index is None else index), target.shape[1]
    if not count or not width:
        return []
    unit = gcd(16, width, source_bytes, target_bytes, source.data_ptr(), target.data_ptr())
    word = torch.int32 if unit % 4 == 0 else torch.uint8
    unit_words = unit // word.itemsize
    rows, tile = _tile(width)
    pieces = triton.cdiv(count, rows) * triton.cdiv(width, tile)
    arguments = {
        "source": source.view(word),
        "target": target.view(word),
        "index": index,
        "count": count,
        "limit": len(source if gathers else target),
        "units": width // unit,
        "source_stride": source_bytes // unit,
        "target_stride": target_bytes // unit,
        "UNIT": unit_words,
        "ROWS": rows,
        "WIDTH": tile // word.itemsize,
        "GATHERS": gathers,
    }
    return [Launch(_copy_rows, min(pieces, sms * PER_SM), arguments, warps=4 if rows * tile > LEAST_BYTES else 1)]


def _tile(row_bytes: int) -> tuple[int, int]:
    """How many rows, and how many bytes of each, are copied at a time."""
    width = min(triton.next_power_of_2(row_bytes), TILE_BYTES)
    return max(1, LEAST_BYTES // width), width


def _as_bytes(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Rows of ``x`` as bytes, and the bytes from one to the next."""
    stride, width = row_stride(x, x.dim() - 1), x.shape[1:].numel()
    assert stride is not None
    flat = x.as_strided((len(x), width), (stride, 1))
    return flat.view(torch.uint8), stride * x.itemsize


@kernel(result=lambda x, index: x.new_empty((*index.shape, *x.shape[1:])), refuses=refuses_copy)
def gather(
    x: torch.Tensor, index: torch.Tensor, *, out: torch.Tensor, scratch: torch.Tensor | None, sms: int
) -> Sequence[Launch]:
    """``x[index]``."""
    return copy_rows(x, out, index, gathers=True, sms=sms)


@kernel(refuses=refuses_copy)
def scatter(
    x: torch.Tensor, index: torch.Tensor, rows: torch.Tensor, *, out: None, scratch: torch.Tensor | None, sms: int
) -> Sequence[Launch]:
    """``x[index] = rows`` for distinct indices."""
    return copy_rows(rows, x, index, gathers=False, sms=sms)


@kernel(refuses=lambda x, rows: refuses_copy(x, None, rows))
def store(
    x: torch.Tensor, rows: torch.Tensor, *, out: None, scratch: torch.Tensor | None, sms: int
) -> Sequence[Launch]:
    """Sets x to ``rows``."""
    return copy_rows(rows, x, None, gathers=True, sms=sms)


def typical() -> Iterator[Typical]:
    """The last row of every request of a LLaMA-3-8B step, for the head, single tokens, and a residual stream."""
    index = meta(256, dtype=torch.int64)
    yield Typical("gather.triton", "256 of 2048 x 4096", gather, (meta(2048, 4096), index))
    yield Typical("scatter.triton", "256 of 2048 x 4096", scatter, (meta(2048, 4096), index, meta(256, 4096)))
    yield Typical("gather.triton", "256 of 2048 int64", gather, (meta(2048, dtype=torch.int64), index))
    yield Typical("store.triton", "2048 x 4096", store, (meta(2048, 4096), meta(2048, 4096)))
