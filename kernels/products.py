"""products: rows times rows of a matrix, the step that routing and the experts' matrix products share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True, slots=True)
class Tile:
    """What a program of a matrix product computes at once: ``rows`` by ``columns``, the sum in steps of ``depth``."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    per_sm: int


@triton.jit
def product(
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
def write_columns(total, rows, first, m, stored):
    """Writes columns from ``first`` on to these rows, some columns after the others: addresses take few registers."""
    ROWS: tl.constexpr = total.shape[0]
    COLUMNS: tl.constexpr = total.shape[1]
    if COLUMNS > 32:
        left, right = total.reshape(ROWS, 2, COLUMNS // 2).permute(0, 2, 1).split()
        write_columns(left, rows, first, m, stored)
        write_columns(right, rows, first + COLUMNS // 2, m, stored)
    else:
        column = (first + tl.arange(0, COLUMNS))[None, :]
        tl.store(rows + column, total.to(rows.dtype.element_ty), mask=stored & (column < m))


def unfit(x: torch.Tensor, weight: torch.Tensor) -> str:
    """Why the kernels that multiply so do not take these, or nothing."""
    if x.dtype not in DTYPES:
        return f"takes float16, bfloat16 and float32, not {x.dtype}"
    if not weight.is_contiguous():
        return "takes contiguous weights"
    return "" if x.stride(1) == 1 or x.shape[1] == 1 else "takes rows of x that are contiguous"


def copied(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether tiles of weight are for the engine that copies tiles: 16-bit numbers whose rows start as it wants."""
    starts = (start for rows in (x, weight) for start in (rows.data_ptr(), rows.storage_offset() * rows.itemsize))
    strides = (rows.stride(-2) * rows.itemsize for rows in (x, weight))
    return x.itemsize == 2 and x.shape[1] > 0 and not any(size % 16 for size in (*starts, *strides))


def described(x: torch.Tensor, weight: torch.Tensor, tile: Tile) -> torch.Tensor | TensorDescriptor:
    """The rows of weight, for that engine if it takes them."""
    return TensorDescriptor.from_tensor(weight, [tile.columns, tile.depth]) if copied(x, weight) else weight
