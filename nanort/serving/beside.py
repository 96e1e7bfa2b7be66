"""Beside, some layers of a chunk of prompts beside a decode step; Besides, how many, so that time per token holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanort.serving.batching import Batch, Share
    from nanort.serving.requests import Request

FEW = 256
"""Rows of prompts that are asked about first."""

WORTH = 1.02
"""How many times as much of a prompt a second a step must do that makes every token wait for more of it."""

NEWEST = 0.1
"""The weight of the step seen last in what steps take beside what their plans say."""

MOST = 2.0
"""How much slower than the last ones a step may count: the first run of a plan compiles and captures, others do not."""


@dataclass(frozen=True, slots=True)
class Beside:
    """Which layers the prefill rows of a step pass: ``layers`` of them from ``first`` on, ``of`` a model's."""

    first: int
    layers: int
    of: int

    @property
    def stop(self) -> int:
        """The layer that the next step goes on with."""
        return self.first + self.layers

    @property
    def ends(self) -> bool:
        """Whether the rows come to the end of the model."""
        return self.stop == self.of

    @property
    def twin(self) -> Beside:
        """Layers that take as long: the same for all that neither begin nor end the model."""
        return self if self.ends or not self.first else Beside(1, self.layers, self.of)


@dataclass(frozen=True, slots=True)
class Choice:
    """A batch that might be next: how much of prompts it does a second, in rows times layers, and whether it holds."""

    holds: bool
    rate: float
    batch: Batch


class Besides:
    """Takes prompts through the model while decode steps keep their time per token.

    Rows of prompts share a step with those that decode in one of two ways. Some of them pass all layers, as in any
    step: weights are read once for both. Or a chunk of all of them passes some layers on SMs of its own, and the next
    steps go on with it: what computes runs beside what reads, which gains the more the longer decode reads. Whichever
    does more a second is taken, with as many rows or layers as hold ``slo_tpot`` by what plans say, and a layer or a
    row at least: no prompt is held up for ever. What steps are seen to take corrects what plans say, by a factor.

    Args:
        predict: seconds that the plan of a batch says.
        layers: of the model.
        slo_tpot: seconds a step may take; may be set later.

    Attributes:
        chunk: the shares whose layers are being computed; () between two chunks.
    """

    def __init__(self, predict: Callable[[Batch], float], layers: int, slo_tpot: float) -> None:
        self.chunk: tuple[Share, ...] = ()
        self.slo_tpot = slo_tpot
        self._predict, self._layers = predict, layers
        self._first = 0  # layer of the chunk that comes next
        self._factor = 1.0  # of what steps take to what plans say
        self._last = {"rows": FEW, "layers": 1}  # chosen last

    def timed(self, batch: Batch) -> Batch:
        """``batch`` with the layers that its prefill rows are to pass, or with fewer of these rows.

        They are those of the open chunk, if there is one.
        """
        if not batch.prefill or not (self.chunk or batch.decode):
            return batch  # nobody waits: the rows pass all layers
        chosen = self._chosen(batch) if batch.decode else self._until(batch, self._layers)
        beside = chosen.beside
        self.chunk, self._first = ((), 0) if beside is None or beside.ends else (chosen.prefill, beside.stop)
        return chosen

    def drop(self, request: Request) -> None:
        """Forgets the chunk if it has rows of ``request``, whose pages are gone; those of others are computed anew."""
        if any(share.request is request for share in self.chunk):
            self.chunk, self._first = (), 0

    def observe(self, batch: Batch, seconds: float) -> None:
        """Takes note of how long a batch took."""
        if batch.decode and batch.prefill:
            ratio = min(seconds / self._predict(batch), MOST * self._factor)
            self._factor += NEWEST * (ratio - self._factor)

    def _chosen(self, batch: Batch) -> Batch:
        """Some layers of the chunk; where none is open, or fewer rows and all layers."""
        left = self._layers - self._first
        layers = [count for count in counts(left) if count == left or self._first % count == 0]
        found = [self._best("layers", layers, lambda count: self._until(batch, self._first + count))]
        if not self._first:
            rows = counts(sum(share.stop - share.start for share in batch.prefill))
            found.append(self._best("rows", rows, lambda count: cut(batch, count)))
        return max(found, key=lambda choice: (choice.holds, choice.rate)).batch

    def _best(self, what: str, sizes: Sequence[int], made: Callable[[int], Batch]) -> Choice:
        """The largest size that holds and is worth it, from that chosen last up or down, so that few plans are made."""
        choices = dict[int, Choice]()

        def choice(at: int) -> Choice:
            if at not in choices:
                batch = made(sizes[at])
                seconds = self._factor * self._predict(batch)
                rows = sum(share.stop - share.start for share in batch.prefill)
                work = rows * (self._layers if batch.beside is None else batch.beside.layers)
                choices[at] = Choice(seconds <= self.slo_tpot, work / seconds, batch)
            return choices[at]

        at = max(at for at, size in enumerate(sizes) if at == 0 or size <= self._last[what])
        while not choice(at).holds and at > 0:
            at -= 1
        while at + 1 < len(sizes) and choice(at + 1).holds and choice(at + 1).rate > WORTH * choice(at).rate:
            at += 1
        if sizes[at] != sizes[-1] or sizes[at] > self._last[what]:  # that no more was left tells nothing of the next
            self._last[what] = sizes[at]
        return choice(at)

    def _until(self, batch: Batch, stop: int) -> Batch:
        """The layers from the next one up to ``stop``; all layers are an ordinary step."""
        whole = (self._first, stop) == (0, self._layers)
        beside = None if whole else Beside(self._first, stop - self._first, self._layers)
        return replace(batch, beside=beside)


def counts(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, ... up to ``most``, which ends them: so few plans serve all.

    Layers are taken in counts that divide those before them, so that chunks meet at the same layers whatever is chosen
    on the way.

    >>> counts(10)
    [1, 2, 3, 4, 6, 8, 10]
    """
    powers = range(most.bit_length())
    return sorted({count for power in powers for count in (1 << power, 3 << power) if count < most} | {most})


def cut(batch: Batch, rows: int) -> Batch:
    """``batch`` with the first ``rows`` rows of its prompts."""
    shares: list[Share] = []
    for share in batch.prefill:
        stop = min(share.stop, share.start + rows)
        if share.start < stop:
            shares.append(replace(share, stop=stop, draws=share.draws and stop == share.stop))
        rows -= stop - share.start
    return replace(batch, prefill=tuple(shares))
