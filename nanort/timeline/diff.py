"""What differs between two timelines, aligned by node."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nanort.timeline import analysis, units
from nanort.timeline.flat import Ints

if TYPE_CHECKING:
    from nanort.timeline.events import Timeline

ROWS, NAMES = 12, 6  # that print
GAPS = "launch gaps"
Sums = Iterable[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Change:
    """Nanoseconds of one thing here and there."""

    name: str
    here_ns: int
    there_ns: int

    @property
    def by_ns(self) -> int:
        """How much more there is there than here."""
        return self.there_ns - self.here_ns


@dataclass(frozen=True, slots=True)
class Diff:
    """What another timeline has otherwise than this one; false where that is nothing. Prints as tables.

    Only what differs is in it, the largest difference first.

    Attributes:
        makespan: of both.
        path: what the difference of the makespans is made of: nanoseconds on each critical path, by operator and for
            its launch gaps; their differences add up to that of the makespans.
        operators: the time of all activities of an operator.
        lanes: the time in which a stream ran something.
        activities: those of both that took another time.
        shifted: how many activities of both ran at another time.
        moved: names of those on another stream, or with other SMs.
        missing: names that only this one has.
        extra: names that only the other has.
    """

    makespan: Change
    path: tuple[Change, ...]
    operators: tuple[Change, ...]
    lanes: tuple[Change, ...]
    activities: tuple[Change, ...]
    shifted: int
    moved: tuple[str, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]

    @property
    def data(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        return asdict(self)

    def __bool__(self) -> bool:
        differs = self.makespan.by_ns or self.operators or self.shifted or self.moved or self.missing or self.extra
        return bool(differs)

    def __str__(self) -> str:
        if not self:
            return "no difference"
        lines = units.table(("", "here", "there", "there - here"), [_cells(self.makespan)])
        for what, changes in (
            ("on the critical path", self.path),
            ("by operator", self.operators),
            ("by stream", self.lanes),
            ("by activity", self.activities),
        ):
            if changes:
                lines += [
                    "",
                    *units.table((what, "here", "there", "there - here"), list(map(_cells, changes)), most=ROWS),
                ]
        lines += ["", f"at another time: {units.counted(self.shifted, 'launch')}"] if self.shifted else []
        for what, names in (
            ("on another stream, or with other SMs", self.moved),
            ("only here", self.missing),
            ("only there", self.extra),
        ):
            if names:
                lines.append(f"{what}: {units.listed(names, NAMES)}")
        return "\n".join(lines)


def diff(here: Timeline, there: Timeline) -> Diff:
    """What ``there`` has otherwise than ``here``."""
    mine, theirs = aligned(here, there)
    one, other = here.flat, there.flat
    shifted = (one.start[mine] != other.start[theirs]) | (one.end[mine] != other.end[theirs])
    longer = one.lasted_ns[mine] != other.lasted_ns[theirs]
    pairs = list(zip(mine.tolist(), theirs.tolist(), strict=True))
    moved = (
        here.activities[a].name
        for a, b in pairs
        if (here.activities[a].stream, here.activities[a].sms) != (there.activities[b].stream, there.activities[b].sms)
    )
    return Diff(
        makespan=Change("makespan", one.makespan_ns, other.makespan_ns),
        path=_changes(here.critical_path().operators.items(), there.critical_path().operators.items(), GAPS),
        operators=_changes(_operators(here), _operators(there)),
        lanes=_changes(_lanes(here), _lanes(there)),
        activities=_largest(
            Change(
                here.activities[mine[place]].name,
                int(one.lasted_ns[mine[place]]),
                int(other.lasted_ns[theirs[place]]),
            )
            for place in np.flatnonzero(longer).tolist()
        ),
        shifted=int(shifted.sum()),
        moved=tuple(moved),
        missing=_others(here, mine),
        extra=_others(there, theirs),
    )


def aligned(here: Timeline, there: Timeline) -> tuple[Ints, Ints]:
    """The activities that both have, as indices into the one and into the other.

    Activities are one if they have one name; of those with the same name, the first to start here is the first to start
    there.
    """
    theirs = _places(there)
    pairs = [
        (index, match)
        for name, mine in _places(here).items()
        for index, match in zip(mine, theirs.get(name, ()), strict=False)
    ]
    columns = np.array(sorted(pairs), np.int64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def _places(timeline: Timeline) -> dict[str, list[int]]:
    """The activities of each name, in the order of their start."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for index in np.argsort(timeline.flat.start, kind="stable").tolist():
        found[timeline.activities[index].name].append(index)
    return found


def _others(timeline: Timeline, matched: Ints) -> tuple[str, ...]:
    """The names of what is not among the ``matched``."""
    left = np.setdiff1d(np.arange(len(timeline)), matched)
    return tuple(timeline.activities[index].name for index in left.tolist())


def _operators(timeline: Timeline) -> Sums:
    flat = timeline.flat
    return zip([flat.operators[place] for place in flat.operator.tolist()], flat.lasted_ns.tolist(), strict=True)


def _lanes(timeline: Timeline) -> Sums:
    intervals = analysis.busy(timeline, timeline.flat.start, timeline.flat.end)
    return ((stream, int((end - start).sum())) for stream, (start, end) in intervals.items())


def _changes(here: Sums, there: Sums, unnamed: str = "") -> tuple[Change, ...]:
    """What differs when both are added up by name."""
    sums: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    for side, rows in enumerate((here, there)):
        for name, spent in rows:
            sums[name][side] += spent
    return _largest(Change(name or unnamed, one, other) for name, (one, other) in sums.items() if one != other)


def _largest(changes: Iterable[Change]) -> tuple[Change, ...]:
    return tuple(sorted(changes, key=lambda change: -abs(change.by_ns)))


def _cells(change: Change) -> Sequence[str]:
    sign = "-" if change.by_ns < 0 else "+"
    here, there, by = (units.duration(spent / 1e9) for spent in (change.here_ns, change.there_ns, abs(change.by_ns)))
    return units.plain(change.name, 48), here, there, f"{sign}{by}"
