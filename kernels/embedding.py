"""embedding, recall: the rows of a table that tokens stand for, and tokens that were drawn on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl

from nanort.kernels.kernel import Typical, kernel, meta
from nanort.kernels.launch import Launch
from nanort.kernels.rows import LEAST_BYTES, PER_SM, copy_rows, refuses_copy


@triton.jit
def _recall(tokens, drawn, out, rows, seats, BLOCK: tl.constexpr):
    for piece in range(tl.program_id(0), tl.cdiv(rows, BLOCK), tl.num_programs(0)):
        row = piece * BLOCK + tl.arange(0, BLOCK)
        token = tl.load(tokens + row, mask=row < rows, other=0)
        seat = -1 - token
        tl.device_assert(seat < seats, "a token names no seat")
        token = tl.where(token < 0, tl.load(drawn + seat, mask=token < 0, other=0), token)
        tl.store(out + row, token, mask=row < rows)


@kernel(
    result=lambda tokens, table: table.new_empty((len(tokens), table.shape[1])),
    refuses=lambda tokens, table: refuses_copy(table, tokens),
)
def embedding(
    tokens: torch.Tensor, table: torch.Tensor, *, out: torch.Tensor, scratch: torch.Tensor | None, sms: int
) -> Sequence[Launch]:
    """``table[tokens]``: tokens (rows,), table (vocabulary, n) -> (rows, n)."""
    return copy_rows(table, out, tokens, gathers=True, sms=sms)


def _contiguous(tokens: torch.Tensor, drawn: torch.Tensor) -> str:
    return "" if tokens.is_contiguous() and drawn.is_contiguous() else "takes contiguous tokens"


@kernel(result=lambda tokens, drawn: tokens.new_empty(tokens.shape), refuses=_contiguous)
def recall(
    tokens: torch.Tensor, drawn: torch.Tensor, *, out: torch.Tensor, scratch: torch.Tensor | None, sms: int
) -> Sequence[Launch]:
    """``tokens`` (rows,), and for each negative one ``t`` the token ``drawn[-1 - t]``."""
    block = LEAST_BYTES // tokens.itemsize
    arguments = {"tokens": tokens, "drawn": drawn, "out": out, "rows": len(tokens), "seats": len(drawn), "BLOCK": block}
    pieces = triton.cdiv(len(tokens), block)
    return [Launch(_recall, min(pieces, sms * PER_SM), arguments, warps=1)] if pieces else []


def typical() -> Iterator[Typical]:
    """LLaMA-3-8B's table, and the rows of a step."""
    tokens, table = meta(2048, dtype=torch.int64), meta(128256, 4096)
    yield Typical("embedding.triton", "2048 of 128256 x 4096", embedding, (tokens, table))
    yield Typical("recall.triton", "2048 of 256 seats", recall, (tokens, meta(257, dtype=torch.int64)))
