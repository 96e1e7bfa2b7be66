"""Schedule generation: activity lists become schedules, forwards or backwards in time; compiled if there is numba.

A list orders the tasks so that none stands before its predecessors. What is free of each resource is a chain of events:
each begins when a task ends and holds until the next, so times may be integers or not. Backwards in time the arcs are
turned round and nothing else; a schedule that is read backwards gives the list of its justification.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nanort.compiled import compiled

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Side(NamedTuple):
    """A problem as it looks in one direction of time.

    Attributes:
        duration: of each task and mode.
        usage: of each task, mode and resource.
        modes: how many each task has.
        capacity: of each resource.
        before_first, before: the predecessors of task t are ``before[before_first[t]:before_first[t + 1]]``.
        after_first, after: the successors, likewise.
    """

    duration: Floats
    usage: Floats
    modes: Ints
    capacity: Floats
    before_first: Ints
    before: Ints
    after_first: Ints
    after: Ints


class Events(NamedTuple):
    """What is free from each event on; ``after`` is the next event, -1 for none. Event 0 is time 0."""

    time: Floats
    after: Ints
    free: Floats


@compiled
def _fit(found: Events, earliest: int, duration: float, usage: Floats) -> int:
    """The first event from ``earliest`` on at which there is room for so long; the last one always has room."""
    begin = event = earliest
    end = found.time[begin] + duration
    while event >= 0 and found.time[event] < end:
        room = True
        for resource in range(usage.shape[0]):
            if found.free[event, resource] < usage[resource]:
                room = False
        event = found.after[event]
        if not room:
            begin = event
            end = found.time[begin] + duration
    return begin


@compiled
def _place(found: Events, begin: int, duration: float, usage: Floats, new: int) -> int:
    """Takes what is used from ``begin`` on; answers the event of the end, which is event ``new`` if there was none."""
    event, end = begin, found.time[begin] + duration
    while found.time[event] < end:
        after = found.after[event]
        if after < 0 or found.time[after] > end:
            found.time[new] = end
            found.after[new] = after
            found.free[new] = found.free[event]
            found.after[event] = after = new
        for resource in range(usage.shape[0]):
            found.free[event, resource] -= usage[resource]
        event = after
    return event


@compiled
def serial(side: Side, order: Ints, modes: Ints, found: Events, ends: Ints) -> int:
    """The serial scheme: each task in turn as early as it fits; answers the event of the makespan.

    A task whose mode is -1 takes the one that ends first, which is written into ``modes``; ``ends`` gets the event at
    which each task ends.
    """
    found.time[0], found.after[0] = 0.0, -1
    found.free[0] = side.capacity
    new, latest = 1, 0
    for task in order:
        earliest = 0
        for arc in range(side.before_first[task], side.before_first[task + 1]):
            event = ends[side.before[arc]]
            if found.time[event] > found.time[earliest]:
                earliest = event
        mode = modes[task]
        begin = -1
        if mode < 0:
            least = np.inf
            for other in range(side.modes[task]):
                event = _fit(found, earliest, side.duration[task, other], side.usage[task, other])
                if found.time[event] + side.duration[task, other] < least:
                    least = found.time[event] + side.duration[task, other]
                    mode, begin = other, event
            modes[task] = mode
        else:
            begin = _fit(found, earliest, side.duration[task, mode], side.usage[task, mode])
        event = _place(found, begin, side.duration[task, mode], side.usage[task, mode], new)
        if event == new:
            new += 1
        ends[task] = event
        if found.time[event] > found.time[latest]:
            latest = event
    return latest


@compiled
def parallel(side: Side, order: Ints, modes: Ints, found: Events, ends: Ints) -> int:
    """The parallel scheme: at each event, all that fits there, in turn; otherwise like :func:`serial`.

    A task whose mode is -1 takes the first that fits.
    """
    tasks = order.shape[0]
    found.time[0], found.after[0] = 0.0, -1
    found.free[0] = side.capacity
    place, missing = np.zeros(tasks, np.int64), np.diff(side.before_first)
    ready = np.zeros(tasks)
    waiting, count = np.zeros(tasks, np.int64), 0
    for at in range(tasks):
        place[order[at]] = at
        if missing[order[at]] == 0:
            waiting[count] = order[at]
            count += 1
    new, latest, event = 1, 0, 0
    while count:
        at = 0
        while at < count:
            task, mode = waiting[at], -1
            if ready[task] <= found.time[event]:
                mode = _fitting(side, task, modes[task], found.free[event])
            at += 1
            if mode < 0:
                continue
            modes[task] = mode
            end = _place(found, event, side.duration[task, mode], side.usage[task, mode], new)
            new += end == new
            ends[task] = end
            if found.time[end] > found.time[latest]:
                latest = end
            count -= 1
            for spot in range(at - 1, count):
                waiting[spot] = waiting[spot + 1]
            at = 0 if end == event else at - 1
            for arc in range(side.after_first[task], side.after_first[task + 1]):
                other = side.after[arc]
                missing[other] -= 1
                ready[other] = max(ready[other], found.time[end])
                if missing[other] == 0:
                    spot = count
                    while spot > 0 and place[waiting[spot - 1]] > place[other]:
                        waiting[spot] = waiting[spot - 1]
                        spot -= 1
                    waiting[spot] = other
                    count += 1
                    at += spot < at
        event = found.after[event]
    return latest


@compiled
def _fitting(side: Side, task: int, mode: int, free: Floats) -> int:
    """The mode, if there is room for it; for -1 the first for which there is. -1 if there is none."""
    for other in range(side.modes[task]):
        if mode in (-1, other):
            room = True
            for resource in range(free.shape[0]):
                if free[resource] < side.usage[task, other, resource]:
                    room = False
                    break
            if room:
                return other
    return -1


@compiled
def turned(order: Ints, found: Events, ends: Ints, heads: Ints, links: Ints, out: Ints) -> None:
    """Writes the list for the other direction of time into ``out``: tasks by when they end, the last first.

    Tasks that end together are turned round too, so that those without a duration stay on the right side of each other.
    """
    heads[:] = -1
    for place in range(order.shape[0] - 1, -1, -1):
        task = order[place]
        links[task] = heads[ends[task]]
        heads[ends[task]] = task
    event, place = 0, order.shape[0]
    while event >= 0:
        task = heads[event]
        while task >= 0:
            place -= 1
            out[place] = task
            task = links[task]
        event = found.after[event]


@compiled
def generate(side: Side, orders: Ints, modes: Ints, at_once: Ints, finish: Floats, back: Ints) -> Floats:
    """The makespan of every list, by the parallel scheme where ``at_once``, else by the serial one.

    ``finish`` gets when tasks end, ``back`` the lists for the other direction of time.
    """
    count, tasks = orders.shape
    found = Events(np.zeros(tasks + 1), np.zeros(tasks + 1, np.int64), np.zeros((tasks + 1, side.capacity.shape[0])))
    ends, heads, links = np.zeros(tasks, np.int64), np.zeros(tasks + 1, np.int64), np.zeros(tasks, np.int64)
    makespans = np.zeros(count)
    for one in range(count):
        if at_once[one]:
            makespans[one] = found.time[parallel(side, orders[one], modes[one], found, ends)]
        else:
            makespans[one] = found.time[serial(side, orders[one], modes[one], found, ends)]
        for task in range(tasks):
            finish[one, task] = found.time[ends[task]]
        turned(orders[one], found, ends, heads, links, back[one])
    return makespans
