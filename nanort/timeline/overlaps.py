"""What ran at once: streams and resources, and what each operator ran beside."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import chain, combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from nanort.partition import ENGINES
from nanort.timeline import analysis, units
from nanort.timeline.analysis import RESOURCES, SMS, Array
from nanort.timeline.missed import Missed, missed

if TYPE_CHECKING:
    from nanort.timeline.events import Timeline

SHOWN = 24


@dataclass(frozen=True, slots=True)
class OperatorOverlap:
    """How an operator ran, its activities added up.

    Attributes:
        operator: its name.
        exclusive_ns: nanoseconds in which no other lane ran anything.
        hidden_ns: nanoseconds in which another lane did.
        could: what else it could have run beside.
    """

    operator: str
    exclusive_ns: int
    hidden_ns: int
    could: tuple[Missed, ...]


@dataclass(frozen=True)
class Overlap:
    """How much ran at once; prints as a line, and its :meth:`table` tells operators apart.

    Attributes:
        streams: ``streams[k]`` is for how many seconds exactly ``k`` streams were busy; they add up to the makespan.
        pairs: for how many seconds two resources were busy together: ``("sms", "h2d")``, ``("sms", "d2h")``,
            ``("h2d", "d2h")``, and ``("sms", "sms")`` for two or more streams that hold SMs.
    """

    timeline: Timeline = field(repr=False, compare=False)
    streams: tuple[float, ...]
    pairs: dict[tuple[str, str], float]

    @cached_property
    def operators(self) -> tuple[OperatorOverlap, ...]:
        """What each operator ran beside, the one that ran alone for longest first."""
        flat, could = self.timeline.flat, missed(self.timeline)
        boxes = [(start, end) for start, end in analysis.busy(self.timeline, flat.start, flat.end).values()]
        start, end = (np.concatenate(part) for part in zip(*boxes, strict=True)) if boxes else (flat.start, flat.end)
        times, lanes = analysis.levels(start, end, np.ones(len(start)))
        ran = np.flatnonzero(flat.ended)
        many = lanes > 1
        beside = analysis.elapsed(times, many, flat.end[ran]) - analysis.elapsed(times, many, flat.start[ran])
        hidden, spent = np.zeros(len(flat.operators), np.int64), np.zeros(len(flat.operators), np.int64)
        np.add.at(hidden, flat.operator[ran], beside)
        np.add.at(spent, flat.operator[ran], flat.lasted_ns[ran])
        rows = zip(flat.operators, (spent - hidden).tolist(), hidden.tolist(), strict=True)
        found = [OperatorOverlap(name, alone, with_others, could.get(name, ())) for name, alone, with_others in rows]
        return tuple(sorted(found, key=lambda row: -row.exclusive_ns))

    @property
    def data(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        return {
            "streams_seconds": list(self.streams),
            "pairs_seconds": {" beside ".join(pair): seconds for pair, seconds in self.pairs.items()},
            "operators": [asdict(row) for row in self.operators],
        }

    def shares(self) -> list[str]:
        """Each figure that is not zero as a share of the makespan, in words."""
        whole = sum(self.streams) or 1.0
        named = [(units.counted(count, "stream"), seconds) for count, seconds in enumerate(self.streams)]
        named += [(f"{a} beside {b}", seconds) for (a, b), seconds in self.pairs.items()]
        return [f"{name} {units.percent(seconds / whole)}" for name, seconds in named if seconds > 1e-9 * whole]

    def __str__(self) -> str:
        return "   ".join(self.shares())

    def table(self) -> str:
        """A row an operator, then what it could have run beside and why it did not."""
        rows = [
            (
                units.plain(row.operator, 32),
                *(
                    units.duration(ns / 1e9)
                    for ns in (row.exclusive_ns + row.hidden_ns, row.exclusive_ns, row.hidden_ns)
                ),
            )
            for row in self.operators
        ]
        lines = units.table(("", "in all", "alone", "beside others"), rows, most=SHOWN)
        pairs = {frozenset((row.operator, could.other)): could for row in self.operators for could in row.could}
        if not self.timeline.flat.knows_needs.any():
            lines.append("what could still overlap is not known: nothing says what needs what")
        never = [
            (
                " and ".join(units.plain(name, 32) for name in sorted(pair)),
                units.duration(could.possible_ns / 1e9),
                could.why,
            )
            for pair, could in sorted(pairs.items(), key=lambda item: -item[1].possible_ns)
        ]
        return "\n".join([*lines, *(units.table(("never at once", "up to", "since"), never) if never else ())])


def overlap(timeline: Timeline) -> Overlap:
    """How long 0, 1, 2, ... streams, and each pair of resources, were busy at once."""
    starts: dict[str, list[Array]] = {resource: [np.empty(0)] for resource in RESOURCES}
    ends: dict[str, list[Array]] = {resource: [np.empty(0)] for resource in RESOURCES}
    for stream, (start, end) in analysis.busy(timeline, timeline.start, timeline.end).items():
        resource = stream if stream in ENGINES else SMS
        starts[resource].append(start)
        ends[resource].append(end)
    times = np.unique(np.concatenate([*chain(*starts.values()), *chain(*ends.values())]))
    seconds = np.diff(times, append=times[-1:])
    running = {resource: _open_at(times, starts[resource], ends[resource]) for resource in RESOURCES}
    together = np.bincount(sum(running.values()), seconds, 1).tolist()
    together[0] = max(0.0, timeline.makespan - sum(together[1:]))
    pairs = {(SMS, SMS): float(seconds[running[SMS] > 1].sum())}
    for a, b in combinations(RESOURCES, 2):
        pairs[a, b] = float(seconds[(running[a] > 0) & (running[b] > 0)].sum())
    return Overlap(timeline, tuple(together), pairs)


def _open_at(times: Array, starts: list[Array], ends: list[Array]) -> Array:
    """How many boxes are open right after each time."""
    began, over = np.sort(np.concatenate(starts)), np.sort(np.concatenate(ends))
    return np.searchsorted(began, times, "right") - np.searchsorted(over, times, "right")
