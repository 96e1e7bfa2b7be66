"""page_gather, page_scatter: whole pages of a KV cache to and from one contiguous buffer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from nanort.kernels.kernel import Typical, kernel, meta
from nanort.kernels.launch import Launch
from nanort.kernels.rows import copy_rows, refuses_copy


def _refuses(kv: torch.Tensor, pages: torch.Tensor, staging: torch.Tensor | None = None, **_: Any) -> str:
    return refuses_copy(kv, pages, staging)


@kernel(result=lambda kv, pages, **_: kv.new_empty((len(pages), *kv.shape[1:])), refuses=_refuses)
def page_gather(
    kv: torch.Tensor,
    pages: torch.Tensor,
    *,
    needed: bool = False,
    layout: object = None,
    out: torch.Tensor,
    scratch: torch.Tensor | None,
    sms: int,
) -> Sequence[Launch]:
    """Pages (n,) of the cache (pages, ...), side by side."""
    return copy_rows(kv, out, pages, gathers=True, sms=sms)


@kernel(refuses=_refuses)
def page_scatter(
    kv: torch.Tensor,
    pages: torch.Tensor,
    staging: torch.Tensor,
    *,
    needed: bool = False,
    layout: object = None,
    out: None,
    scratch: torch.Tensor | None,
    sms: int,
) -> Sequence[Launch]:
    """Writes ``staging`` (n, ...) to distinct pages of the cache."""
    return copy_rows(staging, kv, pages, gathers=False, sms=sms)


def typical() -> Iterator[Typical]:
    """Pages of 16 tokens of one layer of LLaMA-3-8B, 64 KiB each."""
    kv, pages, staging = meta(4096, 2, 16, 8, 128), meta(1024, dtype=torch.int64), meta(1024, 2, 16, 8, 128)
    yield Typical("page_gather.triton", "1024 x 64 KiB", page_gather, (kv, pages))
    yield Typical("page_scatter.triton", "1024 x 64 KiB", page_scatter, (kv, pages, staging))
