"""kv_append, page_gather, page_scatter: what is written to a paged KV cache, and whole pages moved in and out of it.

A cache is (pages, 2, page_size, kv_heads, dim): keys at 0 and values at 1 of its second dimension.
"""

from __future__ import annotations

import torch

import nanort as nr
from nanort.layout import Cells
from nanort.ops import tiles
from nanort.ops.examples import normal, shuffled
from nanort.ops.shapes import is_index, require


@nr.op(
    demand=lambda kv, k, v, slots, *, out, layout=None: nr.Demand(
        hbm_bytes=2 * (k.nbytes + v.nbytes) + slots.nbytes, tiles=tiles.of_heads(k, v)
    ),
    example=lambda **_: (normal(1, 5, 2, 4, 3, 6), normal(2, 7, 3, 6), normal(3, 7, 3, 6), shuffled(4, 20)[:7]),
    writes=("kv",),
    cells={"kv": lambda layout, **_: layout.own_cells},
    axes="rows",
    kernels={"triton": "nanort.kernels.rope_kv_append:kv_append"},
)
def kv_append(
    kv: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor, *, layout: nr.Layout | None = None
) -> None:
    """Writes every row's key and value to its slot of the cache, in place: k and v (rows, kv_heads, dim).

    ``slots`` (rows,) holds page * page_size + offset, distinct but for rows that are padding.

    Demand: keys, values and slots are read; keys and values are written; a tile is a group of heads of a row, of 2 KiB.
    """
    require(
        kv.dim() == 5
        and kv.shape[1] == 2
        and is_index(slots)
        and k.shape == v.shape == (*slots.shape, *kv.shape[3:])
        and k.dtype == v.dtype == kv.dtype,
        "kv (pages, 2, page_size, kv_heads, dim), k, v (rows, kv_heads, dim) of one dtype, slots (rows,) of integers",
        kv=kv,
        k=k,
        v=v,
        slots=slots,
    )
    # Rows of (page, K or V, offset); unlike kv[page, 0, offset] = k this refuses slot -1, which is on the last page.
    rows, size = kv.view(-1, *kv.shape[3:]), kv.shape[2]
    keys = (slots // size * (2 * size) + slots % size).long()
    rows.index_copy_(0, keys, k)
    rows.index_copy_(0, keys + size, v)


def _page_cells(layout: nr.Layout, needed: bool = False) -> Cells:
    return layout.history if needed else layout.elsewhere


@nr.op(
    demand=lambda kv, pages, *, out, needed=False, layout=None: nr.Demand(
        hbm_bytes=pages.nbytes + 2 * out.nbytes, tiles=tiles.of_rows(out)
    ),
    example=lambda **_: (normal(1, 5, 2, 4, 3, 6), torch.tensor([4, 0, 2])),
    cells={"kv": _page_cells},
    axes="whole",
    kernels={"triton": "nanort.kernels.pages:page_gather", "torch": "nanort.kernels.library:page_gather"},
)
def page_gather(
    kv: torch.Tensor, pages: torch.Tensor, *, needed: bool = False, layout: nr.Layout | None = None
) -> torch.Tensor:
    """Pages of the cache side by side, so that one copy moves them: pages (n,) of integers -> (n, 2, page_size, ...).

    ``needed`` says that requests of this step own the pages; otherwise none does, and no attention waits.

    Demand: the page numbers and pages are read, the result is written; a tile is 16 KiB of a page.
    """
    require(is_index(pages) and kv.dim() > 0, "kv (pages, ...) and pages (n,) of integers", kv=kv, pages=pages)
    return kv.index_select(0, pages)


@nr.op(
    demand=lambda kv, pages, staging, *, out, needed=False, layout=None: nr.Demand(
        hbm_bytes=pages.nbytes + 2 * staging.nbytes, tiles=tiles.of_rows(staging)
    ),
    example=lambda **_: (normal(1, 5, 2, 4, 3, 6), torch.tensor([4, 0, 2]), normal(2, 3, 2, 4, 3, 6)),
    writes=("kv",),
    cells={"kv": _page_cells},
    axes="whole",
    kernels={"triton": "nanort.kernels.pages:page_scatter"},
)
def page_scatter(
    kv: torch.Tensor,
    pages: torch.Tensor,
    staging: torch.Tensor,
    *,
    needed: bool = False,
    layout: nr.Layout | None = None,
) -> None:
    """Writes ``staging``, as :func:`page_gather` returns it, to distinct pages of the cache, in place.

    ``needed`` says that requests of this step own the pages, so that their attention waits.

    Demand: page numbers and staging are read, the pages are written; a tile is 16 KiB of a page.
    """
    require(
        is_index(pages) and staging.shape == (*pages.shape, *kv.shape[1:]) and staging.dtype == kv.dtype,
        "kv (pages, ...), pages (n,) of integers and staging (n, ...) of kv's dtype",
        kv=kv,
        pages=pages,
        staging=staging,
    )
    kv.index_copy_(0, pages.long(), staging)
