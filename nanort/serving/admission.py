"""Admission: which requests run in the next step, and how many rows of each; bookkeeping without a device."""

from __future__ import annotations

from bisect import insort
from collections import deque

from nanort.errors import CacheFullError
from nanort.serving.batching import Batch, Share
from nanort.serving.beside import Besides
from nanort.serving.kv_cache import PagedKVCache
from nanort.serving.requests import Request
from nanort.serving.shapes import rounded

MOVED = 128
"""Pages that one step moves each way between the device and the host tier, at most."""

SAVED = 32
"""Pages that are saved together unless they are needed before: a step that moves some has a plan of its own."""


class Admission:
    """The queue and those that run, both in order of arrival; ``next_batch`` chooses the next step.

    The rule is a dense batch of constant size: a row for every request that decodes, and the rest of ``max_rows`` for
    chunks of prompts, the earliest first. A request is let in when there are pages for its tokens and one page more; if
    pages run out later, the one that arrived last makes room. So those that run have arrived before those that wait,
    and the earliest always goes on.

    Args:
        cache: the bookkeeping of the pages.
        max_rows: rows of one step.
        seats: requests that run at once.
        swap: whether the pages of a request that makes room are saved in the host tier.
        besides: makes steps that process a chunk of a prompt layer by layer beside the decode rows.
    """

    def __init__(
        self,
        cache: PagedKVCache,
        *,
        max_rows: int,
        seats: int,
        swap: bool = False,
        besides: Besides | None = None,
    ) -> None:
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._cache, self._swap, self._besides = cache, swap, besides
        self._max_rows = max_rows
        self._seats = list(range(min(seats, max_rows) - 1, -1, -1))
        self._refused = -1  # pages that were free when the first in the queue was last refused
        self._short = False  # whether this step lacks pages

    def add(self, request: Request) -> None:
        """Puts a request at the end of the queue."""
        self.waiting.append(request)

    def next_batch(self) -> Batch | None:
        """The next step; None where no row and no page can move before a step in flight has been collected."""
        self._short = False
        decode, crowded = self._decoding()
        if not (prefill := self._chunk):
            left = max(0, self._max_rows - rounded(len(decode)))
            prefill = self._prefilling([] if crowded else self._admitted(left), left)
        urgent = self._short or not (decode or prefill)
        loads = self._cache.next_loads(MOVED)
        saves = self._cache.next_saves(MOVED) if urgent or self._cache.leaving >= SAVED else ()
        if not (decode or prefill or loads or saves):
            return None
        batch = Batch(decode, prefill, saves, loads)
        return batch if self._besides is None else self._besides.timed(batch)

    def launched(self, batch: Batch) -> None:
        """Notes that a batch is on its way to the device."""
        for share in batch.filled:
            share.request.cached = share.stop
        for share, draws in zip(batch.shares, batch.draws, strict=True):
            share.request.pending += draws

    def drop(self, request: Request, *, save: bool = False) -> None:
        """Takes a request out, its seat and pages given back, or kept until they are saved."""
        if request.seat is None:
            self.waiting.remove(request)
        else:
            self._release(request, save=save)

    def preempt(self, request: Request, *, save: bool) -> None:
        """Sends a request that runs back to its place in the queue, which is the head for the one that came last."""
        self._release(request, save=save)
        request.preemptions += 1
        later = (i for i, other in enumerate(self.waiting) if other.arrived >= request.arrived)
        self.waiting.insert(next(later, len(self.waiting)), request)

    def _release(self, request: Request, *, save: bool) -> None:
        assert request.seat is not None
        self.running.remove(request)
        insort(self._seats, request.seat, key=lambda seat: -seat)  # the lowest is taken next
        request.seat, request.cached = None, 0
        self._cache.release(request, save=save)
        self._refused = -1
        if self._besides is not None:
            self._besides.drop(request)

    @property
    def _chunk(self) -> tuple[Share, ...]:
        """The chunk of which some layers are still to be computed."""
        return () if self._besides is None else self._besides.chunk

    def _decoding(self) -> tuple[tuple[Share, ...], bool]:
        """A row for every request that decodes; and whether anyone had to make room for them."""
        shares, before = list[Share](), len(self.running)
        chunked = [share.request for share in self._chunk]
        for request in tuple(self.running):
            decodes = request.seat is not None and request.rows == 1 and not request.drawn and request not in chunked
            if decodes and self._cache.ready(request) and self._reserved(request, request.cached + 1):
                shares.append(Share(request, request.cached, request.cached + 1, draws=True))
        return tuple(shares), len(self.running) < before

    def _reserved(self, request: Request, tokens: int) -> bool:
        """Whether a request that runs has pages for so many tokens, those behind it preempted if need be."""
        while True:
            try:
                self._cache.reserve(request, tokens)
                return True
            except CacheFullError:
                self._short = True
                if self._cache.leaving:  # pages come free as soon as they are saved: nobody else has to go
                    return False
                last = self.running[-1]
                self.preempt(last, save=self._swap)
                if last is request:
                    return False

    def _admitted(self, rows: int) -> list[Request]:
        """Those let in now, while there are rows, seats and pages for them."""
        entered = list[Request]()
        rows -= sum(request.rows for request in self.running if request.rows > 1)
        while rows > 0 and self.waiting and self._seats and self._enters(self.waiting[0]):
            entered.append(self.waiting.popleft())
            self.running.append(entered[-1])
            rows -= entered[-1].rows
        return entered

    def _enters(self, request: Request) -> bool:
        """Whether there are pages for a request; if so, it has them, and a seat."""
        room = min(request.length + self._cache.page_size, len(request.prompt) + request.params.max_new_tokens)
        free = self._cache.free
        # Those that run take a page each before long: without them left, one would be let in to be sent back.
        spare = free - (-(-room // self._cache.page_size) + len(self.running) if self.running else 0)
        if request.pending or spare < 0 or free <= self._refused:
            self._short = True
            return False
        try:
            request.cached = self._cache.admit(request, request.tokens, room)
        except CacheFullError:
            self._refused, self._short = free, True
            return False
        self._refused = -1
        request.prefix_hits += request.cached
        request.seat = self._seats.pop()
        return True

    def _prefilling(self, entered: list[Request], rows: int) -> tuple[Share, ...]:
        """Chunks of prompts for the rows that are left."""
        ready = self._cache.ready
        wanted = [r for r in self.running if (r.rows > 1 or r in entered) and ready(r)]
        # A step is padded to a bucket: better fewer rows than many of padding.
        less, more = rounded(rows, up=False), rounded(rows)
        left, shares = (less if rows - less < more - rows else rows), list[Share]()
        for request in wanted:
            taken = min(request.rows, left)
            if taken > 0:
                shares.append(Share(request, request.cached, request.cached + taken, draws=taken == request.rows))
                left -= taken
        return tuple(shares)
