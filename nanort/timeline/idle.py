"""Idle time by cause: what each lane waited for in every nanosecond in which it ran nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from nanort.partition import ENGINES
from nanort.timeline import analysis, units
from nanort.timeline.flat import UNKNOWN_NEEDS, Flat, Ints

if TYPE_CHECKING:
    from nanort.timeline.events import Timeline

CAUSES = DEPENDENCY, HELD, GAP, QUEUE, UNFINISHED, NOTHING = (
    "dependency",
    "resource",
    "launch gap",
    "copy queue",
    "unfinished",
    "nothing left",
)
LAST, STUCK = -1, -2
"""What ends a gap where no activity does."""


@dataclass(frozen=True, slots=True)
class Idle:
    """Nanoseconds in which each lane ran nothing, by cause; prints as a table.

    ``dependency``: what the lane's next activity needs, or was told to wait for, had not ended.
    ``copy queue``: that was a copy, ready to go, behind others on its copy engine.
    ``resource``: all of it had ended, but not what holds the SMs that it was to run on.
    ``launch gap``: nothing that is known of kept it from running.
    ``unfinished``: something began on the lane and its end is not known, as where a run failed.
    ``nothing left``: the lane's last activity had ended.

    Attributes:
        lanes: nanoseconds by stream and cause; with the time in which it ran they add up to the makespan.
        makespan_ns: of the timeline.
        knows_needs: whether it says of every activity what that needs.
    """

    lanes: dict[str, dict[str, int]]
    makespan_ns: int
    knows_needs: bool = True

    @property
    def causes(self) -> dict[str, int]:
        """Nanoseconds of all lanes by cause."""
        return {cause: sum(spent[cause] for spent in self.lanes.values()) for cause in CAUSES}

    @property
    def data(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        return {"makespan_ns": self.makespan_ns, "causes": self.causes, "lanes": self.lanes}

    def of(self, stream: str) -> int:
        """Nanoseconds in which ``stream`` ran nothing."""
        return sum(self.lanes[stream].values())

    def __str__(self) -> str:
        whole, causes = self.makespan_ns, self.causes
        seen = [cause for cause in CAUSES if causes[cause]]
        rows = [
            (units.plain(stream, 40), units.percent(self.of(stream) / whole if whole else 0.0), *_cells(spent, seen))
            for stream, spent in self.lanes.items()
        ]
        total = sum(causes.values())
        every = ("all", units.percent(total / (whole * len(rows)) if whole and rows else 0.0), *_cells(causes, seen))
        lines = units.table(("", "idle", *seen), [every, *rows], most=32)
        return "\n".join(lines if self.knows_needs else [*lines, UNKNOWN_NEEDS])


def _cells(spent: dict[str, int], causes: list[str]) -> list[str]:
    return [units.duration(spent[cause] / 1e9) if spent[cause] else "-" for cause in causes]


def idle(timeline: Timeline) -> Idle:
    """Each lane's time from zero to the makespan in which it ran nothing, shared out over the causes."""
    flat = timeline.flat
    spent = np.zeros((len(flat.lanes), len(CAUSES)), np.int64)
    gaps = _Gaps.of(flat)
    for cause, nanoseconds in zip(CAUSES, gaps.shared_out(timeline), strict=True):
        np.add.at(spent[:, CAUSES.index(cause)], gaps.lane, nanoseconds)
    lanes = {
        stream: dict(zip(CAUSES, row, strict=True)) for stream, row in zip(flat.lanes, spent.tolist(), strict=True)
    }
    return Idle(lanes, flat.makespan_ns, bool(flat.knows_needs.all()))


@dataclass(frozen=True, slots=True)
class _Gaps:
    """Spans in which a lane ran nothing.

    Attributes:
        lane: whose, as a place in ``flat.lanes``.
        start, end: nanoseconds.
        then: the activity that ended the span, or would have; ``LAST`` where the lane had none left,
            ``STUCK`` after the start of one that never ended.
    """

    lane: Ints
    start: Ints
    end: Ints
    then: Ints

    @staticmethod
    def of(flat: Flat) -> _Gaps:
        """All of a timeline's, in no order."""
        edges = np.searchsorted(flat.lane[flat.order], np.arange(len(flat.lanes) + 1)).tolist()
        nothing = (np.empty(0, np.int64),) * 4
        found = [_of_lane(flat, lane, flat.order[low:high]) for lane, (low, high) in enumerate(pairwise(edges))]
        columns = [np.concatenate(part) for part in zip(nothing, *chain(*found), strict=True)]
        real = columns[1] < columns[2]
        return _Gaps(*(column[real] for column in columns))

    def shared_out(self, timeline: Timeline) -> tuple[Ints, ...]:
        """The nanoseconds of every gap by cause, in the order of CAUSES."""
        flat, whole = timeline.flat, self.end - self.start
        waits = self.then >= 0
        then = np.where(waits, self.then, 0)
        ready, need = _latest(flat)
        told = flat.waits.latest(flat.end, flat.for_resources())[0]
        runs = np.clip(ready[then], self.start, self.end)
        queue = _overlap(self.start, runs, *_queued(flat, ready, need[then]))
        free = np.clip(told[then], runs, self.end)
        held = free - runs + _held(timeline, then, free, self.end)
        dependency = runs - self.start - queue
        waited = (dependency, held, whole - dependency - held - queue, queue)
        return (
            *(np.where(waits, nanoseconds, 0) for nanoseconds in waited),
            np.where(self.then == STUCK, whole, 0),
            np.where(self.then == LAST, whole, 0),
        )


def _of_lane(flat: Flat, lane: int, mine: Ints) -> Iterator[tuple[Ints, Ints, Ints, Ints]]:
    """The gaps between those that began, which end in one or at the makespan; then what is free beside the stuck."""
    began, never = mine[flat.began[mine]], mine[~flat.began[mine]]
    ran, stuck = began[flat.ended[began]], began[~flat.ended[began]]
    start, end = _between(flat.start[began], np.minimum(flat.end[began], flat.makespan_ns), flat.makespan_ns)
    yield np.full(len(start), lane), start, end, np.append(began, never[:1] if len(never) else LAST)
    start, end = _between(flat.start[ran], flat.end[ran], flat.makespan_ns)
    start = np.maximum(start, flat.start[stuck].min(initial=flat.makespan_ns))
    yield np.full(len(start), lane), start, end, np.full(len(start), STUCK)


def _between(start: Ints, end: Ints, makespan_ns: int) -> tuple[Ints, Ints]:
    """The spans before, between and after these, which come in the order of their start; some are empty."""
    return np.append(0, np.maximum.accumulate(end)), np.append(start, makespan_ns)


def _latest(flat: Flat) -> tuple[Ints, Ints]:
    """When all had ended that each activity needs, or waits for but not for resources; and which of it ended last."""
    ready, need = flat.needs.latest(flat.end)
    awaited, other = flat.waits.latest(flat.end, ~flat.for_resources())
    return np.maximum(ready, awaited), np.where(awaited > ready, other, need)


def _queued(flat: Flat, ready: Ints, copy: Ints) -> tuple[Ints, Ints]:
    """From when to when each ``copy``, where it is one and what it needs is known, stood behind another."""
    engines = np.array([stream in ENGINES for stream in flat.lanes], np.bool_)
    behind = flat.before[copy]
    real = (copy >= 0) & engines[flat.lane[copy]] & flat.knows_needs[copy] & (behind >= 0)
    until = np.minimum(flat.start[copy], flat.end[behind])
    return np.where(real, ready[copy], 0), np.where(real, until, 0)


def _held(timeline: Timeline, then: Ints, start: Ints, end: Ints) -> Ints:
    """The nanoseconds from ``start`` to ``end`` in which other groups held SMs that ``then`` was to run on."""
    held = np.zeros(len(then), np.int64)
    if not timeline.sm_capacity:
        return held
    flat, activities = timeline.flat, timeline.activities
    groups = analysis.group_sms(timeline, flat.start, flat.end)
    asks = [(activities[index].group or activities[index].stream, activities[index].sms) for index in then.tolist()]
    beside: dict[str, tuple[analysis.Array, analysis.Array]] = {}
    for (own, sms), mine in analysis.grouped(asks):
        others = [boxes for group, boxes in groups.items() if group != own]
        if sms and others:
            if own not in beside:
                beside[own] = analysis.levels(*(np.concatenate(part) for part in zip(*others, strict=True)))
            times, taken = beside[own]
            full = taken + sms > timeline.sm_capacity
            held[mine] = analysis.elapsed(times, full, end[mine]) - analysis.elapsed(times, full, start[mine])
    return held


def _overlap(start: Ints, end: Ints, since: Ints, until: Ints) -> Ints:
    """How much of each span lies between ``since`` and ``until``."""
    length: Ints = np.minimum(end, until) - np.maximum(start, since)
    return np.maximum(length, 0)
