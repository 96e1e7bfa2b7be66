"""Random timelines, and their parts, for the tests of nanort.timeline."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
from hypothesis import strategies as st

from hostile import HOSTILE
from nanort.timeline.activities import Activity
from nanort.timeline.events import KINDS, Timeline

GROUPS = {"g0": "g0", "g0.1": "g0", "g1": "g1", "h2d": "", "d2h": ""}
CAPACITY: dict[str, Any] = {
    "kind": "measured",
    "device": "h200",
    "sm_capacity": 16,
    "hbm_bandwidth": 4e9,
    "h2d_bandwidth": 1e9,
    "d2h_bandwidth": 1e9,
}
names = st.sampled_from(HOSTILE) | st.text(max_size=8)
work = st.integers(0, 1000).map(float)


@st.composite
def activities(draw: st.DrawFn, index: int) -> Activity:
    """One activity that may wait for any of those before it."""
    stream = draw(st.sampled_from(sorted(GROUPS)))
    waited = st.tuples(st.integers(0, index - 1), st.sampled_from(("data", "state", "resource", "after")))
    return Activity(
        name=draw(names),
        operator=draw(st.sampled_from(("linear", "decode_attention", "rms_norm", *HOSTILE))),
        stream=stream,
        group=GROUPS[stream],
        sms=draw(st.sampled_from((4, 12))) if GROUPS[stream] else 0,
        flops=draw(work),
        hbm_bytes=draw(work),
        h2d_bytes=draw(work),
        d2h_bytes=draw(work),
        piece=draw(st.integers(0, 3)),
        bound=draw(st.sampled_from(("", "compute", "memory"))),
        scope=draw(
            st.dictionaries(names, st.none() | st.booleans() | st.integers() | names, max_size=2).map(
                lambda d: tuple(d.items())
            )
        ),
        needs=draw(st.none() | st.sets(st.integers(0, index - 1), max_size=3).map(tuple)) if index else (),
        waits=tuple(draw(st.lists(waited, max_size=2))) if index else (),
        where=draw(names),
    )


@st.composite
def timelines(draw: st.DrawFn, *, longest: int = 30, partial: bool = True) -> Timeline:
    """A timeline whose times are whole nanoseconds; some activities never started or never ended."""
    made = [draw(activities(index)) for index in range(draw(st.integers(0, 12)))]
    start = np.array([draw(st.integers(0, longest)) for _ in made], dtype=float)
    end = np.array([begin + draw(st.integers(0, longest)) for begin in start], dtype=float)
    if partial:
        reached = np.array([draw(st.sampled_from((2, 2, 2, 1, 0))) for _ in made])
        start[reached < 1], end[reached < 2] = np.nan, np.nan
    about = CAPACITY | {"kind": draw(st.sampled_from(KINDS)), "foreign": draw(st.booleans()), "failure": draw(names)}
    return Timeline(made, start / 1e9, end / 1e9, **about)


def played(plan: Timeline, rng: random.Random, *, stopped: bool = False) -> Timeline:
    """A run of ``plan`` in a few hundred nanoseconds that keeps its needs, waits and lanes; or the start of one."""
    start, end = list[float](), list[float]()
    free: dict[str, float] = {}
    for activity in plan.activities:  # of a schedule, they come in an order that can run
        awaited = [end[index] for index in (*(activity.needs or ()), *(index for index, _ in activity.waits))]
        start.append(max([free.get(activity.stream, 0), *awaited]) + rng.choice((0, 0, 1, 5)))
        end.append(start[-1] + rng.randint(0, 6))
        free[activity.stream] = end[-1]
    cut = rng.randint(0, int(max(end, default=0))) if stopped else math.inf
    began = np.array([time if time <= cut else np.nan for time in start])
    ended = np.array([time if time <= cut else np.nan for time in end])
    return plan.with_times(began / 1e9, ended / 1e9, kind="measured")


def nanoseconds(timeline: Timeline) -> list[tuple[int, int] | None]:
    """Start and end of every activity that ended, in whole nanoseconds."""
    return [
        None if np.isnan(end) else (round(start * 1e9), round(end * 1e9))
        for start, end in zip(timeline.start, timeline.end, strict=True)
    ]
