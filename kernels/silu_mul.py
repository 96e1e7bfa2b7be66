"""silu_mul: the gated activation of a feed-forward layer; add, and gated_add."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from nanort.kernels.kernel import Typical, kernel, meta
from nanort.kernels.launch import Launch
from nanort.kernels.rows import row_stride

BLOCK_BYTES = 4096
"""Of each argument: two loads of 16 bytes a thread; of more, the compiler puts some off behind the first results."""
PER_SM = 16
"""Programs that an SM holds at once, all its threads: up to 128 KiB in flight, so that few SMs draw their share."""


@triton.jit
def _silu_mul(gate, up):
    wide = gate.to(tl.float32)
    activated = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)  # rounded, as torch's silu is
    return activated * up


@triton.jit
def _add(x, y):
    return x + y


@triton.jit
def _pairwise(x, y, out, rows, width, x_stride, y_stride, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    blocks = tl.cdiv(width, BLOCK)
    for piece in range(tl.program_id(0), rows * blocks, tl.num_programs(0)):
        row = tl.full((), 1, tl.int64) * (piece // blocks)
        first = tl.full((), BLOCK, tl.int64) * (piece % blocks)
        at = first + tl.arange(0, BLOCK)
        a = tl.load(x + row * x_stride + at, mask=at < width, other=0.0)
        b = tl.load(y + row * y_stride + at, mask=at < width, other=0.0)
        tl.store(out + row * width + at, FUNCTION(a, b), mask=at < width)


@triton.jit
def _gated_add(x, gate, y, out, rows, width, x_stride, gate_stride, y_stride, BLOCK: tl.constexpr):
    dtype: tl.constexpr = out.dtype.element_ty
    blocks = tl.cdiv(width, BLOCK)
    for piece in range(tl.program_id(0), rows * blocks, tl.num_programs(0)):
        row = tl.full((), 1, tl.int64) * (piece // blocks)
        at = piece % blocks * BLOCK + tl.arange(0, BLOCK)
        a = tl.load(x + row * x_stride + at, mask=at < width, other=0.0).to(tl.float32)
        b = tl.load(y + row * y_stride + at, mask=at < width, other=0.0).to(tl.float32)
        share = 1.0 / (1.0 + tl.exp(-tl.load(gate + row * gate_stride).to(tl.float32)))
        part = (share.to(dtype).to(tl.float32) * b).to(dtype)  # rounded where torch rounds
        tl.store(out + row * width + at, (a + part.to(tl.float32)).to(dtype), mask=at < width)


def _refuses(x: torch.Tensor, y: torch.Tensor) -> str:
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32) or y.dtype != x.dtype:
        return f"takes two of float16, of bfloat16 or of float32, not {x.dtype} and {y.dtype}"
    return "takes rows that are contiguous, each by itself" if None in (row_stride(x), row_stride(y)) else ""


def _plan(function: Any, x: torch.Tensor, y: torch.Tensor, out: torch.Tensor, sms: int) -> Sequence[Launch]:
    """``function`` of two tensors, block by block; contiguous ones are taken as one long row."""
    width = x.numel() if x.is_contiguous() and y.is_contiguous() else x.shape[-1]
    if not x.numel():
        return []
    block = BLOCK_BYTES // x.itemsize
    arguments = {
        "x": x,
        "y": y,
        "out": out,
        "rows": x.numel() // width,
        "width": width,
        "x_stride": row_stride(x),
        "y_stride": row_stride(y),
        "FUNCTION": function,
        "BLOCK": block,
    }
    pieces = x.numel() // width * triton.cdiv(width, block)
    return [Launch(_pairwise, min(pieces, sms * PER_SM), arguments)]


@kernel(result=lambda gate, up: gate.new_empty(gate.shape), refuses=_refuses)
def silu_mul(
    gate: torch.Tensor, up: torch.Tensor, *, out: torch.Tensor, scratch: torch.Tensor | None, sms: int
) -> Sequence[Launch]:
    """``gate * sigmoid(gate) * up`` of two tensors of one shape."""
    return _plan(_silu_mul, gate, up, out, sms)


@kernel(result=lambda x, y: x.new_empty(x.shape), refuses=_refuses)
def add(
    x: torch.Tensor, y: torch.Tensor, *, out: torch.Tensor, scratch: torch.Tensor | None, sms: int
) -> Sequence[Launch]:
    """``x + y`` of two tensors of one shape."""
    return _plan(_add, x, y, out, sms)


@kernel(
    result=lambda x, gate, y: x.new_empty(x.shape),
    refuses=lambda x, gate, y: _refuses(x, y) or _refuses(x, gate),
)
def gated_add(
    x: torch.Tensor,
    gate: torch.Tensor,
    y: torch.Tensor,
    *,
    out: torch.Tensor,
    scratch: torch.Tensor | None,
    sms: int,
) -> Sequence[Launch]:
    """``x + sigmoid(gate) * y``: x and y (rows, n), gate (rows, 1)."""
    if not x.numel():
        return []
    rows, width = x.shape
    block = BLOCK_BYTES // x.itemsize
    arguments = {
        "x": x, "gate": gate, "y": y, "out": out, "rows": rows, "width": width,
        "x_stride": row_stride(x), "gate_stride": row_stride(gate), "y_stride": row_stride(y), "BLOCK": block,
    }  # fmt: skip
    return [Launch(_gated_add, min(rows * triton.cdiv(width, block), sms * PER_SM), arguments)]


def typical() -> Iterator[Typical]:
    """A gated layer of LLaMA-3-8B, its two products apart and side by side in one, and residual streams."""
    x, both = meta(2048, 14336), meta(2048, 2 * 14336)
    yield Typical("silu_mul.triton", "2048 x 14336", silu_mul, (x, x))
    yield Typical("silu_mul.triton", "2048 x (2 x 14336)", silu_mul, both.chunk(2, dim=-1))
    yield Typical("add.triton", "2048 x 4096", add, (meta(2048, 4096), meta(2048, 4096)))
    yield Typical("gated_add.triton", "2048 x 2048", gated_add, (meta(2048, 2048), meta(2048, 1), meta(2048, 2048)))
