"""A device for engines whose numbers say where they come from, so that anything stale, swapped or lost shows.

Its model has one number: the *history* of a token, a digest of all tokens up to it. In every layer a slot of the cache
holds the history before its token and the one after it. Whoever reads tokens of a request goes through all of them:
each must begin with the history that the one before it ended with. The next token is a digest of the history. So a
reply tells whether every token of it was computed from every token before it.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from nanort.errors import ExecutionError
from nanort.serving.batching import Batch, Rows, Share
from nanort.serving.kv_cache import PagedKVCache
from nanort.serving.runner import Result

VOCAB = 257
START = 1
Slot = tuple[int, int] | None


def after(history: int, token: int) -> int:
    """The history that ends with one token more."""
    return (history * 1_000_003 + token + 7) % ((1 << 61) - 1)


def reply(prompt: Sequence[int], count: int) -> list[int]:
    """The tokens that follow from a prompt."""
    history, tokens = START, list[int]()
    for token in prompt:
        history = after(history, token)
    for _ in range(count):
        tokens.append(history % VOCAB)
        history = after(history, tokens[-1])
    return tokens


class SymbolicFailureError(ExecutionError):
    """A step that was made to fail."""


@dataclass(slots=True)
class SymbolicRunner:
    """A Runner on that device; batches run when they are collected, what is not ordered in any order.

    With the chance ``fails`` a batch fails, and does part of its work or none.
    """

    cache: PagedKVCache
    seats: int
    width: int
    chance: random.Random
    layers: int = 1
    fails: float = 0.0
    slots: list[list[Slot]] = field(init=False)  # by layer
    host: dict[int, list[list[Slot]]] = field(init=False, default_factory=dict)
    drawn: list[int | None] = field(init=False)
    chunk: dict[int, tuple[int, int]] = field(init=False, default_factory=dict)  # by row: layers passed, and history
    flying: deque[tuple[Batch, Rows, dict[int, list[list[Slot]]]]] = field(init=False, default_factory=deque)
    counts: dict[str, int] = field(init=False, default_factory=lambda: dict.fromkeys(COUNTED, 0))

    def __post_init__(self) -> None:
        self.slots = [[None] * (self.cache.pages * self.cache.page_size) for _ in range(self.layers)]
        self.drawn = [None] * self.seats

    @property
    def in_flight(self) -> int:
        return len(self.flying)

    def predict(self, batch: Batch) -> float:
        """A thousandth for the decode rows, and a part of one for each layer of each of the others."""
        layers = self.layers if batch.beside is None else batch.beside.layers
        return 1e-3 * (1 + layers * sum(share.stop - share.start for share in batch.prefill) / 8)

    def launch(self, batch: Batch) -> None:
        assert len(self.flying) < 2, "more batches are in flight than an engine may launch"
        # What it loads is read now, as a HostStore does: what a batch in flight saves is not on the host yet.
        carried = {slot: self.host.get(slot, []) for slot, _ in batch.loads}
        self.flying.append((batch, Rows.of(batch, self.cache, self.width), carried))

    def collect(self) -> Result:
        batch, rows, carried = self.flying.popleft()
        self._check_apart(batch, rows)
        self._count(batch)
        tokens = [self._token(rows, at) for at in range(len(rows.columns["tokens"]))]
        drawn = list[tuple[int, int, int]]()  # share, seat, token

        def take(number: int) -> None:
            drawn.append(self._pass(batch, rows, number, tokens))

        work = [partial(self._move, batch, carried), *(partial(take, number) for number in range(len(batch.shares)))]
        self.chance.shuffle(work)
        failing = self.chance.random() < self.fails
        for do in work[: self.chance.randrange(len(work))] if failing else work:
            do()
        if failing:
            self.counts["failures"] += 1
            raise SymbolicFailureError("a step was made to fail")
        result: list[int | None] = [None] * len(batch.shares)
        for share, seat, token in drawn:
            if batch.draws[share]:
                self.drawn[seat] = result[share] = token
        return Result(tuple(result), self.predict(batch) * self.chance.uniform(0.5, 2.0))

    def close(self) -> None:
        self.flying.clear()

    def _token(self, rows: Rows, row: int) -> int:
        token = int(rows.columns["tokens"][row])
        if token >= 0:
            return token
        drawn = self.drawn[-1 - token]
        return self._garbage() if drawn is None else drawn

    def _garbage(self) -> int:
        """What is read where nothing was written, as is allowed only behind a step that failed."""
        assert self.fails, "a row is computed from what was never written"
        return self.chance.randrange(1 << 61)

    def _pass(self, batch: Batch, rows: Rows, number: int, tokens: list[int]) -> tuple[int, int, int]:
        """Takes the rows of a share through the layers of this batch."""
        share, pages, size = batch.shares[number], rows.pages[number].tolist(), self.cache.page_size
        own = (rows.columns["requests"] == number).nonzero()[0].tolist()
        assert [int(rows.columns["positions"][row]) for row in own] == list(range(share.start, share.stop))
        beside = batch.beside if number >= len(batch.decode) else None
        history = START
        for layer in range(self.layers) if beside is None else range(beside.first, beside.stop):
            history = self._history(layer, share, pages)
            for row in own:
                before, position = history, int(rows.columns["positions"][row])
                history = after(before, tokens[row])
                if beside is not None:  # its rows are known by what the layer before left of them
                    history = self._passed(row - len(batch.decode), layer, history if layer == 0 else None)
                slot = int(rows.columns["slots"][row])
                assert slot == pages[position // size] * size + position % size >= size, (
                    "a row writes to another's slot"
                )
                self.slots[layer][slot] = before, history
        return number, int(rows.seats[number]), history % VOCAB

    def _history(self, layer: int, share: Share, pages: list[int]) -> int:
        """The history before a share, read from all slots before it."""
        history, size = START, self.cache.page_size
        for position in range(share.start):
            slot = self.slots[layer][pages[position // size] * size + position % size]
            if slot is None or slot[0] != history:
                return self._garbage()
            history = slot[1]
        return history

    def _passed(self, row: int, layer: int, embedded: int | None) -> int:
        """The state of a row of the chunk before ``layer``, which it then passes."""
        passed, history = (0, embedded) if embedded is not None else self.chunk.get(row, (-1, 0))
        if passed != layer:
            history = self._garbage()
        self.chunk[row] = layer + 1, history
        return history

    def _move(self, batch: Batch, carried: dict[int, list[list[Slot]]]) -> None:
        size = self.cache.page_size
        for page, slot in batch.saves:
            self.host[slot] = [layer[page * size : (page + 1) * size] for layer in self.slots]
        for slot, page in batch.loads:
            for layer, kept in zip(self.slots, carried[slot], strict=False):
                layer[page * size : (page + 1) * size] = kept

    def _check_apart(self, batch: Batch, rows: Rows) -> None:
        """In a step nothing orders rows and pages that move, nor the writes of two rows."""
        size = self.cache.page_size
        written = [int(slot) for slot in rows.columns["slots"]]
        read = {
            page
            for pages, share in zip(rows.pages.tolist(), batch.shares, strict=True)
            for page in pages[: -(-share.start // size)]
        }
        loaded, saved = [page for _, page in batch.loads], [page for page, _ in batch.saves]
        touched = {slot // size for slot in written}
        assert not (touched | read) & set(loaded), "a row touches a page that is loaded"
        assert not touched & set(saved), "a row writes to a page that is saved"
        assert len(set(written)) == len(written), "two rows write to one slot"
        assert len({*loaded, *saved}) == len(loaded) + len(saved), "a page moves twice"
        seats = [int(seat) for seat in rows.seats if seat >= 0]
        assert len(set(seats)) == len(seats) == sum(batch.draws), "two tokens are kept at one seat"

    def _count(self, batch: Batch) -> None:
        for name, more in zip(
            COUNTED, (1, batch.layout.rows, len(batch.loads), len(batch.saves), batch.beside is not None), strict=False
        ):
            self.counts[name] += more


COUNTED = ("steps", "rows", "loads", "saves", "besides", "failures")
"""What a runner counts."""
