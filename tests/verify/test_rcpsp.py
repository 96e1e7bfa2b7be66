"""How good solutions are on whole grids of generated problems, every one of them checked; and large problems."""

from __future__ import annotations

import random

import numpy as np
import pytest

from nanort.scheduling.problem import Mode, Problem, Solution, Task
from nanort.scheduling.solving.exact import solve_exact
from nanort.scheduling.solving.solve import solve
from tree import ROOT


@pytest.fixture(autouse=True)
def _root_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)  # benchmarks are run from there and are not installed


def judged(problem: Problem, **options: object) -> Solution:
    solution = solve(problem, policy="search", **options)  # type: ignore[arg-type]  # options of solve, handed on
    problem.check(solution)
    return solution


def grid(name: str) -> list[Problem]:
    from benchmarks import progen

    return [problem for _, problem in progen.grid(name, per_cell=1)]


@pytest.mark.parametrize(("name", "schedules", "most"), [("j30", 1000, 0.3), ("j30", 5000, 0.1), ("m20", 5000, 1.0)])
def test_gaps_to_proved_optima(name: str, schedules: int, most: float) -> None:
    pytest.importorskip("ortools")
    gaps = []
    for problem in grid(name):
        best = judged(problem, schedules=20_000, seed=1)
        exact = solve_exact(problem, 60.0, hint=best)
        problem.check(exact)
        if exact.optimal:
            gaps.append(judged(problem, schedules=schedules).makespan / exact.makespan - 1)
    assert min(gaps) >= 0
    assert 100 * np.mean(gaps) <= most
    assert len(gaps) >= 0.9 * len(grid(name))


@pytest.mark.parametrize(("name", "most"), [("j60", 0.8), ("j120", 2.0)])
def test_gaps_to_what_a_long_search_finds(name: str, most: float) -> None:
    gaps = [
        judged(problem, schedules=1000).makespan / judged(problem, schedules=20_000, seed=1).makespan - 1
        for problem in grid(name)[::2]
    ]
    assert 100 * np.mean(gaps) <= most


@pytest.mark.parametrize("tasks", [1_000, 10_000])
def test_large_problems(tasks: int) -> None:
    rng, names = random.Random(tasks), [str(at) for at in range(tasks)]
    made = [Task(name, [Mode(rng.random(), {"r": rng.random(), "s": rng.random()})]) for name in names]
    pairs = [(names[rng.randrange(max(0, at - 50), at)], names[at]) for at in range(1, tasks) for _ in range(2)]
    solution = judged(Problem(made, {"r": 2, "s": 3}, pairs), schedules=30)
    assert solution.makespan <= 1.5 * solution.bound
