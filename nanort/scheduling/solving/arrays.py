"""Arrays: a problem in numbers, what solvers and bounds compute with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nanort.compiled import Floats, Ints
from nanort.errors import ProblemError

if TYPE_CHECKING:
    from nanort.scheduling.problem import Problem, Task

SLACK = 1e-9
"""The fraction of a capacity or of the makespan by which rounding may exceed it, where not all figures are whole."""

MOST = 1 << 53
"""The largest figure; beyond it not every whole number is a float."""


@dataclass(frozen=True, slots=True, eq=False)
class Arrays:
    """A problem of T tasks, each in up to M modes that fit, and R resources, as contiguous arrays that nobody changes.

    Attributes:
        duration: [T, M], of the modes that fit, by duration, then by the sum of the shares that they use, packed to
            the front; infinite behind them.
        usage: [T, M, R] of the same; 0 behind them.
        modes: [T], how many of them there are, at least 1.
        mode_index: [T, M], their place in ``Task.modes``; -1 behind them.
        capacity: [R], in the order of ``Problem.capacities``.
        pred_ptr, preds: the predecessors of task t are ``preds[pred_ptr[t]:pred_ptr[t + 1]]``, in rising order.
        succ_ptr, succs: the successors, likewise.
        order: [T], the tasks such that each follows its predecessors.
        integral: whether all of these figures are whole. If not, usages that add up to ``capacity * (1 + SLACK)`` fit.
    """

    duration: Floats
    usage: Floats
    modes: Ints
    mode_index: Ints
    capacity: Floats
    pred_ptr: Ints
    preds: Ints
    succ_ptr: Ints
    succs: Ints
    order: Ints
    integral: bool


def arrays(problem: Problem) -> Arrays:
    """The arrays of ``problem``.

    Raises:
        ProblemError: no mode of a task fits, or tasks wait for each other in a circle.
    """
    resources = {name: at for at, name in enumerate(problem.capacities)}
    capacity = np.array(list(problem.capacities.values()), np.float64)
    usable = [_usable(task, problem) for task in problem.tasks]
    T, M, R = len(usable), max(map(len, usable)), len(resources)
    duration, usage = np.full((T, M), np.inf), np.zeros((T, M, R))
    mode_index = np.full((T, M), -1, np.int64)
    for task, places in enumerate(usable):
        for at, place in enumerate(places):
            mode = problem.tasks[task].modes[place]
            duration[task, at], mode_index[task, at] = mode.duration, place
            for name, amount in mode.usage.items():
                usage[task, at, resources[name]] = amount
    index = {task.name: at for at, task in enumerate(problem.tasks)}
    arcs = np.array([(index[a], index[b]) for a, b in problem.precedence], np.int64).reshape(-1, 2)
    pred_ptr, preds = _rows(arcs[:, 1], arcs[:, 0], T)
    succ_ptr, succs = _rows(arcs[:, 0], arcs[:, 1], T)
    figures: list[NDArray[Any]] = [duration[mode_index >= 0], usage, capacity]
    if (longest := float(np.where(mode_index >= 0, duration, 0).max(axis=1).sum())) > MOST:
        raise ProblemError(f"durations add up to {longest:.3g}, more than {MOST:,}: choose a longer unit of time")
    return Arrays(
        duration=duration,
        usage=usage,
        modes=np.array([len(places) for places in usable], np.int64),
        mode_index=mode_index,
        capacity=capacity,
        pred_ptr=pred_ptr,
        preds=preds,
        succ_ptr=succ_ptr,
        succs=succs,
        order=_order(problem, (pred_ptr, preds), (succ_ptr, succs)),
        integral=all(bool((figure % 1 == 0).all()) for figure in figures),
    )


def _usable(task: Task, problem: Problem) -> list[int]:
    """The modes that fit, the shortest first, then those that use least."""
    keys = []
    for place, mode in enumerate(task.modes):
        if all(amount <= problem.capacities[name] for name, amount in mode.usage.items()):
            shares = sum(amount / problem.capacities[name] for name, amount in mode.usage.items() if amount)
            keys.append((mode.duration, shares, place))
    if not keys:
        over = [
            f"{amount!r} of {name!r}, of which there are {problem.capacities[name]!r}"
            for name, amount in task.modes[0].usage.items()
            if amount > problem.capacities[name]
        ]
        raise ProblemError(
            f"task {task.name!r} fits in none of its {len(task.modes)} modes: the first uses {' and '.join(over)}: "
            f"raise the capacities, or give it a mode that fits"
        )
    return [place for _, _, place in sorted(keys)]


def _rows(row: Ints, column: Ints, count: int) -> tuple[Ints, Ints]:
    """Pairs as compressed rows: where each row starts, and its columns in rising order."""
    by = np.lexsort((column, row))
    return np.searchsorted(row[by], np.arange(count + 1)).astype(np.int64), np.ascontiguousarray(column[by])


def _order(problem: Problem, before: tuple[Ints, Ints], after: tuple[Ints, Ints]) -> Ints:
    """A topological order: tasks as soon as the last of their predecessors is there."""
    missing, (pointers, succs) = np.diff(before[0]).tolist(), (part.tolist() for part in after)
    found = [task for task, count in enumerate(missing) if not count]
    for task in found:  # grows meanwhile
        for succ in succs[pointers[task] : pointers[task + 1]]:
            missing[succ] -= 1
            if not missing[succ]:
                found.append(succ)
    if len(found) < len(missing):
        names = [problem.tasks[task].name for task in _circle(missing, before)]
        shown = " -> ".join(map(repr, names if len(names) <= 12 else [*names[:6], "...", *names[-6:]]))
        raise ProblemError(f"tasks wait for each other in a circle, {shown}: take one of these pairs out of precedence")
    return np.array(found, np.int64)


def _circle(missing: Sequence[int], before: tuple[Ints, Ints]) -> list[int]:
    """Tasks that follow one another, the last of them the first again: each has a predecessor that waits as well."""
    pointers, preds = before
    walk, place = list[int](), dict[int, int]()
    task = next(task for task, count in enumerate(missing) if count)
    while task not in place:
        place[task] = len(walk)
        walk.append(task)
        task = next(int(pred) for pred in preds[pointers[task] : pointers[task + 1]] if missing[pred])
    circle = walk[place[task] :][::-1]
    return [circle[-1], *circle]
