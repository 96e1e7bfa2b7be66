"""What a viewer of traces draws of a timeline: lanes on which nothing overlaps, arrows along waits, and counters."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nanort.timeline import analysis, units
from nanort.timeline.flat import NEVER

if TYPE_CHECKING:
    from nanort.timeline.events import Timeline

COUNTERS = {
    "sms": ("SMs", "in use", 1.0),
    "flops": ("Compute", "TFLOP/s", 1e12),
    "hbm": ("HBM", "GB/s", 1e9),
    "h2d": ("PCIe down", "GB/s", 1e9),
    "d2h": ("PCIe up", "GB/s", 1e9),
}
"""What each curve of a timeline is called, its unit, and the size of that."""


@dataclass(frozen=True, slots=True)
class Lane:
    """A stream, or a further row of it: where activities of one stream overlap, each row holds those that do not."""

    stream: str
    number: int
    title: str


@dataclass(frozen=True, slots=True)
class Arrow:
    """A wait of which both sides ran; it leaves within the slice of what was waited for, at ``leaves_ns``."""

    waited: int
    index: int
    reason: str
    leaves_ns: int


@dataclass(frozen=True, slots=True)
class Tracks:
    """Where everything is drawn.

    Attributes:
        lanes: from top to bottom.
        lane: the place among them of each activity that ran, in order of start.
        arrows: in the order of the activities that waited.
    """

    lanes: tuple[Lane, ...]
    lane: dict[int, int]
    arrows: tuple[Arrow, ...]


def tracks(timeline: Timeline) -> Tracks:
    """The lanes and arrows of ``timeline``."""
    start, end = timeline.flat.start.tolist(), timeline.flat.end.tolist()
    rows = _rows(timeline, start, end)
    most = dict.fromkeys(timeline.streams, 0)
    for index, row in rows.items():
        stream = timeline.activities[index].stream
        most[stream] = max(most[stream], row)
    sms = analysis.stream_sms(timeline)
    lanes: list[Lane] = []
    first: dict[str, int] = {}
    for stream, last in most.items():
        first[stream] = len(lanes)
        for row in range(last + 1):
            words = (stream, units.sms(sms[stream], timeline.device), f"+{row}" if row else "")
            lanes.append(Lane(stream, row, "  ".join(filter(None, words))))
    lane = {index: first[timeline.activities[index].stream] + row for index, row in rows.items()}
    return Tracks(tuple(lanes), lane, tuple(_arrows(timeline, start, end)))


def _rows(timeline: Timeline, start: list[int], end: list[int]) -> dict[int, int]:
    """The first row of its stream that is free, for each activity in order of start."""
    order = np.lexsort((timeline.flat.end, timeline.flat.start)).tolist()
    free: dict[str, list[int]] = {stream: [0] for stream in timeline.streams}
    busy: dict[str, list[tuple[int, int]]] = {stream: [] for stream in timeline.streams}
    chosen = {}
    for index in order:
        if start[index] == NEVER:
            break
        idle, taken = free[timeline.activities[index].stream], busy[timeline.activities[index].stream]
        while taken and taken[0][0] <= start[index]:
            heapq.heappush(idle, heapq.heappop(taken)[1])
        chosen[index] = heapq.heappop(idle) if idle else len(taken)
        heapq.heappush(taken, (max(end[index], start[index] + 1), chosen[index]))  # one of no length needs room too
    return chosen


def _arrows(timeline: Timeline, start: list[int], end: list[int]) -> Iterator[Arrow]:
    for index, activity in enumerate(timeline.activities):
        if activity.waits and start[index] != NEVER:
            for waited, reason in activity.waits:
                if end[waited] != NEVER:
                    # At its very end, the next slice of the lane is the one that encloses it.
                    leaves = max(start[waited], min(end[waited] - 1, start[index]))
                    yield Arrow(waited, index, reason, leaves)


def counters(timeline: Timeline) -> Iterator[tuple[str, str, list[int], list[float]]]:
    """Name, unit, the nanoseconds at which it changes, and the value from each on, of what the device's curves tell."""
    curves = timeline.curves()
    for key, (name, unit, size) in COUNTERS.items():
        curve = curves[key]
        values = np.round(curve.values / size, 3)
        changes = np.flatnonzero(np.diff(values, prepend=0.0))
        yield name, unit, curve.times_ns[changes].tolist(), values[changes].tolist()
