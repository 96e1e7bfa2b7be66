"""What a timeline says: how busy every resource was, how much ran at once, where it left its plan.

All of it is sums of boxes: a box is a weight between a start and an end. Activities that never ended count for nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nanort.partition import ENGINES
from nanort.timeline import units

if TYPE_CHECKING:
    from nanort.timeline.events import Timeline

Array = npt.NDArray[Any]  # float64 seconds, or int64 nanoseconds
SMS = "sms"
RESOURCES = (SMS, *ENGINES)
ROWS, NAMES = 12, 6  # of a comparison, that print


def column(timeline: Timeline, name: str) -> npt.NDArray[np.float64]:
    """One field of every activity as an array."""
    return np.fromiter(map(attrgetter(name), timeline.activities), np.float64, len(timeline))


def grouped(keys: Sequence[Hashable]) -> Iterator[tuple[Any, npt.NDArray[np.int64]]]:
    """Every distinct key with the indices at which it stands."""
    places: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        places[key].append(index)
    for key, indices in places.items():
        yield key, np.array(indices)


def levels(start: Array, end: Array, weight: Array) -> tuple[Array, Array]:
    """Times at which a sum of boxes changes, and the sum from each time on; the last is exactly 0."""
    times, where = np.unique(np.concatenate((start, end)), return_inverse=True)
    sums = np.cumsum(np.bincount(where, np.concatenate((weight, -weight)), len(times)))
    open_boxes = np.cumsum(np.bincount(where, np.repeat((1, -1), len(start)), len(times)))
    sums[open_boxes == 0] = 0.0  # where nothing runs, no rounding error may stay behind
    return times, sums


def merged(start: Array, end: Array) -> tuple[Array, Array]:
    """The disjoint intervals that the boxes cover."""
    times, running = levels(start, end, np.ones(len(start)))
    edges = np.diff((running > 0).astype(np.int8), prepend=0)
    return times[edges > 0], times[edges < 0]


def sms_in_use(timeline: Timeline, start: Array, end: Array) -> tuple[Array, Array]:
    """Times and the SMs in use from each on; lanes of one group share its SMs, so they count once."""
    sms = column(timeline, "sms")
    boxes: list[tuple[Array, Array, Array]] = []
    for _, group in grouped([a.group or a.stream for a in timeline.activities]):
        ran = group[~np.isnan(timeline.end[group])]
        times, held = levels(start[ran], end[ran], sms[ran])
        boxes.append((times[:-1], times[1:], np.minimum(held, sms[group].max())[:-1]))
    if not boxes:
        return np.empty(0), np.empty(0)
    starts, ends, held = (np.concatenate(part) for part in zip(*boxes, strict=True))
    times, total = levels(starts, ends, held)
    return times, np.minimum(total, timeline.sm_capacity or np.inf)


def stream_sms(timeline: Timeline) -> dict[str, int]:
    """The SMs of each stream: the most that one of its activities may hold; 0 for a copy engine."""
    sms = dict.fromkeys(timeline.streams, 0)
    for activity in timeline.activities:
        sms[activity.stream] = max(sms[activity.stream], activity.sms)
    return sms


def utilization(timeline: Timeline) -> dict[str, float]:
    """How much of what there was has been used, 0 to 1.

    ``"sms"`` is SM-seconds held, ``"hbm"``, ``"h2d"`` and ``"d2h"`` are bytes moved, over makespan times capacity; a
    resource whose capacity is not known is left out. ``"busy g0"`` is the share of the makespan in which stream g0 ran
    something.
    """
    makespan = timeline.makespan
    ended = ~np.isnan(timeline.end)
    times, held = sms_in_use(timeline, timeline.start, timeline.end)
    used = {SMS: (float(held[:-1] @ np.diff(times)), float(timeline.sm_capacity))}
    for name in ("hbm", *ENGINES):
        used[name] = (float(column(timeline, f"{name}_bytes")[ended].sum()), getattr(timeline, f"{name}_bandwidth"))
    shares = {name: amount / (makespan * most) if makespan else 0.0 for name, (amount, most) in used.items() if most}
    for stream, seconds in idle(timeline).items():
        shares[f"busy {stream}"] = 1 - seconds / makespan if makespan else 0.0
    return shares


def idle(timeline: Timeline) -> dict[str, float]:
    """Seconds of the makespan in which each stream ran nothing."""
    busy = {stream: float((end - start).sum()) for stream, (start, end) in _busy(timeline).items()}
    return {stream: max(0.0, timeline.makespan - busy[stream]) for stream in timeline.streams}


def _busy(timeline: Timeline) -> dict[str, tuple[Array, Array]]:
    """The disjoint intervals in which each stream ran something."""
    busy = {}
    for stream, indices in grouped([activity.stream for activity in timeline.activities]):
        ran = indices[~np.isnan(timeline.end[indices])]
        busy[stream] = merged(timeline.start[ran], timeline.end[ran])
    return busy


@dataclass(frozen=True, slots=True)
class Overlap:
    """How much ran at once, in seconds.

    Attributes:
        streams: ``streams[k]`` is how long exactly ``k`` streams were busy; they add up to the makespan.
        pairs: how long two resources were busy together: ``("sms", "h2d")``, ``("sms", "d2h")``, ``("h2d", "d2h")``,
            and ``("sms", "sms")`` for two or more streams that hold SMs.
    """

    streams: tuple[float, ...]
    pairs: dict[tuple[str, str], float]

    def shares(self) -> list[str]:
        """Each figure that is not zero as a share of the makespan, in words."""
        whole = sum(self.streams) or 1.0
        named = [(units.counted(count, "stream"), seconds) for count, seconds in enumerate(self.streams)]
        named += [(f"{a} beside {b}", seconds) for (a, b), seconds in self.pairs.items()]
        return [f"{name} {units.percent(seconds / whole)}" for name, seconds in named if seconds > 1e-9 * whole]

    def __str__(self) -> str:
        return "   ".join(self.shares())


def overlap(timeline: Timeline) -> Overlap:
    """How long 0, 1, 2, ... streams, and each pair of resources, were busy at once."""
    starts: dict[str, list[Array]] = {resource: [np.empty(0)] for resource in RESOURCES}
    ends: dict[str, list[Array]] = {resource: [np.empty(0)] for resource in RESOURCES}
    for stream, (start, end) in _busy(timeline).items():
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
    return Overlap(tuple(together), pairs)


def _open_at(times: Array, starts: list[Array], ends: list[Array]) -> Array:
    """How many boxes are open right after each time."""
    began, over = np.sort(np.concatenate(starts)), np.sort(np.concatenate(ends))
    return np.searchsorted(began, times, "right") - np.searchsorted(over, times, "right")


@dataclass(frozen=True, slots=True)
class Deviation:
    """One activity's seconds as planned and as they were."""

    name: str
    planned_seconds: float
    actual_seconds: float

    @property
    def ratio(self) -> float:
        """Actual over planned: above 1 it was slower."""
        return _ratio(self.actual_seconds, self.planned_seconds)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run beside its plan; prints as a table.

    Attributes:
        rows: the activities of both, most seconds off the plan first; activities of one name are added up.
        planned_makespan, actual_makespan: seconds.
        missing: names that the plan has and the run did not finish.
        extra: names that ran and that the plan does not have.
        foreign: whether the plan was made for another device, so that ratios say nothing.
    """

    rows: tuple[Deviation, ...]
    planned_makespan: float
    actual_makespan: float
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    foreign: bool

    @property
    def ratio(self) -> float:
        """Actual over planned makespan."""
        return _ratio(self.actual_makespan, self.planned_makespan)

    def __str__(self) -> str:
        makespan = Deviation("makespan", self.planned_makespan, self.actual_makespan)
        table = [("", "planned", "actual", "ratio"), *map(_cells, (makespan, *self.rows[:ROWS]))]
        wide = [max(map(len, cells)) for cells in zip(*table, strict=True)]
        lines = [f"{n:<{wide[0]}}  {p:>{wide[1]}}  {a:>{wide[2]}}  {r:>{wide[3]}}" for n, p, a, r in table]
        if len(self.rows) > ROWS:
            lines.append(f"... and {len(self.rows) - ROWS} more, nearer to their plan")
        for what, names in (("planned but not finished", self.missing), ("not planned", self.extra)):
            if names:
                more = f", and {len(names) - NAMES} more" if len(names) > NAMES else ""
                lines.append(f"{what}: {', '.join(units.plain(name, 48) for name in names[:NAMES])}{more}")
        if self.foreign:
            lines.append("the plan was made for another device: the ratios say nothing about it")
        return "\n".join(lines)


def compare(actual: Timeline, plan: Timeline) -> Comparison:
    """``actual`` beside ``plan``, matched by name."""
    was, planned = _seconds_by_name(actual), _seconds_by_name(plan)
    rows = [Deviation(name, planned[name], was[name]) for name in planned if name in was]
    rows.sort(key=lambda row: abs(row.actual_seconds - row.planned_seconds), reverse=True)
    return Comparison(
        rows=tuple(rows),
        planned_makespan=plan.makespan,
        actual_makespan=actual.makespan,
        missing=tuple(name for name in planned if name not in was),
        extra=tuple(name for name in was if name not in planned),
        foreign=actual.foreign or plan.foreign,
    )


def _seconds_by_name(timeline: Timeline) -> dict[str, float]:
    seconds: defaultdict[str, float] = defaultdict(float)
    for activity, ran in zip(timeline.activities, (timeline.end - timeline.start).tolist(), strict=True):
        if not math.isnan(ran):
            seconds[activity.name] += ran
    return seconds


def _ratio(actual: float, planned: float) -> float:
    if planned:
        return actual / planned
    return math.inf if actual else 1.0


def _cells(row: Deviation) -> tuple[str, str, str, str]:
    planned, actual = units.duration(row.planned_seconds), units.duration(row.actual_seconds)
    return units.plain(row.name, 48), planned, actual, f"{row.ratio:.2f}x"
