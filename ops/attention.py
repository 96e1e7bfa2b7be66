"""decode_attention, prefill_attention: grouped-query attention over a paged KV cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import nanort as nr
from nanort.errors import LayoutError
from nanort.ops.examples import normal, shuffled
from nanort.ops.shapes import is_index, require

DECODE_TILE = 64
"""Tokens of one head of the cache that are worth a part of the GPU of their own."""
PREFILL_TILE = 64
"""Rows, times the query heads that share a head of the cache, that are worth an SM of their own."""
TOGETHER = 16
"""Rows of decode attention that the reference takes at once."""


def _checked(
    q: torch.Tensor,
    kv: torch.Tensor,
    pages: torch.Tensor,
    positions: torch.Tensor,
    requests: torch.Tensor | None = None,
    *,
    layout: nr.Layout | None = None,
) -> torch.Tensor:
    """An empty result, after a look at the shapes: the shape rule of both operators."""
    index = positions if requests is None else requests
    require(
        q.dim() == 3
        and kv.dim() == 5
        and kv.shape[1] == 2
        and q.shape[2] == kv.shape[4]
        and kv.shape[3] > 0
        and q.shape[1] % kv.shape[3] == 0
        and q.dtype == kv.dtype
        and pages.dim() == 2
        and not pages.is_floating_point()
        and (requests is not None or pages.shape[:1] == q.shape[:1])
        and is_index(positions)
        and is_index(index)
        and positions.shape == index.shape == q.shape[:1],
        "q (rows, heads, dim) and kv (pages, 2, page_size, kv_heads, dim) of one dtype, heads a multiple of kv_heads, "
        "pages (rows, width), or (requests, width) with requests (rows,), and positions (rows,), each of integers",
        q=q,
        kv=kv,
        pages=pages,
        positions=positions,
        requests=requests,
    )
    return q.new_empty(q.shape)


def _attend(q: torch.Tensor, kv: torch.Tensor, pages: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Attention of q (batch, rows, heads, dim) to the tokens of pages (batch, width) up to positions (batch, rows)."""
    page_size = kv.shape[2]
    tokens = torch.arange(int(positions.max()) + 1, device=q.device)
    slots = pages[:, tokens // page_size].long() * (2 * page_size) + tokens % page_size
    # Beyond a request's end stand other requests' numbers, perhaps NaN: read its first token there, and mask it.
    slots = torch.where(tokens <= positions.amax(dim=1, keepdim=True), slots, slots[:, :1])
    flat = kv.flatten(0, 2)
    k, v = (
        flat.index_select(0, found.flatten()).view(*slots.shape, *flat.shape[1:]).transpose(1, 2)
        for found in (slots, slots + page_size)
    )
    # Query heads that share a head of the cache are rows of it, so that keys and values are not repeated for each.
    batch, rows, heads, dim = q.shape
    group = heads // kv.shape[3]
    shared = q.view(batch, rows, -1, group, dim).transpose(1, 2).reshape(batch, -1, rows * group, dim)
    seen = (tokens <= positions[:, :, None]).repeat_interleave(group, dim=1)[:, None]
    out = F.scaled_dot_product_attention(shared, k, v, attn_mask=seen)
    return out.view(batch, -1, rows, group, dim).transpose(1, 2).reshape(q.shape)


def _demand(
    q: torch.Tensor,
    kv: torch.Tensor,
    pages: torch.Tensor,
    *indices: torch.Tensor | None,
    out: torch.Tensor,
    pairs: int,
    kv_tokens: int,
    tiles: int,
) -> nr.Demand:
    kv_bytes = kv_tokens * 2 * kv.shape[3] * kv.shape[4] * kv.itemsize
    table_bytes = -(-kv_tokens // kv.shape[2]) * pages.itemsize  # as if pages were full
    index_bytes = sum(index.nbytes for index in indices if index is not None)
    return nr.Demand(
        flops=4 * pairs * q.shape[1] * q.shape[2],
        hbm_bytes=q.nbytes + out.nbytes + kv_bytes + table_bytes + index_bytes,
        tiles=tiles,
    )


def _expect(q: torch.Tensor, layout: nr.Layout | None, kind: str) -> nr.Layout:
    if layout is None:
        raise LayoutError("its demand depends on lengths: make the graph with layout=nr.Layout(...)")
    rows = layout.decode if kind == "decode" else layout.prefill_rows
    if q.shape[0] != rows:
        raise LayoutError(f"q has {q.shape[0]} rows, {layout!r} has {rows} {kind} rows: use g.split")
    return layout


def _decode_demand(
    q: torch.Tensor,
    kv: torch.Tensor,
    pages: torch.Tensor,
    *indices: torch.Tensor | None,
    out: torch.Tensor,
    layout: nr.Layout | None = None,
) -> nr.Demand:
    layout = _expect(q, layout, "decode")
    tiles = kv.shape[3] * max(layout.decode, -(-layout.kv_tokens // DECODE_TILE))
    tokens = layout.kv_tokens
    return _demand(q, kv, pages, *indices, out=out, pairs=tokens, kv_tokens=tokens, tiles=tiles)


def _prefill_demand(
    q: torch.Tensor, kv: torch.Tensor, *indices: torch.Tensor, out: torch.Tensor, layout: nr.Layout | None = None
) -> nr.Demand:
    layout = _expect(q, layout, "prefill")
    tiles = kv.shape[3] * -(-layout.prefill_rows * (q.shape[1] // kv.shape[3]) // PREFILL_TILE)
    return _demand(q, kv, *indices, out=out, pairs=layout.pairs, kv_tokens=layout.prefill_kv_tokens, tiles=tiles)


def _decode_example(**_: object) -> tuple[torch.Tensor, ...]:
    """Seven rows of 4 heads, 2 of them in the cache, in pages of 4 tokens."""
    return normal(1, 7, 4, 6), normal(2, 21, 2, 4, 2, 6), _page_table(7), torch.tensor([0, 11, 3, 4, 7, 9, 1])


def _prefill_example(**_: object) -> tuple[torch.Tensor, ...]:
    """Four rows of one request after 5 cached tokens, three of another from its start."""
    positions, requests = torch.tensor([5, 6, 7, 8, 0, 1, 2]), torch.tensor([0, 0, 0, 0, 1, 1, 1])
    return normal(1, 7, 4, 6), normal(2, 21, 2, 4, 2, 6), _page_table(2), positions, requests


def _page_table(requests: int) -> torch.Tensor:
    return shuffled(3, 3 * requests).reshape(requests, 3).int()


@nr.op(
    demand=_decode_demand,
    example=_decode_example,
    shape=_checked,
    cells={"kv": lambda layout, **_: layout.decode_cells},
    axes="rows",
    kernels={
        "triton": "nanort.kernels.decode_attention:decode_attention",
        "coresident": "nanort.kernels.decode_attention:coresident",
    },
)
def decode_attention(
    q: torch.Tensor,
    kv: torch.Tensor,
    pages: torch.Tensor,
    positions: torch.Tensor,
    requests: torch.Tensor | None = None,
    *,
    layout: nr.Layout | None = None,
) -> torch.Tensor:
    """Attention of every row to tokens 0 to ``positions`` of its request, made for one row a request.

    q (rows, heads, dim), kv (pages, 2, page_size, kv_heads, dim), positions (rows,) -> (rows, heads, dim). ``pages``
    (rows, width) names the pages of every row's tokens, or, with requests (rows,), pages (requests, width) those of
    every request.

    Demand: 4 flops (two multiply-adds) for each of the layout's ``kv_tokens``, head and dimension; q, the keys and
    values of those tokens, and the indices that lead to them, are read, the result is written. A tile is 64 of those
    tokens, of one head of the cache.
    """
    out = _checked(q, kv, pages, positions, requests)
    table = pages if requests is None else pages[requests]
    order = positions.argsort(stable=True)  # so that rows of like lengths are taken together, and little is filled up
    for first in range(0, len(q), TOGETHER):
        rows = order[first : first + TOGETHER]
        out[rows] = _attend(q[rows, None], kv, table[rows], positions[rows, None])[:, 0]
    return out


@nr.op(
    demand=_prefill_demand,
    example=_prefill_example,
    shape=_checked,
    cells={"kv": lambda layout, **_: layout.prefill_cells},
    kernels={"triton": "nanort.kernels.prefill_attention:prefill_attention"},
    axes="rows",
)
def prefill_attention(
    q: torch.Tensor,
    kv: torch.Tensor,
    pages: torch.Tensor,
    positions: torch.Tensor,
    requests: torch.Tensor,
    *,
    layout: nr.Layout | None = None,
) -> torch.Tensor:
    """Attention of every row to tokens 0 to ``positions`` of its request, made for many rows a request.

    q (rows, heads, dim), kv (pages, 2, page_size, kv_heads, dim), pages (requests, width), positions and requests
    (rows,) -> (rows, heads, dim). Positions and requests alone say what a row sees; the layout says what that costs.

    Demand: 4 flops (two multiply-adds) for each of the layout's causal ``pairs``, head and dimension; q, the keys and
    values of ``prefill_kv_tokens``, and the indices that lead to them, are read, the result is written. A tile is 64
    query heads, of rows side by side, that share a head of the cache.
    """
    out = _checked(q, kv, pages, positions, requests)
    for request in sorted(set(requests.tolist())):
        rows = (requests == request).nonzero().squeeze(1)
        out[rows] = _attend(q[rows][None], kv, pages[request][None], positions[rows][None])[0]
    return out
