"""route, expert_linear and expert_combine: which experts a row takes, and products with the matrices of those.

A pair is a row and one of its experts. The pairs are sorted by expert on the device; then the programs walk the tiles
of all experts, whose number only the device knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from nanort.kernels.kernel import Typical, kernel, meta
from nanort.kernels.launch import Launch
from nanort.kernels.sampling import order_of, value_of

SORT_BLOCK = 2048
SUM_BLOCK = 1024
SUM_PER_SM = 8
FEW_ROWS = 1024
"""Rows up to which a router reads its weights often rather than leave SMs idle."""
ROUTE_PIECES = 128
ROUTE_PART = 512
"""Into so many pieces the logits of few rows are cut, so that a GPU is busy with them, but no sum shorter than that."""

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_LAST = tl.constexpr(0x7FFFFFFF)
_TAKEN = tl.constexpr(-(2**63))


@dataclass(frozen=True, slots=True)
class Tile:
    """What a program of a matrix product computes at once: ``rows`` by ``columns``, the sum in steps of ``depth``."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    per_sm: int


FEW = Tile(16, 64, 128, warps=4, stages=4, per_sm=3)
SOME = Tile(64, 128, 64, warps=4, stages=4, per_sm=2)
MANY = Tile(128, 128, 64, warps=8, stages=3, per_sm=2)
OTHER = Tile(32, 32, 32, warps=4, stages=3, per_sm=4)
"""By the pairs that an expert has: few leave it to memory, many to tensor cores. OTHER takes what is not copied as
tiles: float32, and rows that do not start at multiples of 16 bytes."""


@triton.jit
def _product(
    x, weight, weight_stride, first, last, start, stop, n,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Rows that ``x`` (rows, 1) points to times rows of weight, summed from start to stop; anything beyond ``last``."""
    row = tl.minimum(first + tl.arange(0, COLUMNS), last).to(tl.int64)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in range(start, stop, DEPTH):
        at = (k + tl.arange(0, DEPTH))[None, :]
        one = tl.load(x + at) if WHOLE else tl.load(x + at, mask=at < stop, other=0.0)
        if isinstance(weight, tl.tensor):
            address = weight + row[:, None] * weight_stride + at
            other = tl.load(address) if WHOLE else tl.load(address, mask=at < n, other=0.0)
        else:
            other = weight.load([first, k])
        total = tl.dot(one, other.T, total, input_precision="ieee")
    return total


@triton.jit
def _write(total, rows, first, m, stored):
    """Writes columns from ``first`` on to these rows, some columns after the others: addresses take few registers."""
    ROWS: tl.constexpr = total.shape[0]
    COLUMNS: tl.constexpr = total.shape[1]
    if COLUMNS > 32:
        left, right = total.reshape(ROWS, 2, COLUMNS // 2).permute(0, 2, 1).split()
        _write(left, rows, first, m, stored)
        _write(right, rows, first + COLUMNS // 2, m, stored)
    else:
        column = (first + tl.arange(0, COLUMNS))[None, :]
        tl.store(rows + column, total.to(rows.dtype.element_ty), mask=stored & (column < m))


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
        total = _product(
            address, weight, weight_stride, first, experts - 1, start, min(start + size, n), n,
            ROWS, COLUMNS, DEPTH, WHOLE,
        )  # fmt: skip
        to = partial + (row.to(tl.int64)[:, None] * splits + part) * experts
        _write(total, to, first, experts, (row < rows)[:, None])


@triton.jit
def _best_experts(
    x, partial, chosen, weights, rows, experts, splits, top_k,
    ROWS: tl.constexpr, EXPERTS: tl.constexpr, CHOSEN: tl.constexpr,
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
        share = share / tl.sum(share, axis=1)[:, None]
        stored = (row < rows) & (slot < top_k)
        tl.store(chosen + row * top_k + slot, (found & _LAST) ^ _LAST, mask=stored)
        tl.store(weights + row * top_k + slot, share, mask=stored)


@triton.jit
def _sort(chosen, starts, order, pairs, experts, BLOCK: tl.constexpr):
    """Pairs by expert, those of one expert in their order; ``starts`` (experts + 1,) says where each begins."""
    lane = tl.arange(0, BLOCK)
    for expert in range(tl.program_id(0), experts + 1, tl.num_programs(0)):
        less = tl.zeros((BLOCK,), tl.int32)
        for base in range(0, pairs, BLOCK):
            at = base + lane
            other = tl.load(chosen + at, mask=at < pairs, other=experts)
            tl.device_assert((other >= 0) & ((other < experts) | (at >= pairs)), "an expert that is not there")
            less += (other < expert).to(tl.int32)
        start = tl.sum(less, axis=0)
        tl.store(starts + expert, start)
        for base in range(0, pairs, BLOCK):
            at = base + lane
            mine = (tl.load(chosen + at, mask=at < pairs, other=-1) == expert).to(tl.int32)
            tl.store(order + start + tl.cumsum(mine, axis=0) - 1, at, mask=mine != 0)
            start += tl.sum(mine, axis=0)


@triton.jit
def _grouped(
    x, x_stride, choice_stride, weight, weight_stride, starts, order, out, out_stride,
    pairs, chosen, experts, m, n,
    EXPERTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    expert = tl.arange(0, EXPERTS)
    start = tl.load(starts + expert, mask=expert < experts, other=pairs)
    stop = tl.load(starts + expert + 1, mask=expert < experts, other=pairs)
    high = tl.cdiv(stop - start, ROWS)
    tiles = high * tl.cdiv(m, COLUMNS)
    ends = tl.cumsum(tiles, axis=0)
    for tile in range(tl.program_id(0), tl.sum(tiles, axis=0), tl.num_programs(0)):
        here = expert == tl.sum((ends <= tile).to(tl.int32), axis=0)
        tile_high = tl.sum(tl.where(here, high, 0), axis=0)
        tile_stop = tl.sum(tl.where(here, stop, 0), axis=0)
        mine = tl.sum(tl.where(here, expert, 0), axis=0)
        index = tile - tl.sum(tl.where(here, ends - tiles, 0), axis=0)  # row by row, so that all rows share the weights
        at = tl.sum(tl.where(here, start, 0), axis=0) + index % tile_high * ROWS + tl.arange(0, ROWS)
        pair = tl.load(order + tl.minimum(at, tile_stop - 1))
        row, choice = (pair // chosen).to(tl.int64), (pair % chosen).to(tl.int64)
        address = x + (row * x_stride + choice * choice_stride)[:, None]
        first = index // tile_high * COLUMNS
        total = _product(
            address, weight, weight_stride, mine * m + first, mine * m + m - 1, 0, n, n, ROWS, COLUMNS, DEPTH, WHOLE
        )
        to = out + (row * out_stride + choice * m)[:, None]
        _write(total, to, first, m, (at < tile_stop)[:, None])


@triton.jit
def _weighted_sum(products, weights, out, out_stride, rows, m, CHOSEN: tl.constexpr, BLOCK: tl.constexpr):
    columns = tl.cdiv(m, BLOCK)
    for piece in range(tl.program_id(0), rows * columns, tl.num_programs(0)):
        row = tl.full((), 1, tl.int64) * (piece // columns)
        at = piece % columns * BLOCK + tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), tl.float32)
        for choice in tl.static_range(CHOSEN):
            pair = row * CHOSEN + choice
            part = tl.load(products + pair * m + at, mask=at < m, other=0.0).to(tl.float32)
            total += part * tl.load(weights + pair).to(tl.float32)
        tl.store(out + row * out_stride + at, total.to(out.dtype.element_ty), mask=at < m)


# Plans.


def _unfit(x: torch.Tensor, weight: torch.Tensor) -> str:
    if x.dtype not in _DTYPES:
        return f"takes float16, bfloat16 and float32, not {x.dtype}"
    if not weight.is_contiguous():
        return "takes contiguous weights"
    return "" if x.stride(1) == 1 or x.shape[1] == 1 else "takes rows of x that are contiguous"


def _copied(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether tiles of weight are for the engine that copies tiles: 16-bit numbers whose rows start as it wants."""
    starts = (start for rows in (x, weight) for start in (rows.data_ptr(), rows.storage_offset() * rows.itemsize))
    strides = (rows.stride(-2) * rows.itemsize for rows in (x, weight))
    return x.itemsize == 2 and x.shape[1] > 0 and not any(size % 16 for size in (*starts, *strides))


def _described(x: torch.Tensor, weight: torch.Tensor, tile: Tile) -> torch.Tensor | TensorDescriptor:
    """The rows of weight, for that engine if it takes them."""
    return TensorDescriptor.from_tensor(weight, [tile.columns, tile.depth]) if _copied(x, weight) else weight


def _route_refuses(x: torch.Tensor, weight: torch.Tensor, *, top_k: int = 2) -> str:
    return _unfit(x, weight)


def _route_result(x: torch.Tensor, weight: torch.Tensor, *, top_k: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(len(x), top_k, dtype=torch.int64), x.new_empty(len(x), top_k, dtype=torch.float32)


def _route_tile(x: torch.Tensor, weight: torch.Tensor) -> Tile:
    if not _copied(x, weight):
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


def _route_bytes(x: torch.Tensor, weight: torch.Tensor, *, sms: int, top_k: int = 2) -> int:
    splits, _ = _route_parts(x, weight)
    return 4 * len(x) * splits * len(weight)


@kernel(result=_route_result, refuses=_route_refuses, scratch_bytes=_route_bytes)
def route(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    out: tuple[torch.Tensor, torch.Tensor],
    scratch: torch.Tensor | None,
    sms: int,
    top_k: int = 2,
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
        "x": x, "x_stride": x.stride(0), "weight": _described(x, weight, tile), "weight_stride": weight.stride(0),
        "partial": partial,
        "rows": rows, "experts": experts, "n": n, "splits": splits, "size": size,
        "ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth, "WHOLE": n % tile.depth == 0,
    }  # fmt: skip
    pieces = triton.cdiv(rows, tile.rows) * triton.cdiv(experts, tile.columns) * splits
    logits = Launch(_logits, min(pieces, sms * tile.per_sm), arguments, warps=tile.warps, stages=tile.stages)
    block = triton.next_power_of_2(experts)
    together = max(1, 512 // block)
    arguments = {
        "x": x, "partial": partial, "chosen": out[0], "weights": out[1], "rows": rows, "experts": experts,
        "splits": splits, "top_k": top_k,
        "ROWS": together, "EXPERTS": block, "CHOSEN": triton.next_power_of_2(top_k),
    }  # fmt: skip
    return [logits, Launch(_best_experts, min(triton.cdiv(rows, together), sms * 8), arguments, warps=4)]


def _tile(x: torch.Tensor, pairs: int, weight: torch.Tensor) -> Tile:
    if not _copied(x, weight):
        return OTHER
    each = triton.cdiv(pairs, len(weight))
    return FEW if each <= FEW.rows else SOME if each <= SOME.rows else MANY


def _sorted_bytes(pairs: int, experts: int) -> int:
    """Bytes of the sorted pairs and of where each expert's begin, rounded up so that products may follow."""
    return (4 * (experts + 1 + pairs) + 15) // 16 * 16


def _products(
    x: torch.Tensor,
    choice_stride: int,
    experts: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    out_stride: int,
    scratch: torch.Tensor | None,
    sms: int,
) -> Sequence[Launch]:
    """What sorts pairs and multiplies each: its x starts ``choice_stride`` after that of the choice before."""
    assert scratch is not None, "the plan is called with the scratch that it asks for"
    pairs, chosen, (count, m, n) = experts.numel(), experts.shape[1], weight.shape
    starts = scratch[: 4 * (count + 1)].view(torch.int32)
    order = scratch[4 * (count + 1) : 4 * (count + 1 + pairs)].view(torch.int32)
    arguments = {
        "chosen": experts, "starts": starts, "order": order, "pairs": pairs, "experts": count, "BLOCK": SORT_BLOCK,
    }  # fmt: skip
    sort = Launch(_sort, min(count + 1, sms), arguments, warps=8)
    tile = _tile(x, pairs, weight)
    arguments = {
        "x": x, "x_stride": x.stride(0), "choice_stride": choice_stride,
        "weight": _described(x, weight.view(count * m, n), tile), "weight_stride": n, "starts": starts, "order": order,
        "out": out, "out_stride": out_stride, "pairs": pairs, "chosen": chosen, "experts": count, "m": m, "n": n,
        "EXPERTS": triton.next_power_of_2(count), "ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth,
        "WHOLE": n % tile.depth == 0,
    }  # fmt: skip
    most = min(pairs, pairs // tile.rows + count) * triton.cdiv(m, tile.columns)
    multiply = Launch(_grouped, min(most, sms * tile.per_sm), arguments, warps=tile.warps, stages=tile.stages)
    return [sort, multiply]


def _linear_refuses(x: torch.Tensor, experts: torch.Tensor, weight: torch.Tensor) -> str:
    return _unfit(x, weight) or ("" if experts.is_contiguous() else "takes contiguous experts")


def _linear_bytes(x: torch.Tensor, experts: torch.Tensor, weight: torch.Tensor, *, sms: int) -> int:
    return _sorted_bytes(experts.numel(), len(weight))


@kernel(
    result=lambda x, experts, weight: x.new_empty(len(x), experts.shape[1] * weight.shape[1]),
    refuses=_linear_refuses,
    scratch_bytes=_linear_bytes,
)
def expert_linear(
    x: torch.Tensor,
    experts: torch.Tensor,
    weight: torch.Tensor,
    *,
    out: torch.Tensor,
    scratch: torch.Tensor | None,
    sms: int,
) -> Sequence[Launch]:
    """The products of each row with the matrices of its experts, side by side."""
    return _products(x, 0, experts, weight, out, out.stride(0), scratch, sms) if out.numel() else []


def _combine_refuses(x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, weight: torch.Tensor) -> str:
    if weights.dtype not in _DTYPES:
        return f"takes weights in float16, bfloat16 and float32, not {weights.dtype}"
    whole = experts.is_contiguous() and weights.is_contiguous()
    return _unfit(x, weight) or ("" if whole else "takes contiguous experts and weights")


def _combine_bytes(
    x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, weight: torch.Tensor, *, sms: int
) -> int:
    pairs = experts.numel()
    return _sorted_bytes(pairs, len(weight)) + pairs * weight.shape[1] * x.itemsize


@kernel(
    result=lambda x, experts, weights, weight: x.new_empty(len(x), weight.shape[1]),
    refuses=_combine_refuses,
    scratch_bytes=_combine_bytes,
)
def expert_combine(
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    weight: torch.Tensor,
    *,
    out: torch.Tensor,
    scratch: torch.Tensor | None,
    sms: int,
) -> Sequence[Launch]:
    """The weighted sum of those products, each choice with its own x: products go to scratch, and are added up."""
    if not out.numel():
        return []
    assert scratch is not None, "the plan is called with the scratch that it asks for"
    (rows, chosen), (_, m, n) = experts.shape, weight.shape
    start = _sorted_bytes(experts.numel(), len(weight))
    products = scratch[start : start + rows * chosen * m * x.itemsize].view(x.dtype)
    multiplied = _products(x, n, experts, weight, products, chosen * m, scratch, sms)
    arguments = {
        "products": products, "weights": weights, "out": out, "out_stride": out.stride(0), "rows": rows, "m": m,
        "CHOSEN": chosen, "BLOCK": SUM_BLOCK,
    }  # fmt: skip
    programs = min(rows * triton.cdiv(m, SUM_BLOCK), sms * SUM_PER_SM)
    return [*multiplied, Launch(_weighted_sum, programs, arguments)]


def typical() -> Iterator[Typical]:
    """A layer of Mixtral-8x7B for few rows and many, in all tiles, and the router of a layer of 256 experts."""
    for rows in (8, 128, 2048):
        x, experts, weights = meta(rows, 4096), meta(rows, 2, dtype=torch.int64), meta(rows, 2, dtype=torch.float32)
        up, down = meta(8, 14336, 4096), meta(8, 4096, 14336)
        sizes = f"{rows} x 4096, 2 of 8 experts x 14336"
        yield Typical("route.triton", sizes, route, (x, meta(8, 4096)), {"top_k": 2})
        yield Typical("expert_linear.triton", sizes, expert_linear, (x, experts, up))
        yield Typical("expert_combine.triton", sizes, expert_combine, (meta(rows, 2 * 14336), experts, weights, down))
    x, picked = meta(128, 4096, dtype=torch.float32), meta(128, 2, dtype=torch.int64)
    up = meta(8, 14336, 4096, dtype=torch.float32)
    yield Typical("expert_linear.triton", "128 x 4096, 2 of 8 experts x 14336 float32", expert_linear, (x, picked, up))
    x, up = meta(128, 4095), meta(8, 14336, 4095)
    yield Typical("expert_linear.triton", "128 x 4095, 2 of 8 experts x 14336", expert_linear, (x, picked, up))
    yield Typical(
        "route.triton", "2048 x 7168, 8 of 256 experts", route, (meta(2048, 7168), meta(256, 7168)), {"top_k": 8}
    )
