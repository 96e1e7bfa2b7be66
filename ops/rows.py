"""gather, scatter, store: rows of a tensor by their index, such as the last token of every request, or all of them."""

from __future__ import annotations

import torch

import nanort as nr
from nanort.ops import tiles
from nanort.ops.examples import normal
from nanort.ops.shapes import is_index, require


@nr.op(
    demand=lambda x, index, *, out: nr.Demand(hbm_bytes=index.nbytes + 2 * out.nbytes, tiles=tiles.of_rows(out)),
    example=lambda: (normal(1, 7, 5), torch.tensor([6, 0, 3])),
    kernels={"triton": "nanort.kernels.rows:gather", "torch": "nanort.kernels.library:gather"},
    axes="whole",  # an index counts the rows of the joined batch
)
def gather(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """``x[index]``: x (rows, ...), index (n,) of integers -> (n, ...).

    Demand: the index and the rows it names are read, the result is written; a tile is 16 KiB of a row, or a few narrow
    ones.
    """
    require(is_index(index) and x.dim() > 0, "x (rows, ...) and index (n,) of integers", x=x, index=index)
    return x.index_select(0, index)


@nr.op(
    demand=lambda x, index, rows, *, out: nr.Demand(
        hbm_bytes=index.nbytes + 2 * rows.nbytes, tiles=tiles.of_rows(rows)
    ),
    example=lambda: (normal(1, 7, 5), torch.tensor([6, 0, 3]), normal(2, 3, 5)),
    writes=("x",),
    kernels={"triton": "nanort.kernels.rows:scatter"},
    axes="whole",
)
def scatter(x: torch.Tensor, index: torch.Tensor, rows: torch.Tensor) -> None:
    """Sets ``x[index] = rows`` in place: x (total, ...), index (n,) of integers, rows (n, ...).

    They are distinct, but for those of padding: which of several rows a place gets is not said.

    Demand: index and rows are read, as many rows of x are written; tiles are those of :func:`gather`.
    """
    require(
        is_index(index) and rows.shape == (*index.shape, *x.shape[1:]) and rows.dtype == x.dtype,
        "x (total, ...), index (n,) of integers and rows (n, ...) of x's dtype",
        x=x,
        index=index,
        rows=rows,
    )
    x.index_copy_(0, index.long(), rows)


@nr.op(
    demand=lambda x, rows, *, out: nr.Demand(hbm_bytes=2 * rows.nbytes, tiles=tiles.of_rows(rows)),
    example=lambda: (normal(1, 7, 5), normal(2, 7, 5)),
    writes=("x",),
    kernels={"triton": "nanort.kernels.rows:store"},
    axes="whole",
)
def store(x: torch.Tensor, rows: torch.Tensor) -> None:
    """Sets x to ``rows`` in place, both of one shape and dtype: what a state keeps until the next step.

    Demand: rows are read, as many of x are written; tiles are those of :func:`gather`.
    """
    require(x.dim() > 0 and x.shape == rows.shape and x.dtype == rows.dtype, "x and rows alike", x=x, rows=rows)
    x.copy_(rows)
