"""prefill_attention: causal attention of many rows a request to the tokens of a paged cache."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from nanort.kernels.kernel import Typical, kernel, meta
from nanort.kernels.launch import Launch
from nanort.kernels.paging import offset_of, page_of, refuses, request_of

NEVER = tl.constexpr(-1e30)
"""Below every score, and finite: the difference of two of them is a number."""
NONE = tl.constexpr(2**31 - 1)
MOST_ORDERED = 1024
"""Tiles beyond which their order matters little: each program has many, long ones and short ones."""


@triton.jit
def _pages_at(table, start, last, width, cached, PAGE_SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """The pages of a block of tokens; only one, a scalar, if they all lie in it."""
    tokens = start if PAGE_SIZE % BLOCK == 0 else start + tl.arange(0, BLOCK)
    there = tl.minimum(tokens, tl.maximum(last, 0)).to(tl.uint32)  # unsigned is divided by a mere shift
    return page_of(table, there, True, width, cached, PAGE_SIZE)


@triton.jit
def _attend(
    state, low, high, last, lines, seen, scale, keys, values, page_stride, token_stride, table, width, cached,
    PAGE_SIZE: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Adds tokens low to high to what was gathered, in blocks; ``MASKED`` where some line does not see all of them."""
    best, total, mixed = state
    column = tl.arange(0, COLUMNS)
    real = (column < DIM)[None, :]
    # Pages are looked up a block ahead, so that keys and values have an address when their turn to be loaded comes.
    page = _pages_at(table, low, last, width, cached, PAGE_SIZE, BLOCK)
    for start in range(low, high, BLOCK):
        following = _pages_at(table, start + BLOCK, last, width, cached, PAGE_SIZE, BLOCK)
        tokens = start + tl.arange(0, BLOCK)
        # Beyond the last token may stand NaN, and 0 * NaN is NaN: the last one is read again, and not seen.
        there = tl.minimum(tokens, last) if MASKED else tokens
        at = offset_of(page, there.to(tl.uint32), page_stride, token_stride, PAGE_SIZE)
        key = (keys + at)[:, None] + column[None, :]
        k = tl.load(key, mask=real, other=0.0) if DIM < COLUMNS else tl.load(key)
        scores = tl.dot(lines, tl.trans(k), input_precision="ieee")
        if MASKED:
            scores = tl.where(tokens[None, :] <= seen[:, None], scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1) * scale)
        weights = tl.exp2(scores * scale - higher[:, None])
        kept = tl.exp2(best - higher)
        total = total * kept + tl.sum(weights, 1)
        value = (values + at)[:, None] + column[None, :]
        v = tl.load(value, mask=real, other=0.0) if DIM < COLUMNS else tl.load(value)
        mixed = tl.dot(weights.to(v.dtype), v, mixed * kept[:, None], input_precision="ieee")
        best = higher
        page = following
    return best, total, mixed


@triton.jit
def _order(
    plan, positions, requests, lines, tiles, programs,
    GROUP: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Writes the pieces taken, one for each program to begin with, then the tiles, those whose rows see most first."""
    tl.store(plan, programs)
    each = tl.arange(0, TILES)
    first = tl.minimum(each * TILE, lines - 1) // GROUP
    final = (tl.minimum(each * TILE + TILE, lines) - 1) // GROUP
    tokens = tl.load(positions + final).to(tl.int64)
    several = tl.load(requests + first) != tl.load(requests + final)
    tokens += tl.where(several, tl.load(positions + first) + BLOCK, 0)
    key = tl.where(each < tiles, tl.maximum(tokens, 0) * TILES + each, -1)
    tl.store(plan + 1 + each, (tl.sort(key, descending=True) % TILES).to(tl.int32), mask=each < tiles)


@triton.jit
def _prefill(
    q, kv, pages, positions, requests, out, plan, rows, kv_heads, scale, count, width, cached,
    q_row, q_head, out_row, out_head, page_stride, value_stride, token_stride, head_stride, table_stride,
    GROUP: tl.constexpr, PAGE_SIZE: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A piece is a head of the cache and a tile of lines, which are the query heads that share it, row after row."""
    pieces = tl.cdiv(rows * GROUP, TILE) * kv_heads
    column = tl.arange(0, COLUMNS)
    real = (column < DIM)[None, :]
    piece = tl.program_id(0)
    while piece < pieces:
        tile = piece // kv_heads
        if plan is not None:
            tile = tl.load(plan + 1 + tile)
        head = piece % kv_heads
        line = tile * TILE + tl.arange(0, TILE)
        pending = line < rows * GROUP
        row = tl.minimum(line // GROUP, rows - 1)
        asked = request_of(requests, row, count).to(tl.int32)
        seen = tl.load(positions + row).to(tl.int32)
        source = row.to(tl.int64) * q_row + (head * GROUP + line % GROUP) * q_head
        lines = tl.load(q + source[:, None] + column[None, :], mask=real, other=0.0)
        keys = kv + head.to(tl.int64) * head_stride
        while tl.max(pending.to(tl.int32), 0) > 0:  # once for each request of the tile, whatever the order of its rows
            request = tl.min(tl.where(pending, asked, NONE), 0)
            mine = pending & (asked == request)
            pending = pending & (asked != request)
            clear = (tl.min(tl.where(mine, seen, NONE), 0) + 1) // BLOCK * BLOCK
            last = tl.max(tl.where(mine, seen, -1), 0)
            table = pages + request.to(tl.int64) * table_stride
            state = (
                tl.full((TILE,), NEVER, tl.float32),
                tl.zeros((TILE,), tl.float32),
                tl.zeros((TILE, COLUMNS), tl.float32),
            )
            # Lines of other requests compute along and are not stored.
            state = _attend(
                state, 0, clear, last, lines, seen, scale, keys, keys + value_stride, page_stride, token_stride,
                table, width, cached, PAGE_SIZE, DIM, COLUMNS, BLOCK, False,
            )  # fmt: skip
            state = _attend(
                state, clear, last + 1, last, lines, seen, scale, keys, keys + value_stride, page_stride, token_stride,
                table, width, cached, PAGE_SIZE, DIM, COLUMNS, BLOCK, True,
            )  # fmt: skip
            _, total, mixed = state
            total = tl.maximum(total, 1.0)  # the likeliest token counts 1; where there is none, all is 0
            # Found anew, from what this loop found, lest every address be kept in registers through it.
            stored = tl.where(mine, line, 0)
            target = (stored // GROUP).to(tl.int64) * out_row + (head * GROUP + stored % GROUP) * out_head
            target = target[:, None] + column[None, :]
            tl.store(out + target, (mixed * (1.0 / total)[:, None]).to(out.dtype.element_ty), mask=mine[:, None] & real)
        if plan is not None:  # whoever is done, and only then, takes the next piece, the longest first
            piece = tl.atomic_add(plan, 1, sem="relaxed")
        else:
            piece += tl.num_programs(0)


@dataclass(frozen=True, slots=True)
class Tile:
    """How much a program takes on at once: lines (a row's query head each), tokens of a step, and how many fit.

    With ``registers`` it is told how many a thread may have: left to itself, the compiler may spill for Blackwell, to
    make room for programs that nobody launches.
    """

    lines: int
    tokens: int
    warps: int
    per_sm: int
    registers: int = 0


def tile(lines: int, kv_heads: int, dim: int, itemsize: int, sms: int) -> Tile:
    """Large tiles read the cache least often; smaller ones if those would leave SMs without work."""
    if itemsize == 4:
        return Tile(32, 16, 8, 2)
    if dim > 128:
        return Tile(64, 32, 8, 1)
    if triton.cdiv(lines, 128) * kv_heads < sms:
        return Tile(64, 32, 4, 2, registers=255)
    return Tile(128, 64, 8, 1, registers=255)


def _scratch_bytes(q: torch.Tensor, kv: torch.Tensor, *_: torch.Tensor, sms: int, layout: object = None) -> int:
    tiles, programs = _split(q, kv, sms)[1:]
    return 4 * (1 + tiles) if tiles <= MOST_ORDERED and tiles * kv.shape[3] > programs else 0


def _split(q: torch.Tensor, kv: torch.Tensor, sms: int) -> tuple[Tile, int, int]:
    """The tile, how many of it there are for each head of the cache, and how many programs work on them."""
    rows, heads, dim = q.shape
    kv_heads = kv.shape[3]
    lines = rows * (heads // kv_heads)
    chosen = tile(lines, kv_heads, dim, q.itemsize, sms)
    tiles = triton.cdiv(lines, chosen.lines)
    return chosen, tiles, min(tiles * kv_heads, sms * chosen.per_sm)


@kernel(
    result=lambda q, *_, **__: torch.empty_like(q, memory_format=torch.contiguous_format),
    refuses=refuses,
    scratch_bytes=_scratch_bytes,
)
def prefill_attention(
    q: torch.Tensor,
    kv: torch.Tensor,
    pages: torch.Tensor,
    positions: torch.Tensor,
    requests: torch.Tensor,
    *,
    out: torch.Tensor,
    scratch: torch.Tensor | None,
    sms: int,
    layout: object = None,
) -> Sequence[Launch]:
    """Attention of every row to tokens 0 to ``positions`` of its request; rows of a request side by side are fast."""
    rows, heads, dim = q.shape
    cached, _, page_size, kv_heads, _ = kv.shape
    chosen, tiles, programs = _split(q, kv, sms)
    if not programs:
        return []
    size = {"GROUP": heads // kv_heads, "TILE": chosen.lines, "BLOCK": chosen.tokens}
    launches, plan = [], None
    if scratch is not None and (needed := _scratch_bytes(q, kv, sms=sms)):
        plan = scratch[:needed].view(torch.int32)
        ordering = {
            "plan": plan, "positions": positions, "requests": requests, "lines": rows * size["GROUP"], "tiles": tiles,
            "programs": programs, "TILES": triton.next_power_of_2(tiles), **size,
        }  # fmt: skip
        launches.append(Launch(_order, 1, ordering, warps=8))
    arguments = {
        "q": q, "kv": kv, "pages": pages, "positions": positions, "requests": requests, "out": out, "plan": plan,
        "rows": rows, "kv_heads": kv_heads, "scale": math.log2(math.e) / math.sqrt(dim),
        "count": pages.shape[0], "width": pages.shape[1], "cached": cached,
        "q_row": q.stride(0), "q_head": q.stride(1), "out_row": out.stride(0), "out_head": out.stride(1),
        "page_stride": kv.stride(0), "value_stride": kv.stride(1), "token_stride": kv.stride(2),
        "head_stride": kv.stride(3), "table_stride": pages.stride(0),
        "PAGE_SIZE": page_size, "DIM": dim, "COLUMNS": max(16, triton.next_power_of_2(dim)), **size,
    }  # fmt: skip
    return [*launches, Launch(_prefill, programs, arguments, chosen.warps, stages=3, registers=chosen.registers)]


def typical() -> Iterator[Typical]:
    """Attention of LLaMA-3-8B over a chunk of 2048 rows and one of 128, and of models with other heads."""
    for rows, dim, page_size, dtype in (
        (2048, 128, 16, torch.bfloat16),
        (2048, 128, 64, torch.bfloat16),
        (128, 128, 16, torch.bfloat16),
        (2048, 64, 16, torch.bfloat16),
        (2048, 256, 16, torch.bfloat16),
        (2048, 128, 16, torch.float32),
    ):
        q, kv = meta(rows, 32, dim, dtype=dtype), meta(4096, 2, page_size, 8, dim, dtype=dtype)
        pages, index = meta(4, 8192 // page_size, dtype=torch.int32), meta(rows, dtype=torch.int32)
        sizes = f"{rows} x 32 x {dim} of 8 heads in pages of {page_size} {str(dtype).removeprefix('torch.')}"
        yield Typical("prefill_attention.triton", sizes, prefill_attention, (q, kv, pages, index, index))
