"""Timelines one after the other, as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate

import numpy as np

from nanort.errors import TimelineError
from nanort.timeline.activities import Activity
from nanort.timeline.events import CAPACITY, Timeline


class Joined(Timeline):
    """The parts as one timeline, each from where the one before ended, the time between them left out.

    Every activity's scope gets its part's value as ``label``; what needs nothing in its part needs all of the part
    before it. Plans are joined as well, where every part has one: its makespan is the sum of theirs.

    Raises:
        TimelineError: there are none, or they are of several devices.
    """

    def __init__(self, parts: Sequence[Timeline], label: str, values: Sequence[object]) -> None:
        if len({part.device for part in parts}) != 1:
            raise TimelineError("only timelines of one device can be joined: give some of one device")
        self._begins = [0.0, *accumulate(part.makespan for part in parts)]
        self._firsts = [0, *accumulate(map(len, parts))]
        plans = [part.plan for part in parts if part.plan is not None]
        bounds = set.intersection(*(set(part.limits) for part in parts))
        super().__init__(
            _in_turn(parts, self._firsts, label, values),
            np.concatenate([part.start + begin for part, begin in zip(parts, self._begins, strict=False)]),
            np.concatenate([part.end + begin for part, begin in zip(parts, self._begins, strict=False)]),
            kind=parts[0].kind,
            device=parts[0].device,
            foreign=any(part.foreign for part in parts),
            failure=next(filter(None, (part.failure for part in parts)), ""),
            lost=sum(part.lost for part in parts),
            limits={name: sum(part.limits[name] for part in parts) for name in parts[0].limits if name in bounds},
            plan=Joined(plans, label, values) if len(plans) == len(parts) else None,
            **{name: getattr(parts[0], name) for name in CAPACITY},
        )

    @cached_property
    def beside(self) -> Timeline | None:
        """The plan, each part from when the run came to it, or later where the plan of the one before takes longer."""
        plan = self.plan
        if not isinstance(plan, Joined):
            return plan
        shifts = np.maximum.accumulate(np.subtract(self._begins, plan._begins))[:-1]
        shift = np.repeat(shifts, np.diff(plan._firsts))
        return plan.with_times(plan.start + shift, plan.end + shift, kind=plan.kind)


def _in_turn(parts: Sequence[Timeline], firsts: list[int], label: str, values: Sequence[object]) -> list[Activity]:
    """The activities of all parts; those of one need the last of the one before."""
    found: list[Activity] = []
    before: tuple[int, ...] = ()
    for part, first, value in zip(parts, firsts, values, strict=False):  # one more ends the last
        found += [_moved(activity, first, before, (label, value)) for activity in part.activities]
        needed = {need for activity in part.activities for need in activity.needs or ()}
        before = tuple(first + index for index in range(len(part)) if index not in needed) or before
    return found


def _moved(activity: Activity, by: int, before: tuple[int, ...], mark: tuple[str, object]) -> Activity:
    needs = None if activity.needs is None else tuple(need + by for need in activity.needs) or before
    waits = tuple((waited + by, reason) for waited, reason in activity.waits)
    return replace(activity, needs=needs, waits=waits, scope=(*activity.scope, mark))
