from __future__ import annotations

import random

import pytest

from nanort.scheduling.problem import Mode, Problem, Task
from nanort.scheduling.solving.bounds import bound
from problems import optimum, random_problem


@pytest.mark.parametrize("integral", [True, False])
@pytest.mark.parametrize("modes", [1, 3])
def test_no_bound_is_above_the_optimum(integral: bool, modes: int) -> None:
    tight = 0
    for seed in range(60):
        problem = random_problem(random.Random(seed), 5, integral=integral, modes=modes)
        found, least = bound(problem), optimum(problem)
        for part in ("critical_path", "work", "windows"):
            times = getattr(found, part)
            for time in times.values() if isinstance(times, dict) else [times]:
                assert time <= least * (1 + 1e-9)
        assert found.best in (found.critical_path, *found.work.values(), *found.windows.values())
        tight += found.best >= least * (1 - 1e-9)
    assert tight > 20


def test_bounds_that_are_worked_out_by_hand() -> None:
    tasks = [Task("in", [Mode(2)]), *(Task(name, [Mode(3, {"r": 2})]) for name in "abc"), Task("out", [Mode(1)])]
    pairs = [pair for name in "abc" for pair in (("in", name), (name, "out"))]
    found = bound(Problem(tasks, {"r": 3, "s": 1}, pairs))
    assert found.critical_path == 6
    assert found.work == {"r": 2 + 6 + 1, "s": 0}  # at 2 of 3 units each, 18 units of work fill 6 units of time
    assert (found.best, found.limit) == (9, "work of r")
    assert isinstance(found.best, int)


def test_a_window_counts_the_part_of_a_task_that_must_fall_into_it() -> None:
    chain = [Task(f"c{at}", [Mode(2, {"s": 1})]) for at in range(5)]
    wide = [Task(name, [Mode(4, {"r": 1})]) for name in "ab"]
    pairs = [(f"c{at}", f"c{at + 1}") for at in range(4)] + [("c1", name) for name in "ab"] + [(n, "c4") for n in "ab"]
    found = bound(Problem([*chain, *wide], {"r": 1, "s": 2}, pairs))
    assert found.critical_path == 10
    assert found.windows["r"] == 4 + 8 + 2  # both must lie between c1 and c4


def test_each_mode_counts_with_its_own_least() -> None:
    modes = [Mode(1, {"r": 8, "s": 0}), Mode(4, {"r": 1, "s": 9})]
    found = bound(Problem([Task("a", modes), Task("b", modes)], {"r": 10, "s": 10}))
    assert found.critical_path == 1
    assert found.work == {"r": 1, "s": 0}  # 8 units of r in the second mode; none of s in the first


def test_a_problem_without_resources_is_bound_by_its_critical_path() -> None:
    found = bound(Problem([Task("a", [Mode(0.25)]), Task("b", [Mode(0.5)])], {}, [("a", "b")]))
    assert found.limit == "critical path"
    assert found.best == pytest.approx(0.75)
