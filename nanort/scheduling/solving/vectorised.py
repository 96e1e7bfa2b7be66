"""The schedule-generation schemes for many lists at once in numpy: what takes their place where numba is absent."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nanort.compiled import Floats, Ints
from nanort.scheduling.solving.generation import Side

Flags = npt.NDArray[np.bool_]


def generate(side: Side, orders: Ints, modes: Ints, at_once: Ints, finish: Floats, back: Ints) -> Floats:
    """What :func:`nanort.scheduling.solving.generation.generate` answers and writes."""
    for scheme, rows in ((_parallel, np.flatnonzero(at_once)), (_serial, np.flatnonzero(at_once == 0))):
        if rows.size:
            modes[rows], finish[rows] = scheme(side, orders[rows], modes[rows])
    by_end = np.argsort(np.take_along_axis(finish, orders, 1), axis=1, kind="stable")
    back[:] = np.take_along_axis(orders, by_end, 1)[:, ::-1]
    makespans: Floats = finish.max(axis=1)
    return makespans


def _padded(first: Ints, arcs: Ints) -> Ints:
    """The arcs of each task as a row, filled up with the number of tasks."""
    counts = np.diff(first)
    found = np.full((len(counts), max(1, counts.max(initial=0))), len(counts), np.int64)
    found[np.arange(found.shape[1]) < counts[:, None]] = arcs
    return found


def _serial(side: Side, orders: Ints, modes: Ints) -> tuple[Ints, Floats]:
    count, tasks = orders.shape
    before, rows = _padded(side.before_first, side.before), np.arange(count)
    times, free = np.full((count, tasks + 2), np.inf), np.empty((len(side.capacity), count, tasks + 2))
    times[:, 0], free[:] = 0.0, side.capacity[:, None, None]
    finish, modes = np.zeros((count, tasks + 1)), modes.copy()  # the last column is of no task and ends at once
    for at in range(tasks):
        task, seen = orders[:, at], slice(at + 1)
        earliest = finish[rows[:, None], before[task]].max(axis=1)
        begin, end, mode = np.zeros(count), np.full(count, np.inf), modes[rows, task]
        for other in range(side.duration.shape[1]):
            asked = (modes[rows, task] == other) | ((modes[rows, task] < 0) & (other < side.modes[task]))
            if asked.any():
                duration = side.duration[task, other]
                found = _first_fit(times[:, seen], free[:, :, seen], earliest, duration, side.usage[task, other])
                better = asked & (found + duration < end)
                begin, end = np.where(better, found, begin), np.where(better, found + duration, end)
                mode = np.where(better, other, mode)
        modes[rows, task], finish[rows, task] = mode, end
        _take(times[:, : at + 2], free[:, :, : at + 2], begin, end, side.usage[task, mode])
    return modes, finish[:, :tasks]


def _first_fit(times: Floats, free: Floats, earliest: Floats, duration: Floats, usage: Floats) -> Floats:
    """When each row's task first fits from ``earliest`` on, which is an event; at the last one it always does."""
    room = (free >= usage.T[:, :, None]).all(axis=0)
    blocked = np.where(room, np.inf, times)
    blocked = np.minimum.accumulate(blocked[:, ::-1], axis=1)[:, ::-1]  # when room next ends
    fits = (times >= earliest[:, None]) & (blocked >= times + duration[:, None])
    begin: Floats = times[np.arange(len(times)), fits.argmax(axis=1)]
    return begin


def _take(times: Floats, free: Floats, begin: Floats, end: Floats, usage: Floats) -> None:
    """Adds an event at each row's ``end`` if there is none, and takes what is used between the two."""
    spot = (times < end[:, None]).sum(axis=1)
    new = times[np.arange(len(times)), spot] > end
    columns = np.arange(times.shape[1])
    source = columns - (new[:, None] & (columns >= spot[:, None]))
    times[:] = np.take_along_axis(times, source, 1)
    times[new, spot[new]] = end[new]
    during = (times >= begin[:, None]) & (times < end[:, None])
    for resource in range(len(free)):
        free[resource] = np.take_along_axis(free[resource], source, 1) - during * usage[:, resource, None]


def _parallel(side: Side, orders: Ints, modes: Ints) -> tuple[Ints, Floats]:
    count, tasks = orders.shape
    after, rows, modes = _padded(side.after_first, side.after), np.arange(count), modes.copy()
    place = np.argsort(orders, axis=1)
    missing = np.tile(np.append(np.diff(side.before_first), 0), (count, 1))  # the last column is of no task
    ready, finish = np.zeros((count, tasks + 1)), np.full((count, tasks), np.inf)
    waiting = np.where(missing == 0, 0.0, np.inf)  # since when a task could start, as far as others go
    now, free = np.zeros(count), np.tile(side.capacity, (count, 1))
    while np.isinf(finish).any():
        mode = _fitting(side, modes, free)
        turn = np.where((mode >= 0) & (waiting[:, :tasks] <= now[:, None]), place, tasks)
        task = turn.argmin(axis=1)
        placing = turn[rows, task] < tasks
        row, task = rows[placing], task[placing]
        modes[row, task] = chosen = mode[row, task]
        finish[row, task] = end = now[row] + side.duration[task, chosen]
        waiting[row, task] = np.inf
        free[row] -= side.usage[task, chosen] * (end > now[row])[:, None]
        row, others, end = row[:, None], after[task], end[:, None]
        missing[row, others] -= 1
        ready[row, others] = np.maximum(ready[row, others], end)
        waiting[row, others] = np.where(missing[row, others] == 0, ready[row, others], np.inf)
        waiting[:, tasks] = np.inf
        row = rows[~placing]
        running = np.where(finish[row] > now[row, None], finish[row], np.inf)
        later = running.min(axis=1)
        row, running, later = (part[np.isfinite(later)] for part in (row, running, later))  # the other rows are done
        ended = running == later[:, None]
        for other in range(side.duration.shape[1]):
            free[row] += (ended & (modes[row] == other)) @ side.usage[:, other]
        now[row] = later
    return modes, finish


def _fitting(side: Side, modes: Ints, free: Floats) -> Ints:
    """The mode of each task for which there is room now: its own, or the first if it is -1. -1 if there is none."""
    found = np.full(modes.shape, -1, np.int64)
    for mode in reversed(range(side.duration.shape[1])):
        room = (modes == mode) | ((modes < 0) & (mode < side.modes))
        for resource in range(free.shape[1]):
            room &= side.usage[:, mode, resource] <= free[:, resource, None]
        found[room] = mode
    return found
