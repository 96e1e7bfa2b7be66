"""Batch: which rows of which requests one step processes, and the tensors that say so."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from nanort.layout import Layout, Segment
from nanort.serving.beside import Beside
from nanort.serving.kv_cache import PagedKVCache
from nanort.serving.requests import Request
from nanort.serving.sampling import SamplingParams

GREEDY = SamplingParams()


@dataclass(frozen=True, slots=True)
class Share:
    """The tokens ``start`` up to ``stop`` of a request, which one step processes.

    ``draws`` says whether the next token follows from the last of them, since no other is known or pending.
    """

    request: Request
    start: int
    stop: int
    draws: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: a row per decoding request, then chunks of prompts, and pages that move beside them.

    Attributes:
        decode, prefill: shares of one token each, and of any number.
        saves: pages that go to the host tier: (page, host slot).
        loads: pages that come from there: (host slot, page).
        beside: which layers of the prefill rows run beside the decode rows; None where all rows take all layers.
    """

    decode: tuple[Share, ...] = ()
    prefill: tuple[Share, ...] = ()
    saves: tuple[tuple[int, int], ...] = ()
    loads: tuple[tuple[int, int], ...] = ()
    beside: Beside | None = None

    @property
    def shares(self) -> tuple[Share, ...]:
        """All of them in the order of their rows."""
        return self.decode + self.prefill

    @property
    def requests(self) -> tuple[Request, ...]:
        """Whose rows they are, in that order."""
        return tuple(share.request for share in self.shares)

    @property
    def layout(self) -> Layout:
        """Its rows."""
        segments = tuple(Segment(share.stop - share.start, share.start) for share in self.prefill)
        return Layout(len(self.decode), segments, sum(share.stop for share in self.decode))

    @property
    def filled(self) -> tuple[Share, ...]:
        """The shares whose tokens stand in the cache after this step: a chunk's only with its last layers."""
        return self.shares if self.beside is None or self.beside.ends else self.decode

    @property
    def draws(self) -> tuple[bool, ...]:
        """Of every share, whether this step draws a token after it."""
        ends = self.beside is None or self.beside.ends
        return (*(share.draws for share in self.decode), *(share.draws and ends for share in self.prefill))

    @property
    def greedy(self) -> bool:
        """Whether no token is drawn at random."""
        return all(share.request.params.greedy for share in self.shares)


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch in numbers, as the host knew them when it was launched: what the device needs of it."""

    decode: int
    columns: dict[str, npt.NDArray[np.int64]]  # a number a row: tokens, positions, slots, requests
    pages: torch.Tensor
    last: npt.NDArray[np.int64]  # of every request that draws, its last row; 0 for the others
    seats: npt.NDArray[np.int64]  # -1 for those that do not draw
    draws: tuple[tuple[SamplingParams, int] | None, ...]  # how, and at which position

    @classmethod
    def of(cls, batch: Batch, cache: PagedKVCache, width: int) -> Rows:
        """The rows of ``batch``, its page table ``width`` wide."""
        shares, draws = batch.shares, batch.draws
        tokens, positions, slots, owners = list[int](), list[int](), list[int](), list[int]()
        for number, share in enumerate(shares):
            tokens += share.request.span(share.start, share.stop)
            positions += range(share.start, share.stop)
            slots += cache.slots(share.request, share.start, share.stop)
            owners += [number] * (share.stop - share.start)
        ends = np.cumsum([share.stop - share.start for share in shares], dtype=np.int64) - 1
        drawing = np.array(draws, dtype=bool)
        seats = np.array([share.request.seat if share.request.seat is not None else -1 for share in shares], np.int64)
        columns = {"tokens": tokens, "positions": positions, "slots": slots, "requests": owners}
        return cls(
            decode=len(batch.decode),
            columns={name: np.array(column, np.int64) for name, column in columns.items()},
            pages=cache.table([share.request for share in shares], width),
            last=np.where(drawing, ends, 0),
            seats=np.where(drawing, seats, -1),
            draws=tuple((s.request.params, s.stop) if draw else None for s, draw in zip(shares, draws, strict=True)),
        )

    def inputs(
        self, bucket: Layout, table: tuple[int, int], seats: int, sampling: bool = False
    ) -> dict[str, torch.Tensor]:
        """The inputs of a decoder graph made for ``bucket`` (whose layout packs the rows) and that page ``table``.

        Rows beyond the step's are padding: they belong to the last row of the page table, which holds only scratch, and
        what they draw goes to the last of the ``seats``, which nobody has.
        """
        (requests, width), count, shift = table, len(self.last), bucket.decode - self.decode
        inputs = {}
        for name, column in self.columns.items():
            row = np.full(bucket.rows, requests - 1 if name == "requests" else 0, np.int64)
            row[: self.decode] = column[: self.decode]
            row[bucket.decode : bucket.decode + len(column) - self.decode] = column[self.decode :]
            inputs[name] = bucket.pack(torch.from_numpy(row))
        at = bucket.unpack(torch.arange(bucket.rows))  # where each canonical row stands
        last, kept = np.zeros(requests, np.int64), np.full(requests, seats, np.int64)
        last[:count] = self.last + np.where(self.last >= self.decode, shift, 0)
        kept[:count] = np.where(self.seats < 0, seats, self.seats)
        inputs["pages"] = torch.zeros(requests, width, dtype=torch.int32)
        inputs["pages"][:count, : self.pages.shape[1]] = self.pages
        inputs |= {"last": at[torch.from_numpy(last)], "seats": torch.from_numpy(kept)}
        return inputs | self._chances(requests) if sampling else inputs

    def _chances(self, requests: int) -> dict[str, torch.Tensor]:
        """How every request's token is drawn."""
        drawn = [draw or (GREEDY, 0) for draw in self.draws] + [(GREEDY, 0)] * (requests - len(self.draws))
        uniform = [0.0 if how.greedy else how.uniform(position) for how, position in drawn]
        return {
            "uniform": torch.tensor(uniform, dtype=torch.float32),
            "temperature": torch.tensor([how.temperature for how, _ in drawn], dtype=torch.float32),
            "top_k": torch.tensor([how.top_k for how, _ in drawn], dtype=torch.int64),
            "top_p": torch.tensor([how.top_p for how, _ in drawn], dtype=torch.float32),
        }


def scratch_inputs(layout: Layout, requests: int, width: int, page_size: int, seats: int) -> dict[str, torch.Tensor]:
    """Inputs of the same graph for a trial run that touches only scratch: rows as long as the layout says."""
    longest = width * page_size - 1
    context = min(longest, layout.kv_tokens // layout.decode) if layout.decode else 0
    prefill = [row for segment in layout.segments for row in range(segment.past, segment.past + segment.rows)]
    positions = torch.tensor([context] * layout.decode + prefill).clamp(max=longest)
    zeros = torch.zeros(layout.rows, dtype=torch.int64)
    rows = {"tokens": zeros, "positions": positions, "slots": positions % page_size, "requests": zeros}
    return {name: layout.pack(row) for name, row in rows.items()} | {
        "pages": torch.zeros(requests, width, dtype=torch.int32),
        "last": torch.zeros(requests, dtype=torch.int64),
        "seats": torch.full((requests,), seats),
    }
