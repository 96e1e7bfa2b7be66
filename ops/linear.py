"""linear: the matrix product of a dense layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import nanort as nr
from nanort.ops.examples import normal
from nanort.ops.shapes import require


def _demand(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, out: torch.Tensor) -> nr.Demand:
    return nr.Demand(
        flops=2 * x.numel() * weight.shape[0] + (0 if bias is None else out.numel()),
        hbm_bytes=x.nbytes + weight.nbytes + (0 if bias is None else bias.nbytes) + out.nbytes,
    )


@nr.op(demand=_demand, example=lambda: (normal(1, 7, 5), normal(2, 3, 5), normal(3, 3)))
def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight.T + bias``: x (..., k), weight (n, k), bias (n,) -> (..., n), all of one dtype.

    Demand: a multiply-add as 2 flops, an addition for the bias; arguments read once, the result written once.
    """
    require(
        weight.dim() == 2
        and x.shape[-1:] == weight.shape[1:]
        and x.dtype == weight.dtype
        and (bias is None or (bias.shape == weight.shape[:1] and bias.dtype == x.dtype)),
        "x (..., k), weight (n, k) and bias (n,) of one dtype",
        x=x,
        weight=weight,
        bias=bias,
    )
    return F.linear(x, weight, bias)
