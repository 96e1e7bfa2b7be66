"""add, gated_add, and silu_mul: the gated activation of a Llama feed-forward layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import nanort as nr
from nanort.ops import tiles
from nanort.ops.examples import normal
from nanort.ops.shapes import require


@nr.op(
    demand=lambda x, y, *, out: nr.Demand(
        flops=out.numel(), hbm_bytes=x.nbytes + y.nbytes + out.nbytes, tiles=tiles.of_elements(out)
    ),
    example=lambda: (normal(3, 7, 5), normal(4, 7, 5)),
    kernels={"triton": "nanort.kernels.silu_mul:add", "torch": "nanort.kernels.library:add"},
)
def add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """``x + y``, element by element, for two tensors of one shape: a residual connection.

    Demand: 1 flop an element; both read once, the result written once; tiles are blocks of 4 KiB.
    """
    require(x.shape == y.shape, "x and y of one shape", x=x, y=y)
    return x + y


@nr.op(
    demand=lambda gate, up, *, out: nr.Demand(
        flops=5 * out.numel(), hbm_bytes=gate.nbytes + up.nbytes + out.nbytes, tiles=tiles.of_elements(out)
    ),
    example=lambda: (normal(1, 7, 5), normal(2, 7, 5)),
    kernels={"triton": "nanort.kernels.silu_mul:silu_mul"},
)
def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """``gate * sigmoid(gate) * up``, element by element, for two tensors of one shape.

    Demand: 5 flops an element (negate, exponentiate, add, divide, multiply); both read once, the result written once;
    tiles are blocks of 4 KiB.
    """
    require(gate.shape == up.shape, "gate and up of one shape", gate=gate, up=up)
    return F.silu(gate) * up


@nr.op(
    demand=lambda x, gate, y, *, out: nr.Demand(
        flops=2 * out.numel() + 4 * gate.numel(),
        hbm_bytes=x.nbytes + gate.nbytes + y.nbytes + out.nbytes,
        tiles=len(out) * tiles.of_elements(out[:1]),
    ),
    example=lambda: (normal(1, 7, 5), normal(2, 7, 1), normal(3, 7, 5)),
    kernels={"triton": "nanort.kernels.silu_mul:gated_add"},
)
def gated_add(x: torch.Tensor, gate: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """``x + sigmoid(gate) * y``: experts that all rows share, added to those chosen; x and y (rows, n), gate (rows, 1).

    Demand: 2 flops an element, and 4 a row (negate, exponentiate, add, divide); all read once, the result written once;
    tiles are blocks of 4 KiB of a row.
    """
    require(
        x.dim() == 2 and x.shape == y.shape and gate.shape == (len(x), 1),
        "x and y (rows, n), and gate (rows, 1)",
        x=x,
        gate=gate,
        y=y,
    )
    return x + gate.sigmoid() * y
