"""decode_attention: paged, grouped-query attention of one row a request, at the speed of memory on few SMs.

The work is a line of blocks of the cache: row after row, head after head of the cache, block after block of tokens.
Every program takes an equal share of it, wherever that begins and ends, so that neither long contexts beside short ones
nor the number of SMs leaves one idle. A head whose blocks lie in one share is done; of one that is cut, the programs
write what they have to scratch, and a second launch combines it. Lengths are read on the device only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from nanort.kernels.kernel import Kernel, Typical, kernel, meta
from nanort.kernels.launch import Launch
from nanort.kernels.paging import offset_of, page_of, refuses, request_of

LOG2_E = 1.4426950408889634
NEVER = tl.constexpr(-1.0e30)
"""Below every score, and finite: the difference of two of them is a number."""


@triton.jit
def _blocks_of(position, BLOCK: tl.constexpr):
    """Blocks that hold tokens 0 to ``position``; one, of nothing, where there are none, so that zeros are written."""
    return tl.maximum(tl.cdiv(position.to(tl.int32) + 1, BLOCK), 1)


@triton.jit
def _blocks_from(positions, first, rows, BLOCK: tl.constexpr, CHUNK: tl.constexpr):
    """Blocks of a chunk of rows; none beyond the last."""
    row = first + tl.arange(0, CHUNK)
    return tl.where(row < rows, _blocks_of(tl.load(positions + row, mask=row < rows, other=0), BLOCK), 0)


@triton.jit
def _blocks_in_all(positions, rows, BLOCK: tl.constexpr, CHUNK: tl.constexpr):
    total = 0
    for first in range(0, rows, CHUNK):
        total += tl.sum(_blocks_from(positions, first, rows, BLOCK, CHUNK))
    return total


@triton.jit
def _row_at(block, positions, rows, BLOCK: tl.constexpr, CHUNK: tl.constexpr):
    """The row that a block belongs to, and the first block of that row."""
    row = 0
    begin = 0
    before = 0
    for first in range(0, rows, CHUNK):
        ends = before + tl.cumsum(_blocks_from(positions, first, rows, BLOCK, CHUNK), 0)
        row += tl.sum((ends <= block).to(tl.int32))
        begin = tl.maximum(begin, tl.max(tl.where(ends <= block, ends, 0)))
        before = tl.max(ends)
    return row, begin


@triton.jit
def _share(total, program, programs):
    """Where the share of a program begins: shares are equal, but for one block."""
    return total // programs * program + tl.minimum(program, total % programs)


@triton.jit
def _attend(
    q, kv, pages, positions, requests, out, partials, weights,
    rows, width, tables, cache, scale,
    q_row, q_head, pages_row, out_row, out_head,
    KV_PAGE: tl.constexpr, KV_VALUE: tl.constexpr, KV_TOKEN: tl.constexpr, KV_HEAD: tl.constexpr,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, PAGE_SIZE: tl.constexpr,
    HEADS: tl.constexpr, DIMS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    total = KV_HEADS * _blocks_in_all(positions, rows, BLOCK, CHUNK)
    share = _share(total, program, tl.num_programs(0))
    end = _share(total, program + 1, tl.num_programs(0))
    row, begin = _row_at(share // KV_HEADS, positions, rows, BLOCK, CHUNK)
    heads = tl.arange(0, HEADS)
    dims = tl.arange(0, DIMS)
    inside = (heads < GROUP)[:, None] & (dims < DIM)[None, :]
    at = share
    while at < end:
        position = tl.load(positions + row).to(tl.int32)
        blocks = _blocks_of(position, BLOCK)
        head = (at - begin * KV_HEADS) // blocks
        first = (at - begin * KV_HEADS) % blocks
        count = tl.minimum(blocks - first, end - at)

        group = head * GROUP + heads
        query = tl.load(q + row.to(tl.int64) * q_row + group[:, None] * q_head + dims[None, :], mask=inside, other=0.0)
        table = pages + request_of(requests, row, tables) * pages_row
        keys = kv + head.to(tl.int64) * KV_HEAD + dims[None, :]
        top = tl.full([HEADS], NEVER, tl.float32)
        chances = tl.zeros([HEADS, BLOCK], tl.float32)  # summed over blocks here, and over warps once, after the loop
        sums = tl.zeros([HEADS, DIMS], tl.float32)
        tokens = first * BLOCK + tl.arange(0, BLOCK)
        slots = tl.arange(0, BLOCK) if BLOCK % PAGE_SIZE == 0 else tokens  # in their pages the same, and no variable
        # Pages are looked up one block ahead and carried by the loop: a load that others wait for in the same step is
        # pipelined before them, and takes half of their stages.
        page = page_of(table, tokens, tokens <= position, width, cache, PAGE_SIZE)
        for _ in range(count):
            seen = tokens <= position
            place = keys + offset_of(page, slots, KV_PAGE, KV_TOKEN, PAGE_SIZE)[:, None]
            mask = seen[:, None] if DIM == DIMS else seen[:, None] & (dims < DIM)[None, :]
            key = tl.load(place, mask=mask, other=0.0)
            scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
            scores = tl.where(seen[None, :], scores, float("-inf"))
            higher = tl.maximum(top, tl.max(scores, 1))
            fade = tl.exp2(top - higher)
            new = tl.exp2(scores - higher[:, None])
            chances = chances * fade[:, None] + new
            value = tl.load(place + KV_VALUE, mask=mask, other=0.0)
            sums = tl.dot(new.to(value.dtype), value, sums * fade[:, None], input_precision="ieee")
            top = higher
            tokens += BLOCK
            slots = slots if BLOCK % PAGE_SIZE == 0 else tokens
            page = page_of(table, tokens, tokens <= position, width, cache, PAGE_SIZE)

        weight = tl.sum(chances, 1)
        weight = tl.where(weight == 0.0, 1.0, weight)  # of no tokens
        result = sums / weight[:, None]
        if count == blocks:
            place = out + row.to(tl.int64) * out_row + group[:, None] * out_head + dims[None, :]
            tl.store(place, result.to(out.dtype.element_ty), mask=inside)
        else:
            part = (2 * program + (at > share).to(tl.int32)) * GROUP + heads
            tl.store(partials + part[:, None] * DIM + dims[None, :], result, mask=inside)
            tl.store(weights + part, top + tl.log2(weight), mask=heads < GROUP)
        at += count
        if at == (begin + blocks) * KV_HEADS:
            row += 1
            begin += blocks


@triton.jit
def _combine(
    partials, weights, positions, out, rows, shares, out_row, out_head,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
    HEADS: tl.constexpr, DIMS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One program for every place where one share ends and the next begins: the first such in a head combines it."""
    before = tl.program_id(0)
    total = KV_HEADS * _blocks_in_all(positions, rows, BLOCK, CHUNK)
    cut = _share(total, before + 1, shares)
    if cut < total:
        row, begin = _row_at(cut // KV_HEADS, positions, rows, BLOCK, CHUNK)
        blocks = _blocks_of(tl.load(positions + row), BLOCK)
        head = (cut - begin * KV_HEADS) // blocks
        start = begin * KV_HEADS + head * blocks
        share = _share(total, before, shares)
        if (start < cut) & (share <= start):
            heads = tl.arange(0, HEADS)
            dims = tl.arange(0, DIMS)
            inside = (heads < GROUP)[:, None] & (dims < DIM)[None, :]
            top = tl.full([HEADS], NEVER, tl.float32)
            weight = tl.zeros([HEADS], tl.float32)
            sums = tl.zeros([HEADS, DIMS], tl.float32)
            first = before
            while _share(total, first, shares) < start + blocks:
                program = first + tl.arange(0, PARTS)
                took = _share(total, program, shares) < start + blocks
                slot = 2 * program + ((program == before) & (share < start)).to(tl.int32)
                part = slot[:, None] * GROUP + heads[None, :]
                mask = took[:, None] & (heads < GROUP)[None, :]
                found = tl.load(weights + part, mask=mask, other=NEVER)
                place = partials + part[:, :, None] * DIM + dims[None, None, :]
                values = tl.load(place, mask=mask[:, :, None] & (dims < DIM)[None, None, :], other=0.0)
                higher = tl.maximum(top, tl.max(found, 0))
                chances = tl.exp2(found - higher[None, :])
                fade = tl.exp2(top - higher)
                weight = weight * fade + tl.sum(chances, 0)
                sums = sums * fade[:, None] + tl.sum(values * chances[:, :, None], 0)
                top = higher
                first += PARTS
            place = out + row.to(tl.int64) * out_row + (head * GROUP + heads)[:, None] * out_head + dims[None, :]
            tl.store(place, (sums / weight[:, None]).to(out.dtype.element_ty), mask=inside)


ROWS_AT_ONCE = 1024
"""Rows whose blocks a program adds up at once to find its share."""
BLOCK_BYTES = 8192
"""Keys, and as many values, that a program loads at once."""


@dataclass(frozen=True, slots=True)
class _Room:
    """What the kernel may take of an SM.

    Attributes:
        programs: on it at once.
        stages: one more than the blocks of each program that are under way or in use.
        tile_bytes: of the heads of q that share a head of the cache, all that it keeps at once.
    """

    programs: int
    stages: int
    tile_bytes: int


ALONE = _Room(programs=3, stages=5, tile_bytes=32768)
"""Up to 192 KiB under way: one of 64 SMs has to draw twice what one of 132 does."""
BESIDE = _Room(programs=1, stages=4, tile_bytes=8192)
"""Less than 64 KiB of shared memory, beside a program of a matrix product."""


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Of a call: programs, tokens of a block, heads of the cache, heads of q to each of them, and their dimensions."""

    programs: int
    block: int
    kv_heads: int
    group: int
    dim: int

    @staticmethod
    def of(room: _Room, q: torch.Tensor, kv: torch.Tensor, pages: torch.Tensor, sms: int) -> _Sizes:
        page_size, kv_heads, dim = kv.shape[2:]
        group = q.shape[1] // kv_heads
        block = min(max(BLOCK_BYTES // (_padded(dim) * kv.itemsize), 16), 64)
        pieces = len(q) * kv_heads * max(1, triton.cdiv(pages.shape[1] * page_size, block))
        per_sm = min(room.programs, max(1, 16384 // _tile_bytes(q, kv)))
        return _Sizes(min(sms * per_sm, pieces), block, kv_heads, group, dim)

    @property
    def parts(self) -> int:
        """Rows of partial results: for each program, of the heads that its share cuts at its begin and at its end."""
        return 2 * self.programs * self.group

    @property
    def scratch_bytes(self) -> int:
        """Float32: those rows, and the weight of each."""
        return 4 * self.parts * (self.dim + 1)


def _padded(size: int) -> int:
    """Heads or dimensions, as many as a tile of the tensor cores has."""
    return max(16, 1 << (size - 1).bit_length())


def _tile_bytes(q: torch.Tensor, kv: torch.Tensor) -> int:
    """Of the heads of q that share a head of the cache, padded."""
    return _padded(q.shape[1] // kv.shape[3]) * _padded(q.shape[2]) * q.itemsize


def _variant(room: _Room) -> Kernel:
    """The kernel that takes no more than such room."""

    def refused(q: torch.Tensor, kv: torch.Tensor, *indices: Any, layout: object = None) -> str:
        if (asked := _tile_bytes(q, kv)) > room.tile_bytes:
            return f"takes at most {room.tile_bytes} bytes of q, padded, to a head of the cache, not {asked}"
        return refuses(q, kv, *indices)

    def scratch_bytes(
        q: torch.Tensor, kv: torch.Tensor, pages: torch.Tensor, *_: Any, sms: int, layout: object = None
    ) -> int:
        return _Sizes.of(room, q, kv, pages, sms).scratch_bytes

    @kernel(result=lambda q, *_, **__: torch.empty_like(q), refuses=refused, scratch_bytes=scratch_bytes)
    def plan(
        q: torch.Tensor,
        kv: torch.Tensor,
        pages: torch.Tensor,
        positions: torch.Tensor,
        requests: torch.Tensor | None = None,
        *,
        out: torch.Tensor,
        scratch: torch.Tensor | None,
        sms: int,
        layout: object = None,
    ) -> Sequence[Launch]:
        if not q.numel():
            return []
        assert scratch is not None  # it asks for some
        sizes = _Sizes.of(room, q, kv, pages, sms)
        floats = scratch[: sizes.scratch_bytes].view(torch.float32)
        partials, weights = floats.split((sizes.parts * sizes.dim, sizes.parts))
        both = {
            "positions": positions, "out": out, "partials": partials, "weights": weights, "rows": len(q),
            "out_row": out.stride(0), "out_head": out.stride(1), "CHUNK": min(_padded(len(q)), ROWS_AT_ONCE),
            "KV_HEADS": sizes.kv_heads, "GROUP": sizes.group, "DIM": sizes.dim, "DIMS": _padded(sizes.dim),
            "BLOCK": sizes.block,
        }  # fmt: skip
        attend = {
            "q": q, "kv": kv, "pages": pages, "requests": requests, "width": pages.shape[1], "tables": len(pages),
            "cache": len(kv), "scale": LOG2_E / sizes.dim**0.5, "q_row": q.stride(0), "q_head": q.stride(1),
            "pages_row": pages.stride(0), "KV_PAGE": kv.stride(0), "KV_VALUE": kv.stride(1), "KV_TOKEN": kv.stride(2),
            "KV_HEAD": kv.stride(3), "PAGE_SIZE": kv.shape[2], "HEADS": _padded(sizes.group),
        }  # fmt: skip
        warps = 4 if _tile_bytes(q, kv) <= 8192 else 8
        launches = [Launch(_attend, sizes.programs, both | attend, warps, room.stages)]
        if sizes.programs > 1:
            heads = triton.next_power_of_2(sizes.group)
            combine = {"shares": sizes.programs, "HEADS": heads, "PARTS": max(1, 4096 // (heads * _padded(sizes.dim)))}
            launches.append(Launch(_combine, sizes.programs - 1, both | combine, warps))
        return launches

    return plan


decode_attention = _variant(ALONE)
coresident = _variant(BESIDE)


def typical() -> Iterator[Typical]:
    """LLaMA-3-8B's decode rows with pages of both sizes; other dimensions of heads, for the kernel that runs alone."""
    for page_size in (16, 64):
        yield _typical("triton", decode_attention, page_size, 32, 8, 128)
        yield _typical("coresident", coresident, page_size, 32, 8, 128)
    for heads, kv_heads, dim in ((32, 32, 64), (32, 32, 80)):
        yield _typical("triton", decode_attention, 16, heads, kv_heads, dim)


def _typical(name: str, made: Kernel, page_size: int, heads: int, kv_heads: int, dim: int) -> Typical:
    q, kv = meta(256, heads, dim), meta(1 << 14, 2, page_size, kv_heads, dim)
    table, positions = meta(256, 32768 // page_size, dtype=torch.int32), meta(256, dtype=torch.int32)
    sizes = f"256 rows, {heads} heads of {dim} over {kv_heads}, pages of {page_size}"
    return Typical(f"decode_attention.{name}", sizes, made, (q, kv, table, positions))
