"""rms_norm, add_rms_norm: root-mean-square normalisation, alone and after adding to the residual stream."""

from __future__ import annotations

import torch

import nanort as nr
from nanort.ops import tiles
from nanort.ops.examples import normal
from nanort.ops.shapes import require


def _normalised(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """In float32 or wider and rounded before the weight, in the order of Hugging Face's Llama."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


@nr.op(
    demand=lambda x, weight, *, out, eps=1e-5: nr.Demand(
        flops=4 * x.numel(), hbm_bytes=x.nbytes + weight.nbytes + out.nbytes, tiles=tiles.of_norm(x)
    ),
    example=lambda **_: (normal(1, 7, 5), normal(2, 5)),
    axes="rows",  # whatever of a row is normalised by itself, such as its heads
    kernels={"triton": "nanort.kernels.rms_norm:rms_norm"},
)
def rms_norm(x: torch.Tensor, weight: torch.Tensor, *, eps: float = 1e-5) -> torch.Tensor:
    """``x`` over the root of its mean square, times ``weight``: x (..., n), weight (n,) -> (..., n).

    Demand: 4 flops an element (square, add, two products); x and weight read once, the result written once;
    a tile is a row, or a few narrow ones.
    """
    require(x.shape[-1:] == weight.shape, "x (..., n) and weight (n,)", x=x, weight=weight)
    return _normalised(x, weight, eps)


@nr.op(
    demand=lambda x, residual, weight, *, out, eps=1e-5: nr.Demand(
        flops=5 * x.numel(),
        hbm_bytes=x.nbytes + residual.nbytes + weight.nbytes + out[0].nbytes + out[1].nbytes,
        tiles=tiles.of_norm(x),
    ),
    example=lambda **_: (normal(1, 7, 5), normal(2, 7, 5), normal(3, 5)),
    kernels={"triton": "nanort.kernels.rms_norm:add_rms_norm"},
)
def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, *, eps: float = 1e-5
) -> tuple[torch.Tensor, torch.Tensor]:
    """``rms_norm(residual + x)`` and the sum itself: x and residual (..., n), weight (n,) -> two of (..., n).

    Demand: 5 flops an element (rms_norm's and the addition); arguments read once, both results written once;
    a tile is a row, or a few narrow ones.
    """
    require(
        x.shape == residual.shape and x.shape[-1:] == weight.shape,
        "x and residual (..., n) and weight (n,)",
        x=x,
        residual=residual,
        weight=weight,
    )
    residual = residual + x
    return _normalised(residual, weight, eps), residual
