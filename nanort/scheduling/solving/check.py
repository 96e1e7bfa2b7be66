"""Whether a solution keeps every constraint of its problem, judged with no knowledge of how it was made."""

from __future__ import annotations

from typing import NoReturn

import numpy as np

from nanort.compiled import Floats
from nanort.errors import ScheduleError
from nanort.scheduling.problem import Problem, Solution
from nanort.scheduling.solving.arrays import MOST, SLACK


def check(problem: Problem, solution: Solution) -> None:
    """Judges modes, starts, precedence, capacities at every instant, the makespan and the bound.

    Where all figures of the problem are whole, to the last digit; otherwise times may be off by ``SLACK`` of the
    makespan, and usages by ``SLACK`` of a capacity.

    Raises:
        ScheduleError: it breaks a constraint; the message names the tasks.
    """
    tasks, a = problem.tasks, problem.arrays
    if not len(tasks) == len(solution.starts) == len(solution.modes):
        _refuse(f"there are {len(tasks)} tasks, {len(solution.starts)} starts and {len(solution.modes)} modes")
    for what in ("makespan", "bound"):
        _time(getattr(solution, what), f"the {what}")
    column = []
    for at, task in enumerate(tasks):
        _time(solution.starts[at], f"the start of {task.name!r}")
        fitting = a.mode_index[at, : a.modes[at]].tolist()
        if type(solution.modes[at]) is not int or solution.modes[at] not in fitting:
            _refuse(f"task {task.name!r} is in mode {solution.modes[at]!r}, and those that fit are {sorted(fitting)}")
        column.append(fitting.index(solution.modes[at]))
    every = np.arange(len(tasks))
    start = np.array(solution.starts, np.float64)
    end = start + a.duration[every, column]
    slack = 0.0 if a.integral else SLACK * float(end.max())
    before = np.repeat(every, np.diff(a.succ_ptr))
    for arc in np.flatnonzero(start[a.succs] < end[before] - slack)[:1]:
        first, then = before[arc], a.succs[arc]
        _refuse(
            f"task {tasks[then].name!r} starts at {start[then]:.12g}, before {tasks[first].name!r} ends at "
            f"{end[first]:.12g}"
        )
    for resource, name in enumerate(problem.capacities):
        capacity = float(a.capacity[resource]) * (1.0 if a.integral else 1.0 + SLACK)
        usage = a.usage[every, column, resource]
        if (instant := _overload(start, end - slack, usage, capacity)) is not None:
            there = np.flatnonzero((start <= instant) & (instant < end - slack) & (usage > 0))
            _refuse(
                f"at {instant:.12g} there is {problem.capacities[name]!r} of {name!r}, and these tasks use "
                f"{usage[there].sum():.12g}: {', '.join(repr(tasks[task].name) for task in there)}"
            )
    if abs(solution.makespan - end.max()) > slack:
        _refuse(f"the makespan is said to be {solution.makespan!r}, the last task ends at {end.max():.12g}")
    if solution.bound > solution.makespan + slack:
        _refuse(f"the bound {solution.bound!r} is above the makespan {solution.makespan!r}")


def _time(time: object, what: str) -> None:
    if isinstance(time, bool) or not isinstance(time, (int, float)) or not 0 <= time <= MOST:
        _refuse(f"{what} is {time!r}, no time from 0 on")


def _overload(start: Floats, end: Floats, usage: Floats, capacity: float) -> float | None:
    """The first instant at which more is used than there is."""
    used = (usage > 0) & (start < end)
    times = np.concatenate((end[used], start[used]))  # what ends at an instant is gone when others start
    by = np.argsort(times, kind="stable")
    held = np.cumsum(np.concatenate((-usage[used], usage[used]))[by])
    over = np.flatnonzero(held > capacity)
    return float(times[by][over[0]]) if over.size else None


def _refuse(what: str) -> NoReturn:
    raise ScheduleError(f"{what}: solve the problem again, or correct the solution")
