from __future__ import annotations

import importlib
import random
import signal
import sys
from dataclasses import replace
from types import ModuleType

import pytest

from nanort.errors import BackendError, ScheduleError
from nanort.scheduling.problem import Mode, Problem, Solution, Task
from nanort.scheduling.solving.exact import solve_exact
from nanort.scheduling.solving.solve import solve
from problems import optimum, random_problem
from tree import ROOT

EASY = Problem([Task(name, [Mode(2, {"r": 2})]) for name in "abc"] + [Task("d", [Mode(3, {"r": 1})])], {"r": 3})


@pytest.fixture
def hard(monkeypatch: pytest.MonkeyPatch) -> Problem:
    """A problem that takes longer than any test."""
    monkeypatch.syspath_prepend(ROOT)
    progen: ModuleType = importlib.import_module("benchmarks.progen")
    made: Problem = progen.instance(120, 1.5, 1.0, 0.1, 1)
    return made


@pytest.mark.parametrize("modes", [1, 3])
def test_whole_numbers_are_solved_to_the_optimum(modes: int) -> None:
    for seed in range(15):
        problem = random_problem(random.Random(seed), 5, integral=True, modes=modes)
        solution = solve_exact(problem)
        problem.check(solution)
        assert solution.optimal
        assert solution.stopped == ""
        assert (solution.makespan, solution.bound) == (optimum(problem),) * 2
        assert {type(time) for time in (*solution.starts, solution.makespan, solution.bound)} == {int}


@pytest.mark.parametrize("modes", [1, 3])
def test_fractions_are_solved_to_within_their_rounding(modes: int) -> None:
    for seed in range(15):
        problem = random_problem(random.Random(seed), 5, integral=False, modes=modes)
        solution, least = solve_exact(problem), optimum(problem)
        problem.check(solution)
        assert solution.bound <= least * (1 + 1e-9)
        assert solution.bound >= least * (1 - 1e-5)
        assert least * (1 - 1e-9) <= solution.makespan <= least * (1 + 1e-5)


def test_decimals_are_proved() -> None:
    tasks = [Task(f"t{at}", [Mode(0.1 + 0.01 * at, {"hbm": 0.3, "sms": 50})]) for at in range(7)]
    solution = solve_exact(Problem(tasks, {"hbm": 0.9, "sms": 132}))  # two at once by SMs, three by bandwidth
    assert solution.optimal
    assert solution.makespan == pytest.approx(0.46)  # 0.91 units of time in two lanes, in hundredths


@pytest.mark.parametrize(("duration", "usage"), [(1 << 40, 1 << 50), (1e-9, 1e-12), (3e12, 0.1)])
def test_figures_of_any_size_are_counted_in_fitting_units(duration: float, usage: float) -> None:
    tasks = [Task(f"t{at}", [Mode(duration * (at % 3 + 1), {"r": usage})]) for at in range(6)]
    problem = Problem(tasks, {"r": usage * 2})
    solution = solve_exact(problem)
    problem.check(solution)
    assert solution.makespan == pytest.approx(6 * duration)
    assert solution.bound == pytest.approx(6 * duration)


def test_a_hint_is_improved_on_and_its_schedules_are_counted() -> None:
    slow = Solution((0, 2, 4, 6), (0,) * 4, 9, 0, schedules=7, stopped="time was up after 7 schedules")
    solution = solve_exact(EASY, hint=slow)
    EASY.check(solution)
    assert (solution.makespan, solution.schedules, solution.stopped) == (6, 7, "")
    fast = Solution((0, 2, 4, 0), (0,) * 4, 6, 0, schedules=5)
    assert solve_exact(EASY, hint=fast).starts == fast.starts
    with pytest.raises(ScheduleError, match="these tasks use 5"):
        solve_exact(EASY, hint=replace(fast, starts=(0, 0, 4, 0)))


def test_a_hard_problem_ends_with_its_time_and_a_bound(hard: Problem) -> None:
    solution = solve_exact(hard, seconds=0.5)
    hard.check(solution)
    assert solution.stopped == "time was up after 0.5 s"
    assert 0 < solution.bound < solution.makespan


def test_progress_never_gets_worse_and_ctrl_c_returns_the_best_so_far(hard: Problem) -> None:
    told: list[tuple[int, int, float, float]] = []

    def progress(*news: float) -> None:
        told.append(news)
        if len(told) == 3:
            raise KeyboardInterrupt

    solution = solve_exact(hard, seconds=300, progress=progress)
    hard.check(solution)
    assert solution.stopped.startswith("interrupted after ")
    assert [best for _, _, best, _ in told] == sorted((best for _, _, best, _ in told), reverse=True)
    assert [floor for _, _, _, floor in told] == sorted(floor for _, _, _, floor in told)
    assert told[-1][3] <= solution.bound <= solution.makespan <= told[-1][2]


def test_ctrl_c_reaches_the_program_after_a_solve(hard: Problem) -> None:
    """CP-SAT has a handler of its own, which ends the process from then on if it is not turned off."""
    solve_exact(hard, seconds=0.2)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_error_of_progress_ends_the_search(hard: Problem) -> None:
    def progress(*news: float) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        solve_exact(hard, seconds=300, progress=progress)


@pytest.mark.parametrize(("seconds", "workers"), [(0, 2), (-1, 2), (float("nan"), 2), (float("inf"), 2), (1, 0)])
def test_a_budget_that_cannot_be_is_refused(seconds: float, workers: int) -> None:
    with pytest.raises(ScheduleError, match="is no budget"):
        solve_exact(EASY, seconds, workers)


def test_a_missing_solver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ortools.sat.python", None)
    with pytest.raises(BackendError, match=r"pip install 'nanort\[exact\]'"):
        solve_exact(EASY)


def test_figures_of_unlike_scales_are_rounded_in_favour_of_the_optimum() -> None:
    """Rounding durations down moves the bound too: an optimum just above it must not be cut off."""
    one = Task("a", (Mode(4.064375206067522, {"r": 2.859545642237924}), Mode(1.44e-06, {"r": 494.44325876130233})))
    other = Task("b", (Mode(4.556589093296216, {"r": 3.2212566747478037}),))
    problem = Problem([one, other], {"r": 494.44325876130233})
    side_by_side = Solution((0.0, 0.0), (0, 0), 4.556589093296216, 0.0)
    problem.check(side_by_side)
    found = solve(problem, policy="exact", schedules=1, seconds=5)
    problem.check(found)
    assert found.bound <= side_by_side.makespan
    assert not found.optimal or found.makespan == side_by_side.makespan
