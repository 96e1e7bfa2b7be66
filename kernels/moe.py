"""expert_linear and expert_combine: products of each row with the matrices of its experts.

A pair is a row and one of its experts. The pairs are sorted by expert on the device; then the programs walk the tiles
of all experts, whose number only the device knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl

from nanort.kernels.kernel import Typical, kernel, meta
from nanort.kernels.launch import Launch
from nanort.kernels.products import DTYPES, Tile, copied, described, product, unfit, write_columns

SORT_BLOCK = 2048
SUM_BLOCK = 1024
SUM_PER_SM = 8
FEW = Tile(16, 64, 128, warps=4, stages=4, per_sm=3)
SOME = Tile(64, 128, 64, warps=4, stages=4, per_sm=2)
MANY = Tile(128, 128, 64, warps=8, stages=3, per_sm=2)
OTHER = Tile(32, 32, 32, warps=4, stages=3, per_sm=4)
"""By the pairs that an expert has: few leave it to memory, many to tensor cores. OTHER takes what is not copied as
tiles: float32, and rows that do not start at multiples of 16 bytes."""


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
        total = product(
            address, weight, weight_stride, mine * m + first, mine * m + m - 1, 0, n, n, ROWS, COLUMNS, DEPTH, WHOLE
        )
        to = out + (row * out_stride + choice * m)[:, None]
        write_columns(total, to, first, m, (at < tile_stop)[:, None])


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


def _tile(x: torch.Tensor, pairs: int, weight: torch.Tensor) -> Tile:
    if not copied(x, weight):
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
        "weight": described(x, weight.view(count * m, n), tile), "weight_stride": n, "starts": starts, "order": order,
        "out": out, "out_stride": out_stride, "pairs": pairs, "chosen": chosen, "experts": count, "m": m, "n": n,
        "EXPERTS": triton.next_power_of_2(count), "ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth,
        "WHOLE": n % tile.depth == 0,
    }  # fmt: skip
    most = min(pairs, pairs // tile.rows + count) * triton.cdiv(m, tile.columns)
    multiply = Launch(_grouped, min(most, sms * tile.per_sm), arguments, warps=tile.warps, stages=tile.stages)
    return [sort, multiply]


def _linear_refuses(x: torch.Tensor, experts: torch.Tensor, weight: torch.Tensor) -> str:
    return unfit(x, weight) or ("" if experts.is_contiguous() else "takes contiguous experts")


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
    if weights.dtype not in DTYPES:
        return f"takes weights in float16, bfloat16 and float32, not {weights.dtype}"
    whole = experts.is_contiguous() and weights.is_contiguous()
    return unfit(x, weight) or ("" if whole else "takes contiguous experts and weights")


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
    """A layer of Mixtral-8x7B for few rows and many, in all tiles."""
    for rows in (8, 128, 2048):
        x, experts, weights = meta(rows, 4096), meta(rows, 2, dtype=torch.int64), meta(rows, 2, dtype=torch.float32)
        up, down = meta(8, 14336, 4096), meta(8, 4096, 14336)
        sizes = f"{rows} x 4096, 2 of 8 experts x 14336"
        yield Typical("expert_linear.triton", sizes, expert_linear, (x, experts, up))
        yield Typical("expert_combine.triton", sizes, expert_combine, (meta(rows, 2 * 14336), experts, weights, down))
    x, picked = meta(128, 4096, dtype=torch.float32), meta(128, 2, dtype=torch.int64)
    up = meta(8, 14336, 4096, dtype=torch.float32)
    yield Typical("expert_linear.triton", "128 x 4096, 2 of 8 experts x 14336 float32", expert_linear, (x, picked, up))
    x, up = meta(128, 4095), meta(8, 14336, 4095)
    yield Typical("expert_linear.triton", "128 x 4095, 2 of 8 experts x 14336", expert_linear, (x, picked, up))
