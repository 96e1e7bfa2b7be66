"""Batch: which rows of which requests one step processes, and the tensors that say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from nanort.layout import Layout, Segment
from nanort.serving.kv_cache import PagedKVCache


@dataclass(slots=True, eq=False)
class Request:
    """A prompt and what has been generated after it; ``cached`` tokens stand in the KV cache."""

    index: int
    prompt: list[int]
    generated: list[int] = field(default_factory=list)
    cached: int = 0

    @property
    def length(self) -> int:
        """Tokens known so far."""
        return len(self.prompt) + len(self.generated)

    @property
    def waiting(self) -> int:
        """Tokens that are known and not cached yet: one while it decodes."""
        return self.length - self.cached

    def span(self, start: int, stop: int) -> list[int]:
        """The tokens ``start`` to ``stop``, of prompt and generated text."""
        split = len(self.prompt)
        return self.prompt[start:stop] + self.generated[max(0, start - split) : max(0, stop - split)]


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: a row per decoding request, then for each prefilling one a chunk of its prompt."""

    decode: tuple[Request, ...]
    prefill: tuple[tuple[Request, int], ...]  # and how many rows of it

    @property
    def requests(self) -> tuple[Request, ...]:
        """The requests in the order of their rows."""
        return (*self.decode, *(request for request, _ in self.prefill))

    @property
    def layout(self) -> Layout:
        """Its rows."""
        segments = tuple(Segment(rows, request.cached) for request, rows in self.prefill)
        return Layout(len(self.decode), segments, sum(request.length for request in self.decode))

    @property
    def spans(self) -> list[tuple[Request, int, int]]:
        """For each request, the tokens that this step processes."""
        rows = [1] * len(self.decode) + [rows for _, rows in self.prefill]
        return [(request, request.cached, request.cached + n) for request, n in zip(self.requests, rows, strict=True)]

    def tensors(self, cache: PagedKVCache, bucket: Layout, requests: int, width: int) -> dict[str, torch.Tensor]:
        """The inputs of a decoder graph made for ``bucket`` (whose layout packs the rows) and ``requests`` requests.

        Rows beyond the step's are padding: they belong to the last row of the page table, which holds only scratch.
        """
        count, pad = len(self.requests), requests - 1
        rows = {name: [0] * bucket.rows for name in ("tokens", "positions", "slots")}
        owner = [pad] * bucket.rows
        last, first, prefill = [0] * requests, 0, bucket.decode
        for number, (request, start, stop) in enumerate(self.spans):
            if number == len(self.decode):
                first = prefill
            end = first + stop - start
            rows["tokens"][first:end] = request.span(start, stop)
            rows["positions"][first:end] = range(start, stop)
            rows["slots"][first:end] = cache.slots(request, start, stop)
            owner[first:end] = [number] * (end - first)
            last[number], first = end - 1, end
        packed = {name: bucket.pack(torch.tensor(column)) for name, column in (rows | {"requests": owner}).items()}
        at = bucket.unpack(torch.arange(bucket.rows))  # where each canonical row stands
        pages = torch.zeros(requests, width, dtype=torch.int32)
        pages[:count] = cache.table(self.requests, width)
        return packed | {"pages": pages, "last": at[torch.tensor(last)]}


def scratch_inputs(layout: Layout, requests: int, width: int, page_size: int) -> dict[str, torch.Tensor]:
    """Inputs of the same graph for a trial run that touches only the scratch page: rows as long as the layout says."""
    longest = width * page_size - 1
    context = min(longest, layout.kv_tokens // layout.decode) if layout.decode else 0
    prefill = [row for segment in layout.segments for row in range(segment.past, segment.past + segment.rows)]
    positions = torch.tensor([context] * layout.decode + prefill).clamp(max=longest)
    zeros = torch.zeros(layout.rows, dtype=torch.int64)
    rows = {"tokens": zeros, "positions": positions, "slots": positions % page_size, "requests": zeros}
    pages = torch.zeros(requests, width, dtype=torch.int32)
    return {name: layout.pack(row) for name, row in rows.items()} | {
        "pages": pages,
        "last": torch.zeros(requests, dtype=torch.int64),
    }


def next_batch(running: Sequence[Request], max_rows: int) -> Batch:
    """The next step of the ``running`` requests: every decoding one, and prompts up to ``max_rows`` rows in all."""
    decode = tuple(request for request in running if request.generated and request.waiting == 1)
    left = max_rows - len(decode)
    prefill = []
    for request in running:
        if request not in decode and left > 0:
            prefill.append((request, min(request.waiting, left)))
            left -= prefill[-1][1]
    return Batch(decode, tuple(prefill))
