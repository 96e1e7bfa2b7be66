"""Paged caches of random numbers: page tables in shuffled order, and what libraries ask for in place of pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.gpu.timing import DTYPE, sized
from nanort.driver import Driver

PAGE = 16
"""Tokens of a page, but where a case says otherwise."""


@dataclass(frozen=True, slots=True)
class Heads:
    """LLaMA-3-8B's attention: query heads, those of keys and values, and the width of each."""

    queries: int
    shared: int
    dim: int

    @staticmethod
    def llama(scale: float) -> Heads:
        return Heads(sized(32, scale, 4), sized(32, scale, 4) // 4, sized(128, scale, 16))


class Cache:
    """So many tokens in pages of 16, all of random numbers.

    Args:
        driver: of the device that holds it.
        heads: of what is cached.
        tokens: a multiple of any page size that is asked for.
    """

    def __init__(self, driver: Driver, heads: Heads, tokens: int) -> None:
        self.heads, self.tokens = heads, tokens
        shape = (tokens // PAGE, 2, PAGE, heads.shared, heads.dim)
        self._kv = torch.randn(shape, dtype=DTYPE, device=driver.device)

    def pages_of(self, page: int) -> torch.Tensor:
        """The same memory as pages of ``page`` tokens: (pages, 2, page, kv_heads, dim)."""
        return self._kv.view(-1, 2, page, *self._kv.shape[3:])

    def tables(self, lengths: Sequence[int], page: int, turns: int) -> list[torch.Tensor]:
        """Page tables (requests, width) for requests of these lengths, other pages in each as far as there are some."""
        widths = [-(-length // page) for length in lengths]
        order = torch.randperm(self.tokens // page, device=self._kv.device).int()
        fit = max(1, min(turns, len(order) // sum(widths)))
        tables = []
        for pages in order[: fit * sum(widths)].view(fit, -1):
            rows = list(pages.split(widths))
            tables.append(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True))
        return tables


def dense(kv: torch.Tensor, table: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of requests of ``tokens`` each, without pages: two of (requests, kv_heads, tokens, dim)."""
    _, _, page, kv_heads, dim = kv.shape
    made = kv.new_empty(2, len(table), kv_heads, tokens, dim)
    for request, pages in enumerate(table[:, : -(-tokens // page)].long()):  # one by one: twice the memory at no time
        whole = kv[pages].permute(1, 3, 0, 2, 4).reshape(2, kv_heads, -1, dim)
        made[:, request] = whole[:, :, :tokens]
    keys, values = made
    return keys, values
