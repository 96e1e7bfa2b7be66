"""rope, rope_kv_append: rotary position embedding, alone and on the way into a paged KV cache."""

from __future__ import annotations

import torch

import nanort as nr
from nanort.ops import tiles
from nanort.ops.examples import normal, shuffled
from nanort.ops.kv import kv_append
from nanort.ops.shapes import is_index, require


def _positions() -> torch.Tensor:
    return torch.tensor([0, 5, 1, 1000, 2, 30, 3])


def _frequencies() -> torch.Tensor:
    return torch.tensor([1.0, 0.05, 0.0002])


def _bytes(*tensors: torch.Tensor | None) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


@nr.op(
    demand=lambda x, positions, frequencies=None, *, out, theta=10000.0, scale=1.0: nr.Demand(
        flops=3 * x.numel(), hbm_bytes=_bytes(x, positions, frequencies, out), tiles=tiles.of_heads(x)
    ),
    example=lambda **_: (normal(1, 7, 2, 6), _positions(), _frequencies()),
    kernels={"triton": "nanort.kernels.rope_kv_append:rope"},
)
def rope(
    x: torch.Tensor,
    positions: torch.Tensor,
    frequencies: torch.Tensor | None = None,
    *,
    theta: float = 10000.0,
    scale: float = 1.0,
) -> torch.Tensor:
    """``x`` with every head rotated by its row's position: x (rows, heads, dim), positions (rows,) -> like x.

    Halves of a head are rotated against each other, by angles computed in float32, as Hugging Face's Llama does; files
    that pair neighbours instead (GGUF) hold query and key weights in another order. A position turns pair i by
    ``frequencies[i]``, float32 (dim / 2,), or else by ``theta ** (-2 i / dim)``; ``scale`` stretches what was rotated.

    Demand: 3 flops an element (two products and a sum), not the angles; arguments read once, the result written once;
    a tile is a group of heads of a row, of 2 KiB.
    """
    require(
        x.dim() == 3
        and x.shape[2] % 2 == 0
        and is_index(positions)
        and positions.shape == x.shape[:1]
        and (frequencies is None or (frequencies.is_floating_point() and frequencies.shape == (x.shape[2] // 2,))),
        "x (rows, heads, dim) with an even dim, positions (rows,) of integers and, if any, frequencies (dim / 2,)",
        x=x,
        positions=positions,
        frequencies=frequencies,
    )
    dim = x.shape[2]
    if frequencies is None:
        frequencies = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device=x.device) / dim))
    angles = positions[:, None, None].float() * frequencies
    cos, sin = (angles.cos() * scale).to(x.dtype), (angles.sin() * scale).to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


@nr.op(
    demand=lambda kv, q, k, v, positions, slots, frequencies=None, *, out, **_: nr.Demand(
        flops=3 * (q.numel() + k.numel()),
        hbm_bytes=2 * _bytes(q, k, v) + _bytes(positions, slots, frequencies),
        tiles=tiles.of_heads(q, k, v),
    ),
    example=lambda **_: (
        normal(1, 5, 2, 4, 3, 6), normal(2, 7, 6, 6), normal(3, 7, 3, 6), normal(4, 7, 3, 6), _positions(),
        shuffled(5, 20)[:7], _frequencies(),
    ),
    writes=("kv",),
    cells={"kv": lambda layout, **_: layout.own_cells},
    axes="rows",
    kernels={"triton": "nanort.kernels.rope_kv_append:rope_kv_append"},
)  # fmt: skip
def rope_kv_append(
    kv: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    frequencies: torch.Tensor | None = None,
    *,
    theta: float = 10000.0,
    scale: float = 1.0,
    layout: nr.Layout | None = None,
) -> torch.Tensor:
    """``rope(q)``, after ``kv_append(kv, rope(k), v, slots)``: one pass over what a row adds to its request.

    kv (pages, 2, page_size, kv_heads, dim), q (rows, heads, dim), k and v (rows, kv_heads, dim), positions and slots
    (rows,) -> (rows, heads, dim); ``frequencies``, ``theta`` and ``scale`` as for :func:`rope`.

    Demand: 3 flops an element of q and k; arguments are read once, but for the cache; the result, keys and values are
    written once; a tile is a group of heads of a row, of 2 KiB.
    """
    require(
        q.dim() == 3 and q.shape[::2] == k.shape[::2] and q.dtype == k.dtype,
        "q (rows, heads, dim) and k (rows, kv_heads, dim) of one dtype",
        q=q,
        k=k,
    )
    rotated = rope(k, positions, frequencies, theta=theta, scale=scale)
    kv_append(kv, rotated, v, slots, layout=layout)
    result: torch.Tensor = rope(q, positions, frequencies, theta=theta, scale=scale)
    return result
