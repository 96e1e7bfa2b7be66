"""Attention over a cache that needs no page table: operators that never ask the host, so that a graph can hold them.

The references of nanort.ops read positions on the host, which no CUDA graph can. Here every request has as many cached
tokens, the prompt is one, and the layout says the rest. Requests stand in the order of their rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

import nanort as nr


def _first(kv: torch.Tensor, layout: nr.Layout) -> int:
    """The request of a piece's first decode row: cuts mix decode and prefill rows evenly."""
    return len(kv) * layout.start // max(1, layout.step_rows)


def _demand(pairs: int, tokens: int, q: torch.Tensor, kv: torch.Tensor) -> nr.Demand:
    """Four flops a pair of query and key, head and dimension; keys and values of ``tokens`` are read."""
    flops = 4 * pairs * q.shape[1] * q.shape[2]
    return nr.Demand(flops=flops, hbm_bytes=2 * q.nbytes + 2 * tokens * kv.shape[-3] * kv.shape[-1] * kv.itemsize)


@nr.op(
    demand=lambda q, kv, out, *, layout: _demand(layout.kv_tokens, layout.kv_tokens, q, kv),
    shape=lambda q, kv, *, layout: torch.empty_like(q),
    cells={"kv": lambda layout, **_: layout.decode_cells},
    axes="rows",
)
def decode_attention(q: torch.Tensor, kv: torch.Tensor, *, layout: nr.Layout) -> torch.Tensor:
    """Attention of every row to all tokens of its request.

    q (rows, heads, dim), kv (requests, 2, kv_heads, tokens, dim) -> (rows, heads, dim). The heads that share
    keys are the rows of one small product, so that keys and values are read once.
    """
    k, v = kv[_first(kv, layout) :][: len(q)].unbind(1)
    shared = q.view(len(q), k.shape[1], -1, q.shape[2])
    return F.scaled_dot_product_attention(shared, k, v).reshape(q.shape)


@nr.op(
    demand=lambda q, prompt, out, *, layout: _demand(layout.pairs, layout.prefill_kv_tokens, q, prompt),
    shape=lambda q, prompt, *, layout: torch.empty_like(q),
    cells={"prompt": lambda layout, **_: layout.prefill_cells},
    axes="rows",
)
def prefill_attention(q: torch.Tensor, prompt: torch.Tensor, *, layout: nr.Layout) -> torch.Tensor:
    """Causal attention of the rows of one prompt: q (rows, heads, dim), prompt (2, kv_heads, tokens, dim)."""
    (segment,) = layout.segments
    k, v = prompt[:, None, :, : segment.past + segment.rows]
    bias = causal_lower_right(len(q), segment.past + segment.rows)
    out = F.scaled_dot_product_attention(q.transpose(0, 1)[None], k, v, attn_mask=bias, enable_gqa=True)
    return out[0].transpose(0, 1)


@nr.op(
    demand=lambda kv, prompt, k, v, *, out, layout: nr.Demand(hbm_bytes=4 * k.nbytes),
    writes=("kv", "prompt"),
    cells={"kv": lambda layout, **_: layout.own_cells, "prompt": lambda layout, **_: layout.own_cells},
    axes="rows",
)
def kv_append(kv: torch.Tensor, prompt: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, layout: nr.Layout) -> None:
    """Writes keys and values (rows, kv_heads, dim): as their requests' last tokens, or in order."""
    first, rows = _first(kv, layout), layout.decode
    for at, new in enumerate((k, v)):
        kv[first : first + rows, at, :, -1] = new[:rows]
        for segment in layout.segments:
            prompt[at, :, segment.past : segment.past + segment.rows] = new[rows:].transpose(0, 1)
