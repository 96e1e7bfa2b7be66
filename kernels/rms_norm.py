"""rms_norm, add_rms_norm: root-mean-square normalisation, alone and after adding to the residual stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from nanort.kernels.kernel import Typical, kernel, meta
from nanort.kernels.launch import Launch
from nanort.kernels.rows import row_stride

WIDEST = 16384
"""Wider rows are read twice, block by block, instead of being held in registers."""
LEAST = 2048
"""Elements that a program takes at a time; so narrower rows are taken several at a time."""
WARP_BYTES = 2048
"""Of a row, for each warp: 64 bytes a thread, in loads of 16 that are under way at once."""
WARPS_PER_SM = 28
REGISTERS = 72
"""Of each thread, so that as many warps do fit on an SM."""


@triton.jit
def _rms_norm(
    x, residual, weight, out, total, rows, x_stride, residual_stride, eps,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Several rows at a time, each held whole; ``residual`` and ``total`` are None, or are added and set."""
    column = tl.arange(0, BLOCK)
    scale = tl.load(weight + column, mask=column < WIDTH, other=0.0)
    for piece in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = piece * ROWS + tl.arange(0, ROWS)[:, None]
        mask = (row < rows) & (column < WIDTH)[None, :]
        row = row.to(tl.int64)
        value = tl.load(x + row * x_stride + column[None, :], mask=mask, other=0.0)
        if residual is not None:
            value = tl.load(residual + row * residual_stride + column[None, :], mask=mask, other=0.0) + value
            tl.store(total + row * WIDTH + column[None, :], value, mask=mask)
        wide = value.to(tl.float32)
        root = tl.rsqrt(tl.sum(wide * wide, 1) / WIDTH + eps)
        tl.store(
            out + row * WIDTH + column[None, :], scale[None, :] * (wide * root[:, None]).to(value.dtype), mask=mask
        )


@triton.jit
def _rms_norm_wide(
    x, residual, weight, out, total, rows, x_stride, residual_stride, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row at a time, in two passes over its blocks, of which the second finds them in the cache."""
    for piece in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.full((), 1, tl.int64) * piece
        squares = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, WIDTH, BLOCK):
            column = first + tl.arange(0, BLOCK)
            mask = column < WIDTH
            value = tl.load(x + row * x_stride + column, mask=mask, other=0.0)
            if residual is not None:
                value = tl.load(residual + row * residual_stride + column, mask=mask, other=0.0) + value
            wide = value.to(tl.float32)
            squares += wide * wide
        root = tl.rsqrt(tl.sum(squares) / WIDTH + eps)
        for first in range(0, WIDTH, BLOCK):
            column = first + tl.arange(0, BLOCK)
            mask = column < WIDTH
            value = tl.load(x + row * x_stride + column, mask=mask, other=0.0)
            if residual is not None:
                value = tl.load(residual + row * residual_stride + column, mask=mask, other=0.0) + value
                tl.store(total + row * WIDTH + column, value, mask=mask)
            scale = tl.load(weight + column, mask=mask, other=0.0)
            tl.store(out + row * WIDTH + column, scale * (value.to(tl.float32) * root).to(value.dtype), mask=mask)


def _refuses(*tensors: torch.Tensor, eps: float = 1e-5) -> str:
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) > 1 or not dtypes <= {torch.float16, torch.bfloat16, torch.float32}:
        return f"takes all of float16, of bfloat16 or of float32, not {', '.join(sorted(map(str, dtypes)))}"
    return "takes rows that are contiguous, each by itself" if None in map(row_stride, tensors) else ""


def _plan(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, outs: Sequence[Any], eps: float, sms: int
) -> Sequence[Launch]:
    if not x.numel():
        return []
    width = x.shape[-1]
    rows = x.numel() // width
    block = min(triton.next_power_of_2(width), WIDEST)
    several = max(1, LEAST // block)
    arguments = {
        "x": x,
        "residual": residual,
        "weight": weight,
        "out": outs[0],
        "total": outs[1],
        "rows": rows,
        "x_stride": row_stride(x),
        "residual_stride": 0 if residual is None else row_stride(residual),
        "eps": eps,
        "WIDTH": width,
        "BLOCK": block,
    }
    warps = min(max(several * block * x.itemsize // WARP_BYTES, 1), 16)
    programs = min(triton.cdiv(rows, several), sms * (WARPS_PER_SM // warps))
    if width > WIDEST:
        return [Launch(_rms_norm_wide, programs, {**arguments, "BLOCK": block // 4}, warps, registers=REGISTERS)]
    return [Launch(_rms_norm, programs, {**arguments, "ROWS": several}, warps, registers=REGISTERS)]


@kernel(result=lambda x, weight, eps=1e-5: x.new_empty(x.shape), refuses=_refuses)
def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    eps: float = 1e-5,
    out: torch.Tensor,
    scratch: torch.Tensor | None,
    sms: int,
) -> Sequence[Launch]:
    """``x`` over the root of its mean square, times ``weight``: x (..., n), weight (n,)."""
    return _plan(x, None, weight, (out, None), eps, sms)


@kernel(result=lambda x, residual, weight, eps=1e-5: (x.new_empty(x.shape), x.new_empty(x.shape)), refuses=_refuses)
def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    *,
    eps: float = 1e-5,
    out: tuple[torch.Tensor, torch.Tensor],
    scratch: torch.Tensor | None,
    sms: int,
) -> Sequence[Launch]:
    """``rms_norm(residual + x)`` and the sum itself."""
    return _plan(x, residual, weight, out, eps, sms)


def typical() -> Iterator[Typical]:
    """Rows of LLaMA-3-8B and 70B, of a small model, and of single heads; and rows wider than any model's."""
    for rows, width, dtype in (
        (2048, 4096, torch.bfloat16),
        (2048, 8192, torch.bfloat16),
        (2048, 16384, torch.bfloat16),
        (2048, 20000, torch.bfloat16),
        (2048, 576, torch.bfloat16),
        (65536, 128, torch.bfloat16),
        (2048, 4096, torch.float32),
    ):
        x, weight, sizes = meta(rows, width, dtype=dtype), meta(width, dtype=dtype), f"{rows} x {width} {dtype}"
        yield Typical("rms_norm.triton", sizes.replace("torch.", ""), rms_norm, (x, weight))
        yield Typical("add_rms_norm.triton", sizes.replace("torch.", ""), add_rms_norm, (x, x, weight))
