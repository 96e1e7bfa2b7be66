"""route: the experts of each row, the likeliest first, and their weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl

from nanort.kernels.kernel import Typical, kernel, meta
from nanort.kernels.launch import Launch
from nanort.kernels.products import Tile, copied, described, product, unfit, write_columns
from nanort.kernels.sampling import order_of, value_of

FEW_ROWS = 1024
"""Rows up to which a router reads its weights often rather than leave SMs idle."""
REGISTERS = 65536
"""Of an SM, which its programs share; left to itself, the compiler spills at 64 columns on Blackwell."""
ROUTE_PIECES = 128
ROUTE_PART = 512
"""Into so many pieces the logits of few rows are cut, so that a GPU is busy with them, but no sum shorter than that."""

_LAST = tl.constexpr(0x7FFFFFFF)
_TAKEN = tl.constexpr(-(2**63))


@triton.jit
def _logits(
    x, x_stride, weight, weight_stride, partial, rows, experts, n, splits, size,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    columns = tl.cdiv(experts, COLUMNS)
    for piece in range(tl.program_id(0), tl.cdiv(rows, ROWS) * columns * splits, tl.num_programs(0)):
        part = piece % splits
        first = (piece // splits) % columns * COLUMNS
        row = piece // splits // columns * ROWS + tl.arange(0, ROWS)
        address = x + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * x_stride
        start = part * size
        total = product(
            address, weight, weight_stride, first, experts - 1, start, min(start + size, n), n,
            ROWS, COLUMNS, DEPTH, WHOLE,
        )  # fmt: skip
        to = partial + (row.to(tl.int64)[:, None] * splits + part) * experts
        write_columns(total, to, first, experts, (row < rows)[:, None])


@triton.jit
def _best_experts(
    x, partial, chosen, weights, rows, experts, splits, top_k,
    ROWS: tl.constexpr, EXPERTS: tl.constexpr, CHOSEN: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    expert = tl.arange(0, EXPERTS)[None, :]
    slot = tl.arange(0, CHOSEN)[None, :]
    for block in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = (block * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        valid = (row < rows) & (expert < experts)
        logits = tl.zeros((ROWS, EXPERTS), tl.float32)
        for part in range(splits):
            logits += tl.load(partial + (row * splits + part) * experts + expert, mask=valid, other=0.0)
        logits = logits.to(x.dtype.element_ty).to(tl.float32)  # equals of that dtype are equals
        order = tl.where(logits == logits, order_of(logits, 0), _LAST)
        ranked = (order.to(tl.int64) << 32) | (expert ^ _LAST).to(tl.int64)
        ranked = tl.where(expert < experts, ranked, _TAKEN)
        found = tl.zeros((ROWS, CHOSEN), tl.int64)
        for k in range(top_k):
            best = tl.max(ranked, axis=1)[:, None]
            ranked = tl.where(ranked == best, _TAKEN, ranked)
            found = tl.where(slot == k, best, found)
        taken = value_of(found >> 32, 0)
        top = tl.max(tl.where(slot == 0, taken, float("-inf")), axis=1)[:, None]
        share = tl.where(slot < top_k, tl.exp(taken - top), 0.0)
        if NORMALIZE:
            share = share / tl.sum(share, axis=1)[:, None]
        else:
            share = share / tl.sum(tl.where(expert < experts, tl.exp(logits - top), 0.0), axis=1)[:, None]
        stored = (row < rows) & (slot < top_k)
        tl.store(chosen + row * top_k + slot, (found & _LAST) ^ _LAST, mask=stored)
        tl.store(weights + row * top_k + slot, share, mask=stored)


def _route_refuses(x: torch.Tensor, weight: torch.Tensor, **_: object) -> str:
    return unfit(x, weight)


def _route_result(
    x: torch.Tensor, weight: torch.Tensor, *, top_k: int = 2, **_: object
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(len(x), top_k, dtype=torch.int64), x.new_empty(len(x), top_k, dtype=torch.float32)


def _route_tile(x: torch.Tensor, weight: torch.Tensor) -> Tile:
    if not copied(x, weight):
        return Tile(16, 32, 32, warps=4, stages=3, per_sm=4)
    columns = min(max(triton.next_power_of_2(len(weight)), 16), 128)
    if len(x) <= FEW_ROWS:
        return Tile(16, columns, 128, warps=4, stages=3, per_sm=2)
    return Tile(64, columns, 64, warps=4, stages=3, per_sm=2)


def _route_parts(x: torch.Tensor, weight: torch.Tensor) -> tuple[int, int]:
    """In how many parts the sums are cut, and terms of each but the last: as shapes say, whatever the SMs.

    Scratch is reserved before addresses are known, on which the tile depends: 128 is a multiple of the depth of all.
    """
    n = x.shape[1]
    tiles = triton.cdiv(len(x), 16 if len(x) <= FEW_ROWS else 64) * triton.cdiv(len(weight), 128)
    size = triton.cdiv(n, triton.cdiv(ROUTE_PIECES, max(tiles, 1)))
    size = max(triton.cdiv(size, 128) * 128, ROUTE_PART)
    return max(triton.cdiv(n, size), 1), size


def _route_bytes(x: torch.Tensor, weight: torch.Tensor, **_: object) -> int:
    return 4 * len(x) * _route_parts(x, weight)[0] * len(weight)


@kernel(result=_route_result, refuses=_route_refuses, scratch_bytes=_route_bytes)
def route(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    out: tuple[torch.Tensor, torch.Tensor],
    scratch: torch.Tensor | None,
    sms: int,
    top_k: int = 2,
    normalize: bool = True,
) -> Sequence[Launch]:
    """The experts of each row and their weights; of equal ones, the first."""
    (rows, n), experts = x.shape, len(weight)
    if not rows or not top_k:
        return []
    assert scratch is not None, "the plan is called with the scratch that it asks for"
    tile = _route_tile(x, weight)
    splits, size = _route_parts(x, weight)
    partial = scratch[: 4 * rows * splits * experts].view(torch.float32)
    arguments = {
        "x": x, "x_stride": x.stride(0), "weight": described(x, weight, tile), "weight_stride": weight.stride(0),
        "partial": partial,
        "rows": rows, "experts": experts, "n": n, "splits": splits, "size": size,
        "ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth, "WHOLE": n % tile.depth == 0,
    }  # fmt: skip
    pieces = triton.cdiv(rows, tile.rows) * triton.cdiv(experts, tile.columns) * splits
    logits = Launch(
        _logits, min(pieces, sms * tile.per_sm), arguments, warps=tile.warps, stages=tile.stages,
        registers=min(REGISTERS // (32 * tile.warps * tile.per_sm), 255),
    )  # fmt: skip
    block = triton.next_power_of_2(experts)
    together = max(1, 512 // block)
    arguments = {
        "x": x, "partial": partial, "chosen": out[0], "weights": out[1], "rows": rows, "experts": experts,
        "splits": splits, "top_k": top_k,
        "ROWS": together, "EXPERTS": block, "CHOSEN": triton.next_power_of_2(top_k), "NORMALIZE": normalize,
    }  # fmt: skip
    return [logits, Launch(_best_experts, min(triton.cdiv(rows, together), sms * 8), arguments, warps=4)]


def typical() -> Iterator[Typical]:
    """The router of Mixtral-8x7B for few rows and many, that of Qwen1.5-MoE, and that of a layer of 256 experts."""
    for rows in (8, 128, 2048):
        sizes = f"{rows} x 4096, 2 of 8 experts x 14336"
        yield Typical("route.triton", sizes, route, (meta(rows, 4096), meta(8, 4096)), {"top_k": 2})
    qwen = meta(2048, 2048), meta(60, 2048)
    yield Typical("route.triton", "2048 x 2048, 4 of 60 experts", route, qwen, {"top_k": 4, "normalize": False})
    large = meta(2048, 7168), meta(256, 7168)
    yield Typical("route.triton", "2048 x 7168, 8 of 256 experts", route, large, {"top_k": 8})
