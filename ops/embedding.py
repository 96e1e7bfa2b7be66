"""embedding: the rows of a table that tokens stand for."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import nanort as nr
from nanort.ops import tiles
from nanort.ops.examples import normal
from nanort.ops.shapes import is_index, require


@nr.op(
    demand=lambda tokens, table, *, out: nr.Demand(hbm_bytes=tokens.nbytes + 2 * out.nbytes, tiles=tiles.of_rows(out)),
    example=lambda: (torch.tensor([3, 0, 3, 8, 1, 7, 2]), normal(1, 9, 5)),
    kernels={"triton": "nanort.kernels.embedding:embedding", "torch": "nanort.kernels.library:embedding"},
)
def embedding(tokens: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The rows of ``table`` that ``tokens`` name: tokens (rows,) int64, table (vocabulary, n) -> (rows, n).

    Demand: tokens and the rows looked up, not the table, are read; the result is written; a tile is 16 KiB of a row, or
    a few narrow ones.
    """
    require(
        is_index(tokens) and table.dim() == 2,
        "tokens (rows,) of integers and table (vocabulary, n)",
        tokens=tokens,
        table=table,
    )
    return F.embedding(tokens, table)
