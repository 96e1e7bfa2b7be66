"""Timelines one after the other, as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np

from nanort.errors import TimelineError
from nanort.timeline.events import CAPACITY, Activity, Timeline


def joined(parts: Sequence[Timeline], label: str, values: Sequence[object]) -> Timeline:
    """The parts as one timeline, each from where the one before ended, the time between them left out.

    Every activity's scope gets its part's value as ``label``; what needs nothing in its part needs all of the part
    before it. Plans are joined as well, where every part has one.

    Raises:
        TimelineError: there are none, or they are of several devices.
    """
    if len({part.device for part in parts}) != 1:
        raise TimelineError("only timelines of one device can be joined: give some of one device")
    starts = [0.0, *accumulate(part.makespan for part in parts)]
    firsts = [0, *accumulate(map(len, parts))]
    activities: list[Activity] = []
    before: tuple[int, ...] = ()
    for part, first, value in zip(parts, firsts, values, strict=False):  # one more ends the last
        activities += [_moved(activity, first, before, (label, value)) for activity in part.activities]
        needed = {need for activity in part.activities for need in activity.needs or ()}
        before = tuple(first + index for index in range(len(part)) if index not in needed) or before
    plans = [part.plan for part in parts if part.plan is not None]
    bounds = set.intersection(*(set(part.limits) for part in parts))
    return Timeline(
        activities,
        np.concatenate([part.start + since for part, since in zip(parts, starts, strict=False)]),
        np.concatenate([part.end + since for part, since in zip(parts, starts, strict=False)]),
        kind=parts[0].kind,
        device=parts[0].device,
        foreign=any(part.foreign for part in parts),
        failure=next(filter(None, (part.failure for part in parts)), ""),
        lost=sum(part.lost for part in parts),
        limits={name: sum(part.limits[name] for part in parts) for name in parts[0].limits if name in bounds},
        plan=joined(plans, label, values) if len(plans) == len(parts) else None,
        **{name: getattr(parts[0], name) for name in CAPACITY},
    )


def _moved(activity: Activity, by: int, before: tuple[int, ...], mark: tuple[str, object]) -> Activity:
    needs = None if activity.needs is None else tuple(need + by for need in activity.needs) or before
    waits = tuple((waited + by, reason) for waited, reason in activity.waits)
    return replace(activity, needs=needs, waits=waits, scope=(*activity.scope, mark))
