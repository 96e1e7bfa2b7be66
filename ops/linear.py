"""linear: the matrix product of a dense layer."""

from __future__ import annotations

import math

import torch

import nanort as nr
from nanort.ops.examples import normal
from nanort.ops.products import product
from nanort.ops.shapes import require

LARGE, SMALL = (128, 128), (64, 32)
"""Rows and columns of the result that an SM computes at once, where there are many of both, and where there are few."""
MANY = 256
"""So many large tiles that every SM of the largest GPUs has one."""
DEPTH = 1024
"""Products of each of its numbers that are worth sharing a tile for: several SMs do, where too few tiles are left."""


def _tiles(m: int, n: int, k: int) -> int:
    large, small = (math.ceil(m / rows) * math.ceil(n / columns) for rows, columns in (LARGE, SMALL))
    return (large if large >= MANY else small) * max(1, k // DEPTH)


def _demand(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    *,
    out: torch.Tensor,
) -> nr.Demand:
    added = [tensor for tensor in (bias, residual) if tensor is not None]
    return nr.Demand(
        flops=2 * x.numel() * weight.shape[0] + len(added) * out.numel(),
        hbm_bytes=sum(tensor.nbytes for tensor in (x, weight, out, *added)),
        tiles=_tiles(x.shape[:-1].numel(), *weight.shape),
    )


@nr.op(
    demand=_demand,
    example=lambda: (normal(1, 7, 5), normal(2, 3, 5), normal(3, 3), normal(4, 7, 3)),
    kernels={
        "cublas": "nanort.kernels.library:linear",
        "triton": "nanort.kernels.linear:linear",
        "coresident": "nanort.kernels.linear:coresident",
    },
)
def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, residual: torch.Tensor | None = None
) -> torch.Tensor:
    """``x @ weight.T + bias + residual``: x (..., k), weight (n, k), bias (n,) and residual (..., n) -> (..., n).

    Demand: a multiply-add as 2 flops, an addition for the bias and for the residual; arguments read once, the result
    written once; tiles of 128 x 128 where there are enough of them, otherwise of 64 x 32, by 1024 products of each.
    """
    require(
        weight.dim() == 2
        and x.shape[-1:] == weight.shape[1:]
        and x.dtype == weight.dtype
        and (bias is None or (bias.shape == weight.shape[:1] and bias.dtype == x.dtype))
        and (residual is None or (residual.shape == (*x.shape[:-1], len(weight)) and residual.dtype == x.dtype)),
        "x (..., k), weight (n, k), bias (n,) and residual (..., n) of one dtype",
        x=x,
        weight=weight,
        bias=bias,
        residual=residual,
    )
    made = product(x, weight, bias)
    return made if residual is None else made + residual
