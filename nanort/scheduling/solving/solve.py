"""solve: the verb from a problem to a solution."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

import numpy as np

from nanort.compiled import Floats, Ints
from nanort.errors import PolicyError, ScheduleError
from nanort.scheduling.problem import Problem, Solution
from nanort.scheduling.solving.arrays import Arrays
from nanort.scheduling.solving.bounds import bound, longest

if TYPE_CHECKING:
    from nanort.scheduling.solving.genetic import Search

POLICIES = ("list", "search", "exact", "auto")
"""The best of what priority rules make; the genetic search; CP-SAT; search, and CP-SAT if there is time for it."""

EXACT_SECONDS = 60.0
"""What policy "exact" is given if nothing is said."""

Policy = Callable[[Problem], Sequence[float]]
Progress = Callable[[int, int, float, float], None]


def solve(
    problem: Problem,
    *,
    policy: str | Policy = "auto",
    schedules: int = 1000,
    seconds: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Solution:
    """A solution of ``problem`` that ends as soon as could be found, with a bound below which none can end.

    Args:
        problem: its tasks, resources and order.
        policy: one of ``POLICIES``, or a function that gives each task of the problem a number, the smaller the more
            urgent.
        schedules: how many may be generated; equal numbers and seeds give equal solutions.
        seconds: when to stop whatever is left; a solution that was stopped says so. Policy "auto" gives what the
            search leaves of it to CP-SAT, where OR-Tools is installed.
        seed: of the search.
        progress: called with schedules generated, how many may be, and the best makespan and the bound so far.

    Raises:
        PolicyError: the policy is unknown, or answered something that orders no tasks.
        ScheduleError: a budget that cannot be.
        BackendError: policy "exact", and OR-Tools is not installed.

    >>> from nanort.scheduling.problem import Mode, Task
    >>> tasks = [Task(name, [Mode(2, {"cores": 2}), Mode(3, {"cores": 1})]) for name in "abc"]
    >>> found = solve(Problem(tasks, {"cores": 2}))
    >>> found.makespan, sorted(found.modes), found.optimal
    (5, [0, 1, 1], True)
    """
    _refuse_budgets(policy, schedules, seconds, seed)
    from nanort.scheduling.solving.genetic import Search  # numba takes half a second to import

    begin = time.monotonic()
    exactly = policy == "exact"
    allowed = EXACT_SECONDS if exactly and seconds is None else seconds
    deadline = math.inf if allowed is None else begin + allowed * (0.5 if exactly else 1.0)
    least = bound(problem).best
    search = Search(problem.arrays, least, schedules, deadline, seed, progress)
    if policy == "list" or not isinstance(policy, str):
        keys = _rules(problem.arrays) if isinstance(policy, str) else [_priorities(problem, policy)]
        orders = np.array([_listed(problem.arrays, key) for key in keys])
        both = np.repeat(orders, 2, axis=0)[:schedules]
        search.judge(0, both, search.chosen(len(both)), 1 - np.arange(len(both)) % 2)
    else:
        search.run()
    found = _solution(problem.arrays, search, least)
    ready = policy == "auto" and seconds is not None and importlib.util.find_spec("ortools") is not None
    if found.optimal or search.stopped.startswith("interrupted") or not (exactly or (ready and not search.stopped)):
        return found
    from nanort.scheduling.solving.exact import solve_exact

    left = (allowed or EXACT_SECONDS) - (time.monotonic() - begin)
    return solve_exact(problem, max(left, 0.001), hint=replace(found, stopped=""), progress=progress)


def _refuse_budgets(policy: str | Policy, schedules: int, seconds: float | None, seed: int) -> None:
    if not callable(policy) and policy not in POLICIES:
        raise PolicyError(f"there is no policy {policy!r}: give one of {', '.join(POLICIES)}, or a function")
    if not isinstance(schedules, int) or isinstance(schedules, bool) or schedules < 1:
        raise ScheduleError(f"schedules={schedules!r} is no budget: give how many to generate, 1 or more")
    if seconds is not None and not (isinstance(seconds, (int, float)) and 0 < seconds < math.inf):
        raise ScheduleError(f"seconds={seconds!r} is no budget: give more than zero, or None for no limit")
    if not isinstance(seed, int):
        raise ScheduleError(f"seed={seed!r} cannot be repeated: give a whole number")


def _rules(a: Arrays) -> list[Floats]:
    """Priorities that do well: by latest end, by latest start, by length with successors, by earliest start."""
    duration, ahead = a.duration[:, 0], longest(a.duration[:, 0], a.order, a.pred_ptr, a.preds)
    tails = longest(duration, a.order[::-1], a.succ_ptr, a.succs)
    weight = duration.copy()
    for task in a.order:
        weight[task] += duration[a.succs[a.succ_ptr[task] : a.succ_ptr[task + 1]]].sum()
    return [-tails, -tails - duration, -weight, ahead]


def _priorities(problem: Problem, policy: Policy) -> Floats:
    name, tasks = getattr(policy, "__name__", repr(policy)), len(problem.tasks)
    answer = policy(problem)
    try:
        found = np.array(answer, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise PolicyError(f"policy {name} answered {answer!r}: give a number for each task") from error
    if found.shape != (tasks,):
        raise PolicyError(f"policy {name} answered numbers of shape {found.shape}: give one for each of {tasks} tasks")
    if np.isnan(found).any():
        task = problem.tasks[int(np.isnan(found).argmax())].name
        raise PolicyError(f"policy {name} answered NaN for task {task!r}: give numbers that can be compared")
    return found


def _listed(a: Arrays, keys: Floats) -> Ints:
    """The tasks by ``keys``, each after its predecessors."""
    missing, key, first, after = np.diff(a.pred_ptr).tolist(), keys.tolist(), a.succ_ptr.tolist(), a.succs.tolist()
    ready = [(key[task], task) for task, count in enumerate(missing) if not count]
    heapify(ready)
    found = []
    while ready:
        _, task = heappop(ready)
        found.append(task)
        for other in after[first[task] : first[task + 1]]:
            missing[other] -= 1
            if not missing[other]:
                heappush(ready, (key[other], other))
    return np.array(found, np.int64)


def _solution(a: Arrays, search: Search, least: float) -> Solution:
    kind = int if a.integral else float
    return Solution(
        starts=tuple(map(kind, search.starts.tolist())),
        modes=tuple(a.mode_index[np.arange(len(search.modes)), search.modes].tolist()),
        makespan=kind(search.makespan),
        bound=min(least, kind(search.makespan)),
        schedules=search.schedules,
        stopped=search.stopped,
    )
