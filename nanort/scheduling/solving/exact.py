"""Optimal solutions of small problems, found and proved by CP-SAT.

CP-SAT counts in whole numbers. Whole figures up to ``FINEST`` are given to it as they are; others are counted in
decimal units, ``FINEST`` / 10 to ``FINEST`` of them in the makespan or the capacity. Durations and usages are rounded
down and capacities up, so that every solution of the problem is one of the model, and the model's bound holds for the
problem. Of the model's solution only modes and order are kept: each task in turn starts as early as it fits by the
problem's own figures, so that they are a solution whatever was rounded.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nanort.compiled import Floats, Ints
from nanort.errors import BackendError, ScheduleError
from nanort.scheduling.problem import Problem, Solution
from nanort.scheduling.solving.arrays import SLACK, Arrays
from nanort.scheduling.solving.bounds import ROUNDING, bound, longest

FINEST = 10**7
"""The most units in a makespan or a capacity that is no whole number: CP-SAT's sums stay far from overflow."""

LOST = 1e-10
"""The fraction of the makespan by which the bound is lower so that 0.3 is three tenths, whatever the float is."""

Progress = Callable[[int, int, float, float], None]


def solve_exact(
    problem: Problem,
    seconds: float = 60.0,
    workers: int = 2,
    hint: Solution | None = None,
    progress: Progress | None = None,
) -> Solution:
    """The best solution that CP-SAT finds in ``seconds``, with the bound that it proves; Ctrl-C ends it early.

    Args:
        problem: of some hundred tasks at most, if it is to be proved.
        seconds: when to stop.
        workers: threads.
        hint: a solution to improve on.
        progress: called with the hint's schedules, the same again, the least makespan and the bound, as they change.

    Raises:
        BackendError: OR-Tools is not installed.
        ScheduleError: the time is none, or the hint is no solution.
    """
    try:
        from ortools.sat.python import cp_model
    except ModuleNotFoundError as error:
        raise BackendError(f"{error.name} is not installed: pip install 'nanort[exact]', or search instead") from error
    if not 0 < seconds < math.inf or workers < 1:
        raise ScheduleError(f"seconds={seconds!r}, workers={workers!r} is no budget: give more than zero of both")
    a = problem.arrays
    if hint is None:
        hint = _shifted(problem, np.zeros(len(a.order)), np.zeros(len(a.order), np.int64))
    problem.check(hint)
    best = replace(hint, bound=min(hint.makespan, bound(problem).best), stopped="")
    if best.optimal:
        return best
    units = _units(a, best)
    model, starts, chosen = _model(cp_model, a, units, best)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = workers
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.catch_sigint_signal = False  # Ctrl-C reaches the thread that waits

    def told(objective: float, floor: float) -> None:
        if progress is not None:
            least, most = units.bound(floor, best), min(best.makespan, objective * units.unit)
            progress(best.schedules, best.schedules, most, least)

    begin = time.monotonic()
    status, interrupted = _run(cp_model, solver, model, told)
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        column = np.array([next(at for at, on in enumerate(ways) if solver.value(on)) for ways in chosen], np.int64)
        found = _shifted(problem, np.array([solver.value(start) for start in starts], np.float64), column)
        if found.makespan < best.makespan:
            best = replace(best, starts=found.starts, modes=found.modes, makespan=found.makespan)
    why = f"interrupted after {time.monotonic() - begin:.3g} s" if interrupted else f"time was up after {seconds:.3g} s"
    return replace(
        best,
        bound=units.bound(solver.best_objective_bound, best),
        stopped="" if status == cp_model.OPTIMAL else why,
    )


@dataclass(frozen=True, slots=True)
class _Units:
    """A problem in CP-SAT's units, of time ``unit`` each; ``lost`` is what rounding may take off its makespan."""

    duration: Ints
    usage: Ints
    capacity: Ints
    unit: float
    lost: float
    integral: bool

    def bound(self, objective: float, best: Solution) -> float:
        """What a bound of the model says of the problem, if not less than is known."""
        time = math.ceil(objective - 1e-6) * self.unit - self.lost
        return min(best.makespan, max(best.bound, math.ceil(time * (1 - ROUNDING)) if self.integral else time))


def _units(a: Arrays, best: Solution) -> _Units:
    T, length = len(a.order), np.where(a.mode_index >= 0, a.duration, 0.0)
    lost = 0.0 if (length % 1 == 0).all() else LOST * best.bound
    duration, unit = _counted(length, best.makespan, lost / T)
    usage, capacity = np.zeros(a.usage.shape, np.int64), np.zeros(a.capacity.shape, np.int64)
    for resource, most in enumerate((a.capacity * (1 if a.integral else 1 + SLACK)).tolist()):
        amounts = a.usage[..., resource]
        spare = 0.0 if (amounts % 1 == 0).all() else LOST * most
        usage[..., resource], each = _counted(amounts, most, spare / T)
        capacity[resource] = math.floor((most + spare) / each)
    return _Units(duration, usage, capacity, unit, lost, a.integral)


def _counted(figures: Floats, most: float, gain: float) -> tuple[Ints, float]:
    """``figures`` in the largest unit that measures them all, or rounded down to a decimal one; and that unit.

    A figure that lacks at most ``gain`` to the next unit counts as it.
    """
    powers = [0] if (figures % 1 == 0).all() else []
    for power in [*powers, math.floor(math.log10(FINEST / (most or 1.0)))]:
        counts = np.floor((figures + gain) * 10.0**power).astype(np.int64)
        common = int(np.gcd.reduce(counts, axis=None)) or 1
        if most * 10.0**power / common <= FINEST:
            break
    return counts // common, common / 10.0**power


def _model(cp_model: Any, a: Arrays, units: _Units, best: Solution) -> tuple[Any, list[Any], list[list[Any]]]:
    """The model; the variables that say when tasks start; for each task those that say which of its modes it is in."""
    model, T = cp_model.CpModel(), len(a.order)
    least = units.duration[:, 0].astype(np.float64)
    heads, tails = longest(least, a.order, a.pred_ptr, a.preds), longest(least, a.order[::-1], a.succ_ptr, a.succs)
    last = math.ceil((best.makespan + units.lost) / units.unit) + (units.lost > 0)
    # durations were rounded down, so that the bound in their units may lie below the one in the problem's figures
    makespan = model.new_int_var(math.floor(best.bound / units.unit * (1 - LOST)), last, "makespan")
    starts, chosen, lengths = [], [], []
    held: list[list[tuple[Any, int]]] = [[] for _ in units.capacity]
    for task in range(T):
        start = model.new_int_var(int(heads[task]), int(last - tails[task] - least[task]), "")
        count, hinted = int(a.modes[task]), a.mode_index[task].tolist().index(best.modes[task])
        ways = [model.new_bool_var("") for _ in range(count)] if count > 1 else [model.new_constant(1)]
        if count > 1:
            model.add_exactly_one(ways)
        for at, on in enumerate(ways):
            length = int(units.duration[task, at])
            interval = (
                model.new_optional_fixed_size_interval_var(start, length, on, "")
                if count > 1
                else model.new_fixed_size_interval_var(start, length, "")
            )
            for resource, amount in enumerate(units.usage[task, at].tolist()):
                if amount and length:
                    held[resource].append((interval, amount))
            if count > 1:
                model.add_hint(on, at == hinted)
        model.add_hint(start, math.floor(best.starts[task] / units.unit))
        length = (
            sum(int(units.duration[task, at]) * on for at, on in enumerate(ways)) if count > 1 else int(least[task])
        )
        starts.append(start)
        chosen.append(ways)
        lengths.append(length)
    for task in range(T):
        after = a.succs[a.succ_ptr[task] : a.succ_ptr[task + 1]].tolist()
        for other in after:
            model.add(starts[other] >= starts[task] + lengths[task])
        if not after:
            model.add(makespan >= starts[task] + lengths[task])
    for users, capacity in zip(held, units.capacity.tolist(), strict=True):
        if users:
            model.add_cumulative([interval for interval, _ in users], [amount for _, amount in users], capacity)
    model.minimize(makespan)
    return model, starts, chosen


def _run(cp_model: Any, solver: Any, model: Any, told: Callable[[float, float], None]) -> tuple[Any, bool]:
    """The status; and whether it was interrupted: it runs in another thread, so that this one hears of Ctrl-C."""
    news = [math.inf, 0.0]  # the least makespan and the bound so far
    interrupted = False

    class Listener(cp_model.CpSolverSolutionCallback):  # type: ignore[misc]  # a class without types
        def on_solution_callback(self) -> None:
            news[0] = self.objective_value

    def hear(floor: float) -> None:
        news[1] = floor

    solver.best_bound_callback = hear
    with ThreadPoolExecutor(1) as pool:
        run, heard = pool.submit(solver.solve, model, Listener()), list(news)
        try:
            while not run.done():
                wait((run,), 0.05)
                if news != heard:
                    heard = list(news)
                    told(*heard)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            while not run.done():  # a search that has not begun yet is not stopped
                solver.stop_search()
                wait((run,), 0.05)
    return run.result(), interrupted


def _shifted(problem: Problem, key: Floats, column: Ints) -> Solution:
    """Each task, by its ``key``, as early as it fits beside those before; ``column`` is its mode in the arrays."""
    a = problem.arrays
    rank = np.empty(len(key), np.int64)
    rank[a.order] = np.arange(len(key))
    limit = a.capacity * (1.0 if a.integral else 1.0 + SLACK)
    starts, ends = np.zeros(len(key)), np.zeros(len(key))
    times, held = [0.0], [np.zeros(len(limit))]  # what is held from each time to the next

    def cut(time: float) -> int:
        at = bisect_left(times, time)
        if at == len(times) or times[at] != time:
            times.insert(at, time)
            held.insert(at, held[at - 1].copy())
        return at

    for task in np.lexsort((rank, key)).tolist():
        length, usage = float(a.duration[task, column[task]]), a.usage[task, column[task]]
        begin = at = cut(max(ends[a.preds[a.pred_ptr[task] : a.pred_ptr[task + 1]]].tolist(), default=0.0))
        while at < len(times) and times[at] < times[begin] + length:
            at += 1
            if (held[at - 1] + usage > limit).any():
                begin = at
        starts[task], ends[task] = times[begin], times[begin] + length
        for at in range(begin, cut(ends[task])):
            held[at] += usage
    kind = int if a.integral else float
    makespan = kind(ends.max())
    modes = a.mode_index[np.arange(len(key)), column].tolist()
    return Solution(tuple(map(kind, starts.tolist())), tuple(modes), makespan, bound=0)
