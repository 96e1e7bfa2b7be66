"""embedding, recall: the rows of a table that tokens stand for, and tokens that were drawn on the device."""

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


@nr.op(
    demand=lambda tokens, drawn, *, out: nr.Demand(hbm_bytes=tokens.nbytes + 2 * out.nbytes, tiles=tiles.of_rows(out)),
    example=lambda: (torch.tensor([3, -1, 0, -4, 8, -4, 2]), torch.tensor([7, 5, 6, 1])),
    kernels={"triton": "nanort.kernels.embedding:recall"},
)
def recall(tokens: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """``tokens``, and instead of each negative one ``t`` what ``drawn[-1 - t]`` says: (rows,) and (seats,) -> (rows,).

    So a step can be queued before the host knows the token that the one before draws: it names the entry of the state
    ``drawn`` which that step scatters to. Both are integers of one type.

    Demand: tokens and an entry for each of them are read, the result is written; tiles are those of ``gather``.
    """
    require(
        is_index(tokens) and is_index(drawn) and tokens.dtype == drawn.dtype,
        "tokens (rows,) and drawn (seats,) of one integer type",
        tokens=tokens,
        drawn=drawn,
    )
    return torch.where(tokens < 0, drawn[torch.where(tokens < 0, -1 - tokens, 0)], tokens)
