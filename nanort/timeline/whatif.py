"""What a timeline would take were an operator faster: played again, all else as it was."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nanort.errors import TimelineError
from nanort.timeline import units
from nanort.timeline.flat import Flat, Ints


@dataclass(frozen=True, slots=True)
class WhatIf:
    """The makespan if ``operator`` were ``factor`` times as fast, beside the makespan as it is."""

    operator: str
    factor: float
    makespan_ns: int
    before_ns: int

    @property
    def change(self) -> float:
        """The change of the makespan as a share of it: below zero where it is shorter."""
        return self.makespan_ns / self.before_ns - 1 if self.before_ns else 0.0

    def __str__(self) -> str:
        took = f"{units.duration(self.makespan_ns / 1e9)}, {units.change(self.change)}"
        return f"{units.plain(self.operator)} {self.factor:g}x as fast: {took}"


@dataclass(frozen=True, slots=True)
class Replay:
    """A timeline ready to be played again.

    Attributes:
        flat: the timeline.
        order: what started, in the order of its start.
        blockers: for each activity, what it had to wait for.
        gaps: for each activity, the nanoseconds from the end of the last of those to its start.
    """

    flat: Flat
    order: list[int]
    blockers: list[list[int]]
    gaps: list[int]

    @staticmethod
    def of(flat: Flat) -> Replay:
        """The timeline behind ``flat``, ready to be played again."""
        edges = flat.blockers()
        by_start = np.lexsort((flat.end, flat.start))
        return Replay(
            flat,
            by_start[flat.began[by_start]].tolist(),
            edges.lists(),
            (flat.start - edges.latest(flat.end)[0]).tolist(),
        )

    def what_if(self, operator: str, factor: float) -> WhatIf:
        """The makespan if ``operator`` were ``factor`` times as fast.

        Raises:
            TimelineError: there is no such operator, or the factor is not a number above zero.
        """
        if operator not in self.flat.operators:
            there = ", ".join(units.plain(name, 40) for name in self.flat.operators[:8]) or "none"
            raise TimelineError(f"no operator {operator!r} ran: there are {there}")
        if not 0 < factor < math.inf:
            raise TimelineError(f"an operator cannot be {factor} times as fast: give a number above zero")
        faster = self.flat.operator == self.flat.operators.index(operator)
        took = self.flat.lasted_ns
        took = np.where(faster, np.rint(took / factor).astype(np.int64), took)
        return WhatIf(operator, factor, self.makespan_ns(took), self.flat.makespan_ns)

    def makespan_ns(self, took: Ints) -> int:
        """The makespan if every activity took these nanoseconds."""
        end, last = took.tolist(), 0
        blockers, gaps = self.blockers, self.gaps
        for index in self.order:
            start, waited = gaps[index], blockers[index]
            if waited:
                start += max([end[blocker] for blocker in waited])
            end[index] += max(0, start)
            if end[index] > last:
                last = end[index]
        return last
