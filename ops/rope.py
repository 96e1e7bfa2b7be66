"""rope: rotary position embedding."""

from __future__ import annotations

import torch

import nanort as nr
from nanort.ops.examples import normal
from nanort.ops.shapes import is_index, require


@nr.op(
    demand=lambda x, positions, *, out, theta=10000.0: nr.Demand(
        flops=3 * x.numel(), hbm_bytes=x.nbytes + positions.nbytes + out.nbytes
    ),
    example=lambda **_: (normal(1, 7, 2, 6), torch.tensor([0, 5, 1, 1000, 2, 30, 3])),
)
def rope(x: torch.Tensor, positions: torch.Tensor, *, theta: float = 10000.0) -> torch.Tensor:
    """``x`` with every head rotated by its row's position: x (rows, heads, dim), positions (rows,) -> like x.

    Halves of a head are rotated against each other, by angles computed in float32, as Hugging Face's Llama does; files
    that pair neighbours instead (GGUF) hold query and key weights in another order.

    Demand: 3 flops an element (two products and a sum), not the angles; arguments read once, the result written once.
    """
    require(
        x.dim() == 3 and x.shape[2] % 2 == 0 and is_index(positions) and positions.shape == x.shape[:1],
        "x (rows, heads, dim) with an even dim and positions (rows,) of integers",
        x=x,
        positions=positions,
    )
    dim = x.shape[2]
    frequencies = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device=x.device) / dim))
    angles = positions[:, None, None].float() * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
