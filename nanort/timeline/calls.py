"""The calls by which a host would have launched what ran, in order: nobody timed them, but tools ask for them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from nanort.partition import ENGINES
from nanort.timeline.activities import Activity
from nanort.timeline.tracks import Arrow, Tracks

if TYPE_CHECKING:
    from nanort.timeline.events import Timeline

LAUNCHES = ("cudaLaunchKernel", "cudaMemcpyAsync")
RECORD, WAIT = "cudaEventRecord", "cudaStreamWaitEvent"


class Call(NamedTuple):
    """A call, and the number that it shares with what it started; a wait has the arrow that it stands for."""

    name: str
    correlation: int
    arrow: Arrow | None = None


def calls(timeline: Timeline, drawn: Tracks) -> Iterator[Call]:
    """For each activity that ran: its waits, its launch, and the event that others wait for."""
    launches = len(timeline)
    recorded = {arrow.waited for arrow in drawn.arrows}
    arrows, waits = iter(drawn.arrows), count(2 * launches + 1)
    arrow = next(arrows, None)
    for index in sorted(drawn.lane):
        while arrow is not None and arrow.index == index:
            yield Call(WAIT, next(waits), arrow)
            arrow = next(arrows, None)
        yield Call(LAUNCHES[is_copy(timeline.activities[index])], launched(index))
        if index in recorded:
            yield Call(RECORD, record(timeline, index))


def launched(index: int) -> int:
    """The number that an activity shares with its launch: above zero, which tools take for none."""
    return index + 1


def record(timeline: Timeline, index: int) -> int:
    """The number of the call that records the event after this activity."""
    return len(timeline) + index + 1


def is_copy(activity: Activity) -> bool:
    """Whether a copy engine carried it."""
    moved = activity.h2d_bytes or activity.d2h_bytes
    return activity.stream in ENGINES or bool(moved and not activity.sms)
