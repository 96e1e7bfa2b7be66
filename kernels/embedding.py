"""embedding: the rows of a table that tokens stand for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from nanort.kernels.kernel import Typical, kernel, meta
from nanort.kernels.launch import Launch
from nanort.kernels.rows import copy_rows, refuses_copy


@kernel(
    result=lambda tokens, table: table.new_empty((len(tokens), table.shape[1])),
    refuses=lambda tokens, table: refuses_copy(table, tokens),
)
def embedding(
    tokens: torch.Tensor, table: torch.Tensor, *, out: torch.Tensor, scratch: torch.Tensor | None, sms: int
) -> Sequence[Launch]:
    """``table[tokens]``: tokens (rows,), table (vocabulary, n) -> (rows, n)."""
    return copy_rows(table, out, tokens, gathers=True, sms=sms)


def typical() -> Iterator[Typical]:
    """LLaMA-3-8B's table."""
    tokens, table = meta(2048, dtype=torch.int64), meta(128256, 4096)
    yield Typical("embedding.triton", "2048 of 128256 x 4096", embedding, (tokens, table))
