"""Kernels that torch brings along: what has an ``out=`` there and means the same, called like the kernels beside it.

``sms`` tells them nothing: they keep to what their stream is confined to.
"""

from __future__ import annotations

from typing import Any

import torch


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    *,
    out: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    """``x @ weight.T + bias + residual`` by cuBLAS, which adds one of the two itself; both take a pass more."""
    out = x.new_empty((*x.shape[:-1], len(weight))) if out is None else out
    if not out.numel():
        return out
    rows, result = x.flatten(0, -2) if x.dim() > 1 else x[None], out.view(-1, len(weight))
    added = residual.reshape(result.shape) if bias is None and residual is not None else bias
    if added is None:
        torch.mm(rows, weight.T, out=result)
    else:
        torch.addmm(added, rows, weight.T, out=result)
    if bias is not None and residual is not None:
        out.add_(residual)
    return out


def add(x: torch.Tensor, y: torch.Tensor, *, out: torch.Tensor | None = None, **_: Any) -> torch.Tensor:
    """``x + y``."""
    return torch.add(x, y, out=out)


def gather(x: torch.Tensor, index: torch.Tensor, *, out: torch.Tensor | None = None, **_: Any) -> torch.Tensor:
    """``x[index]``: rows, or whole pages of a cache."""
    return torch.index_select(x, 0, index, out=out)


page_gather = gather


def embedding(tokens: torch.Tensor, table: torch.Tensor, *, out: torch.Tensor | None = None, **_: Any) -> torch.Tensor:
    """``table[tokens]``."""
    return torch.index_select(table, 0, tokens, out=out)


def argmax(logits: torch.Tensor, *, out: torch.Tensor | None = None, **_: Any) -> torch.Tensor:
    """The column of the largest number of every row."""
    return torch.argmax(logits, dim=-1, out=out)
