"""A run beside its plan: what took longer than planned, by activity and by operator."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from nanort.timeline import units

if TYPE_CHECKING:
    from nanort.timeline.events import Timeline

ROWS, NAMES = 12, 6  # that print


@dataclass(frozen=True, slots=True)
class Deviation:
    """The seconds of an activity, or of an operator, as planned and as they were."""

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
        operators: the same activities by operator.
        planned_makespan, actual_makespan: seconds.
        missing: names that the plan has and the run did not finish.
        extra: names that ran and that the plan does not have.
        foreign: whether the plan was made for another device, so that ratios say nothing.
    """

    rows: tuple[Deviation, ...]
    operators: tuple[Deviation, ...]
    planned_makespan: float
    actual_makespan: float
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    foreign: bool

    @property
    def ratio(self) -> float:
        """Actual over planned makespan."""
        return _ratio(self.actual_makespan, self.planned_makespan)

    @property
    def data(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        return asdict(self)

    def __str__(self) -> str:
        makespan = Deviation("makespan", self.planned_makespan, self.actual_makespan)
        lines = units.table(
            ("", "planned", "actual", "ratio"), list(map(_cells, (makespan, *self.rows))), most=ROWS + 1
        )
        if len(self.rows) > ROWS:
            lines[-1] = f"... {lines[-1]}, nearer to their plan"
        if len(self.operators) < len(self.rows):
            lines += [
                "",
                *units.table(("by operator", "planned", "actual", "ratio"), list(map(_cells, self.operators))),
            ]
        for what, names in (("planned but not finished", self.missing), ("not planned", self.extra)):
            if names:
                lines.append(f"{what}: {units.listed(names, NAMES)}")
        if self.foreign:
            lines.append("the plan was made for another device: the ratios say nothing about it")
        return "\n".join(lines)


def compare(actual: Timeline, plan: Timeline) -> Comparison:
    """``actual`` beside ``plan``, matched by name."""
    planned, was = _finished(plan), _finished(actual)
    both = planned.keys() & was.keys()
    operator = {activity.name: activity.operator for activity in plan.activities}
    return Comparison(
        rows=_deviations((name, planned[name], was[name]) for name in planned if name in both),
        operators=_deviations((operator[name], planned[name], was[name]) for name in planned if name in both),
        planned_makespan=plan.makespan,
        actual_makespan=actual.makespan,
        missing=tuple(name for name in planned if name not in was),
        extra=tuple(name for name in was if name not in planned),
        foreign=actual.foreign or plan.foreign,
    )


def _finished(timeline: Timeline) -> dict[str, float]:
    """Seconds by name, of what ended."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for activity, ran in zip(timeline.activities, (timeline.end - timeline.start).tolist(), strict=True):
        if not math.isnan(ran):
            seconds[activity.name] += ran
    return seconds


def _deviations(rows: Iterable[tuple[str, float, float]]) -> tuple[Deviation, ...]:
    """Planned and actual seconds added up by name, the furthest off first."""
    planned, actual = defaultdict[str, float](float), defaultdict[str, float](float)
    for name, plan, was in rows:
        planned[name] += plan
        actual[name] += was
    found = [Deviation(name, planned[name], actual[name]) for name in planned]
    return tuple(sorted(found, key=lambda row: abs(row.actual_seconds - row.planned_seconds), reverse=True))


def _ratio(actual: float, planned: float) -> float:
    if planned:
        return actual / planned
    return math.inf if actual else 1.0


def _cells(row: Deviation) -> tuple[str, str, str, str]:
    planned, actual = units.duration(row.planned_seconds), units.duration(row.actual_seconds)
    return units.plain(row.name, 48), planned, actual, f"{row.ratio:.2f}x"
