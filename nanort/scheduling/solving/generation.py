"""Schedule generation: activity lists become schedules, forwards or backwards in time; compiled if there is numba.

A list orders the tasks so that none stands before its predecessors. What is free of each resource is a chain of events:
each begins when a task ends and holds until the next, so times may be integers or not. Backwards in time the arcs are
turned round and nothing else; a schedule that is read backwards gives the list of its justification.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nanort.compiled import Floats, Floats2, Floats3, Ints, Ints2, compiled


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


# Events are three arrays: ``time``, ``next_``, the following event or -1, and what is ``free`` of each resource
# until then. Event 0 is time 0. Arrays go from function to function one by one: a tuple's field that is read in a loop
# is counted as a reference each time, which halves the speed, and the compiler's cache would keep tuples by name.


@compiled
def _fit(time: Floats, next_: Ints, free: Floats2, earliest: int, duration: float, usage: Floats) -> int:
    """The first event from ``earliest`` on at which there is room for so long; the last one always has room."""
    begin = event = earliest
    end = time[begin] + duration
    while event >= 0 and time[event] < end:
        room = True
        for resource in range(usage.shape[0]):
            if free[event, resource] < usage[resource]:
                room = False
        event = next_[event]
        if not room:
            begin = event
            end = time[begin] + duration
    return begin


@compiled
def _place(time: Floats, next_: Ints, free: Floats2, begin: int, duration: float, usage: Floats, new: int) -> int:
    """Takes what is used from ``begin`` on; answers the event of the end, which is event ``new`` if there was none."""
    event, end = begin, time[begin] + duration
    while time[event] < end:
        following = next_[event]
        if following < 0 or time[following] > end:
            time[new] = end
            next_[new] = following
            for resource in range(usage.shape[0]):
                free[new, resource] = free[event, resource]
            next_[event] = following = new
        for resource in range(usage.shape[0]):
            free[event, resource] -= usage[resource]
        event = following
    return event


@compiled
def serial(
    duration: Floats2, usage: Floats3, counts: Ints, capacity: Floats, before_first: Ints, before: Ints,
    order: Ints, modes: Ints, time: Floats, next_: Ints, free: Floats2, ends: Ints,
) -> int:  # fmt: skip
    """The serial scheme: each task in turn as early as it fits; answers the event of the makespan.

    A task whose mode is -1 takes the one that ends first, which is written into ``modes``; ``ends`` gets the event at
    which each task ends.
    """
    time[0], next_[0] = 0.0, -1
    free[0] = capacity
    new, latest = 1, 0
    for place in range(order.shape[0]):
        task, earliest = order[place], 0
        for arc in range(before_first[task], before_first[task + 1]):
            event = ends[before[arc]]
            if time[event] > time[earliest]:
                earliest = event
        mode = modes[task]
        begin = -1
        if mode < 0:
            least = np.inf
            for other in range(counts[task]):
                event = _fit(time, next_, free, earliest, duration[task, other], usage[task, other])
                if time[event] + duration[task, other] < least:
                    least = time[event] + duration[task, other]
                    mode, begin = other, event
            modes[task] = mode
        else:
            begin = _fit(time, next_, free, earliest, duration[task, mode], usage[task, mode])
        event = _place(time, next_, free, begin, duration[task, mode], usage[task, mode], new)
        if event == new:
            new += 1
        ends[task] = event
        if time[event] > time[latest]:
            latest = event
    return latest


@compiled
def _fitting(usage: Floats3, count: int, task: int, mode: int, free: Floats2, event: int) -> int:
    """The mode, if there is room for it; for -1 the first for which there is. -1 if there is none."""
    for other in range(count):
        if mode in (-1, other):
            room = True
            for resource in range(free.shape[1]):
                if free[event, resource] < usage[task, other, resource]:
                    room = False
                    break
            if room:
                return other
    return -1


@compiled
def parallel(
    duration: Floats2, usage: Floats3, counts: Ints, capacity: Floats, before_first: Ints, after_first: Ints,
    after: Ints, order: Ints, modes: Ints, time: Floats, next_: Ints, free: Floats2, ends: Ints,
    place: Ints, missing: Ints, ready: Floats, waiting: Ints,
) -> int:  # fmt: skip
    """The parallel scheme: at each event, all that fits there, in turn; otherwise like :func:`serial`.

    A task whose mode is -1 takes the first that fits. The last four are room to work in.
    """
    tasks, count = order.shape[0], 0
    time[0], next_[0] = 0.0, -1
    free[0] = capacity
    for at in range(tasks):
        task = order[at]
        place[task], ready[task] = at, 0.0
        missing[task] = before_first[task + 1] - before_first[task]
        if missing[task] == 0:
            waiting[count] = task
            count += 1
    new, latest, event = 1, 0, 0
    while count:
        at = 0
        while at < count:
            task, mode = waiting[at], -1
            if ready[task] <= time[event]:
                mode = _fitting(usage, counts[task], task, modes[task], free, event)
            at += 1
            if mode < 0:
                continue
            modes[task] = mode
            end = _place(time, next_, free, event, duration[task, mode], usage[task, mode], new)
            new += end == new
            ends[task] = end
            if time[end] > time[latest]:
                latest = end
            count -= 1
            for spot in range(at - 1, count):
                waiting[spot] = waiting[spot + 1]
            at = 0 if end == event else at - 1
            for arc in range(after_first[task], after_first[task + 1]):
                other = after[arc]
                missing[other] -= 1
                ready[other] = max(ready[other], time[end])
                if missing[other] == 0:
                    spot = count
                    while spot > 0 and place[waiting[spot - 1]] > place[other]:
                        waiting[spot] = waiting[spot - 1]
                        spot -= 1
                    waiting[spot] = other
                    count += 1
                    at += spot < at
        event = next_[event]
    return latest


@compiled
def turned(order: Ints, next_: Ints, ends: Ints, heads: Ints, links: Ints, out: Ints) -> None:
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
        event = next_[event]


def generate(side: Side, orders: Ints, modes: Ints, at_once: Ints, finish: Floats, back: Ints) -> Floats:
    """The makespan of every list, by the parallel scheme where ``at_once``, else by the serial one.

    ``finish`` gets when tasks end, ``back`` the lists for the other direction of time.
    """
    return _generate(*side, orders, modes, at_once, finish, back)


@compiled
def _generate(
    duration: Floats2, usage: Floats3, counts: Ints, capacity: Floats, before_first: Ints, before: Ints,
    after_first: Ints, after: Ints, orders: Ints2, modes: Ints2, at_once: Ints, finish: Floats2, back: Ints2,
) -> Floats:  # fmt: skip
    count, tasks = orders.shape
    time, next_, free = np.zeros(tasks + 1), np.zeros(tasks + 1, np.int64), np.zeros((tasks + 1, capacity.shape[0]))
    ends, heads, links = np.zeros(tasks, np.int64), np.zeros(tasks + 1, np.int64), np.zeros(tasks, np.int64)
    place, missing, waiting = np.zeros(tasks, np.int64), np.zeros(tasks, np.int64), np.zeros(tasks, np.int64)
    ready, makespans = np.zeros(tasks), np.zeros(count)
    for one in range(count):
        if at_once[one]:
            latest = parallel(
                duration, usage, counts, capacity, before_first, after_first, after, orders[one], modes[one],
                time, next_, free, ends, place, missing, ready, waiting,
            )  # fmt: skip
        else:
            latest = serial(
                duration, usage, counts, capacity, before_first, before, orders[one], modes[one],
                time, next_, free, ends,
            )  # fmt: skip
        makespans[one] = time[latest]
        for task in range(tasks):
            finish[one, task] = time[ends[task]]
        turned(orders[one], next_, ends, heads, links, back[one])
    return makespans
