"""The critical path of a timeline: what ran, or did not, at each nanosecond for which the makespan had to wait."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from nanort.timeline import units
from nanort.timeline.flat import NEED, STREAM, UNKNOWN_NEEDS, Flat
from nanort.timeline.whatif import Replay, WhatIf

if TYPE_CHECKING:
    from nanort.timeline.events import Timeline

START, GAP = "start", "launch gap"
ASKED = 8
"""Operators of the path, those with most time on it, that are asked what if they were faster."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the critical path.

    Attributes:
        index: the activity that ran, -1 where none did.
        start_ns, end_ns: from when to when.
        reason: why the activity could not start earlier: the reason of the wait for the one before it on the path,
            ``"need"`` for an edge that needs no wait, ``"stream"`` for its turn on its lane, ``"start"`` if nothing was
            before it. ``"launch gap"`` where nothing ran: all that was waited for had ended.
    """

    index: int
    start_ns: int
    end_ns: int
    reason: str


@dataclass(frozen=True)
class CriticalPath:
    """Segments from zero to the makespan, each from the end of the one before it; prints as a table by operator."""

    timeline: Timeline
    segments: tuple[Segment, ...]

    @property
    def makespan_ns(self) -> int:
        """Its length: the makespan in whole nanoseconds."""
        return self.segments[-1].end_ns if self.segments else 0

    @cached_property
    def operators(self) -> dict[str, int]:
        """Nanoseconds on the path by operator, the most first; ``""`` for the gaps."""
        spent: dict[str, int] = {}
        for segment in self.segments:
            name = self.timeline.activities[segment.index].operator if segment.index >= 0 else ""
            spent[name] = spent.get(name, 0) + segment.end_ns - segment.start_ns
        return dict(sorted(spent.items(), key=lambda item: -item[1]))

    @cached_property
    def replay(self) -> Replay:
        """What plays the timeline again with other durations."""
        return Replay.of(self.timeline.flat)

    def what_if(self, operator: str, factor: float = 2.0) -> WhatIf:
        """The makespan if ``operator`` were ``factor`` times as fast, and nothing else changed.

        Every activity keeps what it needs, what it waits for, its turn on its lane, and its launch gap: the time that
        passed between the last of those and its start. What runs beside it neither slows down nor speeds up:
        ``schedule.explain()`` asks the simulator, which shares out bandwidth anew.

        Raises:
            TimelineError: there is no such operator, or the factor is not a number above zero.
        """
        return self.replay.what_if(operator, factor)

    def what_ifs(self, factor: float = 2.0, most: int = ASKED) -> tuple[WhatIf, ...]:
        """The answer for each of the ``most`` operators that take most of the path, the largest gain first."""
        asked = [operator for operator in self.operators if operator][:most]
        return tuple(sorted((self.what_if(name, factor) for name in asked), key=lambda answer: answer.makespan_ns))

    @property
    def data(self) -> dict[str, Any]:
        """All of it as JSON can hold it; a segment is [name or "", first nanosecond, last, reason]."""
        activities = self.timeline.activities
        return {
            "makespan_ns": self.makespan_ns,
            "operators": self.operators,
            "what_if": [asdict(answer) for answer in self.what_ifs()],
            "segments": [
                [activities[s.index].name if s.index >= 0 else "", s.start_ns, s.end_ns, s.reason]
                for s in self.segments
            ],
        }

    def __str__(self) -> str:
        whole = self.makespan_ns
        gains = {answer.operator: units.change(answer.change) for answer in self.what_ifs()}
        counts: dict[str, int] = {}
        for segment in self.segments:
            name = self.timeline.activities[segment.index].operator if segment.index >= 0 else ""
            counts[name] = counts.get(name, 0) + 1
        rows = [
            (
                units.plain(name, 40) if name else GAP,
                f"{counts[name]:,}",
                units.duration(spent / 1e9),
                units.percent(spent / whole if whole else 0.0),
                gains.get(name, "" if name else "-"),
            )
            for name, spent in self.operators.items()
        ]
        head = f"critical path: {units.duration(whole / 1e9)}, {units.counted(len(self.segments), 'segment')}"
        lines = [head, *units.table(("", "count", "on the path", "share", "2x as fast"), rows, most=16)]
        return "\n".join(lines if self.timeline.flat.knows_needs.all() else [*lines, UNKNOWN_NEEDS])


def critical_path(timeline: Timeline) -> CriticalPath:
    """Back from what ended last, always to the last to end of all that an activity had to wait for."""
    flat = timeline.flat
    if not flat.began.any():
        return CriticalPath(timeline, ())
    blockers = flat.blockers()
    last, who = blockers.latest(flat.end)
    known = np.where(flat.ended, flat.end, np.where(flat.began, flat.start, -1))
    segments: list[Segment] = []
    at, until = int(np.argmax(known)), flat.makespan_ns
    while at >= 0:
        start, blocker = int(flat.start[at]), int(who[at])
        segments.append(Segment(at, start, until, _reason(timeline, flat, at, blocker)))
        ended = min(int(last[at]), start)
        if ended < start:
            segments.append(Segment(-1, ended, start, GAP))
        at, until = blocker, ended
    return CriticalPath(timeline, tuple(reversed(segments)))


def _reason(timeline: Timeline, flat: Flat, index: int, blocker: int) -> str:
    """Why activity ``index`` had to wait for ``blocker``."""
    if blocker < 0:
        return START
    activity = timeline.activities[index]
    waited = next((reason for on, reason in activity.waits if on == blocker), "")
    return waited or (NEED if blocker in (activity.needs or ()) else STREAM)
