"""linear: the matrix product of a dense layer, by programs that stay on their SMs.

Each program computes one tile of the result after another. Where too few tiles are left for all SMs, as at the end, or
from the start if there are few rows, several programs share the products of each, and another launch adds them up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton.compiler.compiler import max_shared_mem
from triton.tools.tensor_descriptor import TensorDescriptor

from nanort.kernels.kernel import Kernel, Typical, kernel, meta
from nanort.kernels.launch import Launch

GROUP = 8
"""Rows of tiles that are computed column by column, so that what the SMs read at once stays in L2."""
ADDED = 1024
"""Numbers of which a program adds up the parts at once."""
ADDERS = 4
"""Programs that do so, of which an SM is to hold this many."""
A100_BYTES = 163 * 1024
"""Shared memory that a program may have there."""
SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
ALIGNED = 16
"""Bytes of which the engine that copies tiles wants the start of every row to be a multiple."""

# What a tile costs, in nanoseconds of one SM of an H200; only how they compare decides. Its 132 SMs do 790 TFLOP/s.
PRODUCTS = 3000
"""Multiply-adds of 16-bit numbers; those of float32 take longer, by as much for all tiles."""
LOADED = 80
"""Bytes that an SM draws from L2, which is why large tiles are faster: they load less for each product."""
MEMORY = 4300
"""Bytes that all SMs together draw from device memory."""
STARTED = 1000
"""What is lost round a tile: filling the pipeline, and writing the result."""
LAUNCHED = 2000
"""What another launch adds."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows and columns of the result that a program computes at once, and how many products of each per step."""

    rows: int
    columns: int
    depth: int
    warps: int = 4
    stages: int = 4
    per_sm: int = 1
    registers: int = 0

    @property
    def shared_bytes(self) -> int:
        """What it takes of an SM's shared memory before Hopper, for 16-bit numbers: loaded tiles, and one written."""
        return 2 * (self.stages - 1) * (self.rows + self.columns) * self.depth + 64 * self.rows

    @property
    def part_bytes(self) -> int:
        """What it is in float32."""
        return 4 * self.rows * self.columns

    def count(self, m: int, n: int) -> int:
        """Tiles of a result of m rows and n columns."""
        return -(-m // self.rows) * -(-n // self.columns)

    def nanoseconds(self, m: int, n: int, k: int, itemsize: int, sms: int, split: int) -> tuple[float, float]:
        """Until the last SM has ended, and, where memory is slower than that, what the SMs alone took."""
        rounds, left = divmod(self.count(m, n), sms)
        steps = triton.cdiv(k, self.depth)
        step = max(self.rows * self.columns / PRODUCTS, (self.rows + self.columns) * itemsize / LOADED) * self.depth
        busiest = rounds * (STARTED + steps * step)
        busiest += triton.cdiv(left * split, sms) * (STARTED + triton.cdiv(steps, split) * step)
        added = 0.0
        if split > 1:
            added = LAUNCHED * (2 if rounds else 1) + 2 * split * left * self.part_bytes / (LOADED * sms)
        return max(busiest, (m + n) * k * itemsize / MEMORY) + added, busiest


HALVES = (
    Tile(16, 32, 256), Tile(16, 64, 256), Tile(16, 128, 128, warps=8), Tile(32, 64, 128), Tile(32, 128, 128),
    Tile(64, 64, 64, per_sm=2), Tile(64, 128, 64, per_sm=2), Tile(64, 256, 64),
    Tile(128, 64, 64, per_sm=2), Tile(128, 128, 64, stages=3, per_sm=2), Tile(128, 256, 64, warps=8),
)  # fmt: skip
"""For float16 and bfloat16: from 64 rows on for the tensor cores of Hopper, the smaller ones to draw on memory."""
SINGLES = (Tile(16, 64, 32, warps=8), Tile(64, 64, 32, warps=8, stages=3))
"""For float32."""
RAGGED = (Tile(16, 64, 64), Tile(64, 64, 32, warps=8), Tile(128, 128, 32, warps=8))
"""For 16-bit numbers whose rows do not start at multiples of 16 bytes, which pass through registers."""
BESIDE = (
    Tile(16, 64, 128), Tile(64, 128, 64, warps=8, registers=128),
    Tile(128, 128, 64, warps=8, stages=3, registers=128),
)  # fmt: skip
"""Tiles of at most 97 KiB and half of the registers of an SM."""


@triton.jit
def _read(source, stride, first, count, k, K, ROWS: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr):
    """A tile of a tensor, described for the engine that copies tiles or not; zeros beyond K, anything beyond count."""
    if isinstance(source, tl.tensor):
        at, at_k = first + tl.arange(0, ROWS), k + tl.arange(0, DEPTH)
        address = source + tl.where(at < count, at, 0).to(tl.int64)[:, None] * stride + at_k[None, :]
        tile = tl.load(address) if WHOLE else tl.load(address, mask=at_k[None, :] < K, other=0.0)
    else:
        tile = source.load([first, k])
    return tile


@triton.jit
def _write(total, m, n, M, N, bias, residual, out, residual_stride, out_stride):
    """Writes a tile of the result, a part of its columns after the other, so that few registers hold addresses."""
    ROWS: tl.constexpr = total.shape[0]
    COLUMNS: tl.constexpr = total.shape[1]
    if COLUMNS > 32:
        left, right = total.reshape(ROWS, 2, COLUMNS // 2).permute(0, 2, 1).split()
        _write(left, m, n, M, N, bias, residual, out, residual_stride, out_stride)
        _write(right, m, n + COLUMNS // 2, M, N, bias, residual, out, residual_stride, out_stride)
    else:
        at_m, at_n = tl.arange(0, ROWS) + m, tl.arange(0, COLUMNS) + n
        inside = (at_m < M)[:, None] & (at_n < N)[None, :]
        row = at_m.to(tl.int64)[:, None]
        if bias is not None:
            total += tl.load(bias + at_n, mask=at_n < N, other=0.0).to(tl.float32)[None, :]
        if residual is not None:
            address = residual + row * residual_stride + at_n[None, :]
            total += tl.load(address, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + row * out_stride + at_n[None, :], total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _place(tile, M, N, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    """The first row and column of a tile: GROUP rows of tiles are gone through column by column."""
    columns = tl.cdiv(N, COLUMNS)
    first = tile // (GROUP * columns) * GROUP
    height = min(tl.cdiv(M, ROWS) - first, GROUP)
    return (first + tile % (GROUP * columns) % height) * ROWS, tile % (GROUP * columns) // height * COLUMNS


@triton.jit
def _linear(
    x, weight, bias, residual, out, M, N, K, first, tiles, x_stride, weight_stride, residual_stride, out_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr, SPLIT: tl.constexpr,
    WHOLE: tl.constexpr, FLATTEN: tl.constexpr,
):  # fmt: skip
    """So many tiles from the first on; or SPLIT parts of each of them, side by side, in float32."""
    steps = tl.cdiv(K, DEPTH)
    each = tl.cdiv(steps, SPLIT)
    for piece in tl.range(tl.program_id(0), tiles * SPLIT, tl.num_programs(0), flatten=FLATTEN):
        m, n = _place(first + piece // SPLIT, M, N, ROWS, COLUMNS, GROUP)
        start = piece % SPLIT * each
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for step in range(start, min(start + each, steps)):
            one = _read(x, x_stride, m, M, step * DEPTH, K, ROWS, DEPTH, WHOLE)
            other = _read(weight, weight_stride, n, N, step * DEPTH, K, COLUMNS, DEPTH, WHOLE)
            total = tl.dot(one, other.T, total, input_precision="ieee")
        if SPLIT == 1:
            _write(total, m, n, M, N, bias, residual, out, residual_stride, out_stride)
        else:
            part = out + tl.full((), ROWS * COLUMNS, tl.int64) * piece
            _write(total, 0, 0, ROWS, COLUMNS, None, None, part, 0, COLUMNS)


@triton.jit
def _add_parts(
    parts, bias, residual, out, M, N, first, tiles, residual_stride, out_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr, SPLIT: tl.constexpr, HIGH: tl.constexpr,
):  # fmt: skip
    """Adds up the parts of so many tiles from the first on, HIGH rows at once."""
    at = tl.arange(0, HIGH)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    for piece in range(tl.program_id(0), tiles * (ROWS // HIGH), tl.num_programs(0)):
        tile, top = piece // (ROWS // HIGH), piece % (ROWS // HIGH) * HIGH
        start = parts + tl.full((), SPLIT * ROWS * COLUMNS, tl.int64) * tile + top * COLUMNS
        total = tl.zeros((HIGH, COLUMNS), tl.float32)
        for part in tl.static_range(SPLIT):
            total += tl.load(start + part * ROWS * COLUMNS + at)
        m, n = _place(first + tile, M, N, ROWS, COLUMNS, GROUP)
        _write(total, m + top, n, M, N, bias, residual, out, residual_stride, out_stride)


@lru_cache(maxsize=4096)
def tiling(m: int, n: int, k: int, itemsize: int, sms: int, tiles: tuple[Tile, ...]) -> tuple[Tile, int]:
    """The tile with which x (m, k) times weight (n, k) ends first on so many SMs, and how many share one of the last.

    >>> tile, split = tiling(1024, 4096, 4096, itemsize=2, sms=96, tiles=HALVES)  # one round, and a third of the SMs
    >>> tile.count(1024, 4096), split
    (128, 3)
    """
    fitting = [(tile, split) for tile in tiles for split in SPLITS if split == 1 or k >= split * 4 * tile.depth]
    return min(fitting, key=lambda found: found[0].nanoseconds(m, n, k, itemsize, sms, found[1]))


def _result(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, residual: torch.Tensor | None = None
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _refuses(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, residual: torch.Tensor | None = None
) -> str:
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"takes float16, bfloat16 and float32, not {x.dtype}"
    given = [tensor for tensor in (x, weight, bias, residual) if tensor is not None]
    if all(tensor.is_contiguous() or (tensor.dim() == 2 and tensor.stride(1) == 1) for tensor in given):
        return ""
    return "takes contiguous tensors, and matrices whose rows are contiguous"


def _tiling(x: torch.Tensor, weight: torch.Tensor, sms: int, halves: tuple[Tile, ...]) -> tuple[Tile, int]:
    (n, k), m = weight.shape, math.prod(x.shape[:-1])
    if x.itemsize == 4:
        return tiling(m, n, k, x.itemsize, sms, SINGLES)
    return tiling(m, n, k, x.itemsize, sms, _fitting(halves) if _aligned(x) and _aligned(weight) else RAGGED)


@cache
def _fitting(tiles: tuple[Tile, ...]) -> tuple[Tile, ...]:
    """Those for whose shared memory there is room on this machine's GPU, or on an A100 where there is none."""
    room = max_shared_mem(torch.cuda.current_device()) if torch.cuda.is_available() else A100_BYTES
    return tuple(tile for tile in tiles if tile.shared_bytes <= room)


def _scratch(tiles: tuple[Tile, ...]) -> Callable[..., int]:
    """The rule for the bytes of all parts of the tiles that are shared out."""

    def needed(x: torch.Tensor, weight: torch.Tensor, *_: Any, sms: int, **__: Any) -> int:
        tile, split = _tiling(x, weight, sms, tiles)
        left = tile.count(math.prod(x.shape[:-1]), len(weight)) % sms if split > 1 else 0
        return left * split * tile.part_bytes

    return needed


@kernel(result=_result, refuses=_refuses, scratch_bytes=_scratch(HALVES))
def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    *,
    out: torch.Tensor,
    scratch: torch.Tensor | None,
    sms: int,
) -> Sequence[Launch]:
    """``x @ weight.T + bias + residual``, added up in float32 and rounded once."""
    return _launches(x, weight, bias, residual, out, scratch, sms, *_tiling(x, weight, sms, HALVES))


@kernel(result=_result, refuses=_refuses, scratch_bytes=_scratch(BESIDE))
def coresident(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    *,
    out: torch.Tensor,
    scratch: torch.Tensor | None,
    sms: int,
) -> Sequence[Launch]:
    """The same by one program an SM, which takes 97 KiB of shared memory and, for 16-bit numbers, half the registers.

    An SM of Hopper has 228 KiB and 64 Ki registers. Beside 97 KiB, of which the system takes one, there is room for two
    programs of 64 KiB and the one that the system takes of each; beside 8 warps of 128 registers a thread, which are
    32 Ki, for two of 4 warps with as many.
    """
    return _launches(x, weight, bias, residual, out, scratch, sms, *_tiling(x, weight, sms, BESIDE))


def _launches(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor,
    scratch: torch.Tensor | None,
    sms: int,
    tile: Tile,
    split: int,
) -> Sequence[Launch]:
    (n, k), m = weight.shape, math.prod(x.shape[:-1])
    if not m * n:
        return []
    tiles = tile.count(m, n)
    whole = tiles if split == 1 else tiles - tiles % sms  # the others leave SMs idle, unless they are shared out
    ends = {
        "bias": bias, "residual": residual, "out": out, "M": m, "N": n,
        "residual_stride": 0 if residual is None else _stride(residual), "out_stride": _stride(out),
        "ROWS": tile.rows, "COLUMNS": tile.columns, "GROUP": GROUP,
    }  # fmt: skip
    product = ends | {
        "x": _described(x, m, tile.rows, tile.depth), "weight": _described(weight, n, tile.columns, tile.depth),
        "K": k, "x_stride": _stride(x), "weight_stride": _stride(weight), "DEPTH": tile.depth,
        "WHOLE": k % tile.depth == 0,
    }  # fmt: skip
    most, kept = sms * tile.per_sm, (tile.warps, tile.stages, tile.registers)
    launches = []
    if whole:
        # The next tile is loaded while one is written, unless other programs of the SM have something to do then.
        alone = tile.per_sm == 1 and not tile.registers
        arguments = product | {"first": 0, "tiles": whole, "SPLIT": 1, "FLATTEN": alone}
        launches.append(Launch(_linear, min(whole, most), arguments, *kept))
    if whole < tiles:
        assert scratch is not None
        left = {"first": whole, "tiles": tiles - whole, "SPLIT": split}
        parts = scratch[: (tiles - whole) * split * tile.part_bytes].view(torch.float32)
        high = min(tile.rows, ADDED // tile.columns)
        arguments = product | left | {"out": parts, "bias": None, "residual": None, "FLATTEN": False}
        launches.append(Launch(_linear, min((tiles - whole) * split, most), arguments, *kept))
        adders = min((tiles - whole) * tile.rows // high, sms * ADDERS)
        launches.append(Launch(_add_parts, adders, ends | left | {"parts": parts, "HIGH": high}))
    return launches


def _stride(rows: torch.Tensor) -> int:
    """Numbers from the start of a row to that of the next."""
    return rows.stride(0) if rows.dim() == 2 else rows.shape[-1]


def _aligned(matrix: torch.Tensor) -> bool:
    """Whether its rows start as the engine that copies tiles wants, relative to the first, and do not overlap."""
    return _stride(matrix) * matrix.itemsize % ALIGNED == 0 and _stride(matrix) >= matrix.shape[-1]


def _described(matrix: torch.Tensor, rows: int, high: int, wide: int) -> torch.Tensor | TensorDescriptor:
    """The matrix for the engine that copies tiles, unless that cannot read it."""
    columns = matrix.shape[-1]
    if not columns or not _aligned(matrix) or matrix.data_ptr() % ALIGNED:
        return matrix
    return TensorDescriptor(matrix, [rows, columns], [_stride(matrix), 1], [high, wide])


def typical() -> Iterator[Typical]:
    """The products of LLaMA-3-8B, for many rows and for few, and what they are without the engine that copies tiles."""
    for n, k in ((4096, 4096), (14336, 4096), (4096, 14336)):
        yield _typical(linear, 2048, n, k)
        yield _typical(coresident, 2048, n, k)
    for m in (1, 32, 64, 128, 256):
        yield _typical(linear, m, 4096, 4096)
    yield _typical(linear, 64, 128256, 4096)
    yield _typical(coresident, 16, 4096, 4096)
    yield _typical(coresident, 64, 4096, 4096)
    yield _typical(linear, 2048, 4096, 4096, torch.float16)
    yield _typical(linear, 2048, 4096, 4095)
    yield _typical(linear, 2048, 4096, 4096, torch.float32)
    yield _typical(linear, 16, 4096, 4096, torch.float32)


def _typical(product: Kernel, m: int, n: int, k: int, dtype: torch.dtype = torch.bfloat16) -> Typical:
    x, weight, bias, residual = (meta(*shape, dtype=dtype) for shape in ((m, k), (n, k), (n,), (m, n)))
    name = "linear.triton" if product is linear else "linear.coresident"
    return Typical(name, f"{m} x {n} x {k} {str(dtype).removeprefix('torch.')}", product, (x, weight, bias, residual))
