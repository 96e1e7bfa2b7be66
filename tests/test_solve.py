from __future__ import annotations

import math
import random
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from nanort.errors import PolicyError, ScheduleError
from nanort.scheduling.problem import Mode, Problem, Solution, Task
from nanort.scheduling.solving import generation, genetic, vectorised
from nanort.scheduling.solving.bounds import bound
from nanort.scheduling.solving.breeding import sample
from nanort.scheduling.solving.genetic import Search
from nanort.scheduling.solving.solve import solve
from problems import optimum, random_problem

CHAIN = Problem([Task(name, [Mode(2, {"r": 1})]) for name in "abc"], {"r": 9}, [("a", "b"), ("b", "c")], name="chain")


def hard(jobs: int = 30, modes: int = 1, seed: int = 0) -> Problem:
    """A problem whose bound is no help: few resources, which all activities want."""
    rng = random.Random(seed)
    ways = [
        [Mode(rng.randint(1, 10), {f"r{r}": rng.randint(1, 10) for r in range(3)}) for _ in range(modes)]
        for _ in range(jobs)
    ]
    arcs = [(str(a), str(b)) for b in range(jobs) for a in range(b) if rng.random() < 2 / jobs]
    return Problem([Task(str(at), way) for at, way in enumerate(ways)], {f"r{r}": 14 for r in range(3)}, arcs)


def judged(problem: Problem, **options: object) -> Solution:
    """A solution within its budget, checked."""
    solution = solve(problem, **options)
    problem.check(solution)
    assert 1 <= solution.schedules <= options.get("schedules", 1000)
    return solution


# What holds of every solution.


@pytest.mark.parametrize("integral", [True, False])
@pytest.mark.parametrize("policy", ["list", "search"])
def test_solutions_of_random_problems_are_valid_within_their_budget_and_not_below_the_bound(
    policy: str, integral: bool
) -> None:
    for seed in range(60):
        rng = random.Random(seed)
        problem = random_problem(
            rng, rng.randint(1, 25), integral=integral, modes=rng.randint(1, 3), resources=rng.randint(0, 3)
        )
        kind = int if problem.arrays.integral else float
        for schedules in (1, 2, 3, 150):
            solution = judged(problem, policy=policy, schedules=schedules, seed=seed)
            assert solution.bound == min(solution.makespan, bound(problem).best)
            assert {type(figure) for figure in (*solution.starts, solution.makespan)} == {kind}


@pytest.mark.parametrize("integral", [True, False])
def test_the_search_finds_the_optima_of_small_problems(integral: bool) -> None:
    for seed in range(40):
        problem = random_problem(random.Random(seed), 5, integral=integral)
        assert judged(problem, policy="search").makespan == pytest.approx(optimum(problem), rel=1e-9)


@pytest.mark.parametrize("modes", [1, 3])
def test_equal_seeds_and_budgets_give_equal_solutions_and_the_search_beats_the_rules(modes: int) -> None:
    problem = hard(modes=modes)
    first = judged(problem, policy="search", schedules=2000, seed=7)
    assert judged(problem, policy="search", schedules=2000, seed=7) == first
    assert first.makespan < judged(problem, policy="list").makespan
    assert any(judged(problem, schedules=200, seed=seed).starts != first.starts for seed in range(3))


def test_more_schedules_are_never_worse_by_much_and_large_budgets_start_anew() -> None:
    problem = hard(jobs=8)
    found = [judged(problem, policy="search", schedules=schedules).makespan for schedules in (10, 100, 20_000)]
    assert found[2] <= found[1] <= found[0]
    search = Search(problem.arrays, 0.0, 20_000, math.inf, seed=0)
    search.run()
    assert search.schedules == 20_000 - search.forwards, "one schedule is kept for shifting tasks to the left"
    assert search.makespan == found[2]


def test_a_bound_that_is_met_ends_the_search() -> None:
    solution = judged(CHAIN, schedules=100_000)
    assert solution.optimal
    assert solution.starts == (0, 2, 4)
    assert solution.schedules < 1000
    assert solution.stopped == ""


# Budgets and interruptions.


def test_time_that_is_up_leaves_the_best_so_far() -> None:
    solution = judged(hard(), policy="search", schedules=10**6, seconds=1e-9)
    assert solution.stopped == "time was up after 0 schedules"
    assert solution.schedules == 1


def test_ctrl_c_leaves_the_best_so_far() -> None:
    told: list[tuple[int, int, float, float]] = []

    def progress(schedules: int, budget: int, best: float, bound: float) -> None:
        told.append((schedules, budget, best, bound))
        if len(told) == 5:
            raise KeyboardInterrupt

    solution = judged(hard(), policy="search", schedules=50_000, progress=progress)
    assert solution.stopped == f"interrupted after {told[4][0]:,} schedules"
    assert solution.makespan <= told[4][2]
    assert [figures[0] for figures in told] == sorted(figures[0] for figures in told)
    assert all(figures[1] == 50_000 and figures[3] == bound(hard()).best for figures in told)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"schedules": 0}, ScheduleError, "schedules=0 is no budget"),
        ({"schedules": -5}, ScheduleError, "schedules=-5 is no budget"),
        ({"schedules": 2.5}, ScheduleError, "schedules=2.5 is no budget"),
        ({"schedules": True}, ScheduleError, "schedules=True is no budget"),
        ({"seconds": 0}, ScheduleError, "seconds=0 is no budget"),
        ({"seconds": math.nan}, ScheduleError, "seconds=nan is no budget"),
        ({"seconds": -1.0}, ScheduleError, "seconds=-1.0 is no budget"),
        ({"seed": 0.5}, ScheduleError, "seed=0.5 cannot be repeated"),
        ({"policy": "fastest"}, PolicyError, "there is no policy 'fastest': give one of list, search, exact, auto"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        solve(CHAIN, **options)


# Policies.


def test_a_policy_of_ones_own_orders_the_tasks() -> None:
    tasks = [Task(name, [Mode(1, {"r": 1})]) for name in "abcd"]
    backwards = judged(Problem(tasks, {"r": 1}), policy=lambda problem: [-at for at in range(len(problem.tasks))])
    assert backwards.starts == (3, 2, 1, 0)
    assert judged(CHAIN, policy=lambda problem: np.array([3.0, 2.0, math.inf])).starts == (0, 2, 4)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([1, 2], r"policy mine answered numbers of shape \(2,\): give one for each of 3 tasks"),
        ([1, math.nan, 2], "policy mine answered NaN for task 'b'"),
        (["x", 1, 2], "policy mine answered .* give a number for each task"),
        (None, "policy mine answered"),
    ],
)
def test_a_policy_that_orders_nothing_is_refused_by_its_name(answer: object, said: str) -> None:
    def mine(problem: Problem) -> object:
        return answer

    with pytest.raises(PolicyError, match=said):
        solve(CHAIN, policy=mine)  # type: ignore[arg-type]  # wrong on purpose


def test_exact_and_auto_with_time_prove_what_a_search_cannot() -> None:
    pytest.importorskip("ortools")
    problem = hard(jobs=12)
    assert not judged(problem).optimal
    exact = judged(problem, policy="exact")
    assert exact.optimal
    assert judged(problem, seconds=60.0).makespan == exact.makespan == exact.bound
    assert not judged(problem, policy="search", seconds=60.0).optimal


def test_auto_without_ortools_is_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = hard(jobs=12)
    monkeypatch.setitem(sys.modules, "ortools", None)
    assert judged(problem, seconds=60.0) == judged(problem, policy="search")


# The schemes, compiled and vectorised.


def lists(problem: Problem, count: int) -> generation.Ints:
    """Random activity lists."""
    a, orders = problem.arrays, np.empty((count, len(problem.tasks)), np.int64)
    side = Search(a, 0.0, 1, math.inf, 0).sides[0]
    sample(side, np.zeros(len(a.order)), 1.0, np.array([1 + len(a.order)]), orders)
    return orders


def quarters(problem: Problem) -> Problem:
    """The same with durations and usages that are no whole numbers, but that no sum rounds."""
    tasks = [
        Task(task.name, [Mode(m.duration + 0.25, {r: u / 4 for r, u in m.usage.items()}) for m in task.modes])
        for task in problem.tasks
    ]
    return Problem(tasks, {name: amount / 4 for name, amount in problem.capacities.items()}, problem.precedence)


@pytest.mark.parametrize("modes", [1, 3])
@pytest.mark.parametrize("change", [lambda problem: problem, quarters])
def test_both_implementations_of_the_schemes_are_one(modes: int, change: Callable[[Problem], Problem]) -> None:
    for seed in range(10):
        problem = change(random_problem(random.Random(seed), 20, integral=True, modes=modes))
        search = Search(problem.arrays, 0.0, 1, math.inf, seed)
        orders, chosen, at_once = lists(problem, 12), search.chosen(12), np.arange(12) % 2
        for way in (0, 1, 0):
            answers = []
            for implementation in (generation, vectorised):
                modes_, finish, back = chosen.copy(), np.zeros(orders.shape), np.zeros_like(orders)
                makespans = implementation.generate(search.sides[way], orders, modes_, at_once, finish, back)
                answers.append((makespans, modes_, finish, back))
            for one, other in zip(*answers, strict=True):
                np.testing.assert_array_equal(one, other)
            _, chosen, _, orders = answers[0]


@pytest.mark.parametrize("integral", [True, False])
def test_justification_is_never_longer(integral: bool) -> None:
    for seed in range(20):
        problem = random_problem(random.Random(seed), 20, integral=integral, modes=1)
        search, orders = Search(problem.arrays, 0.0, 1, math.inf, seed), lists(problem, 10)
        before, at_once = np.full(10, np.inf), np.arange(10) % 2
        for way in (0, 1, 0, 1):
            finish, back = np.zeros(orders.shape), np.zeros_like(orders)
            modes = search.chosen(10)
            makespans = generation.generate(search.sides[way], orders, modes, at_once, finish, back)
            assert (makespans <= before * (1 + 1e-12)).all()
            before, orders, at_once = makespans, back, np.zeros(10, np.int64)


def test_no_task_of_a_schedule_could_end_sooner_by_itself() -> None:
    """Serial schedules are active and parallel ones do not delay: what the literature proves of them."""
    problem = random_problem(random.Random(3), 12, integral=True, modes=1)
    a, search, orders = problem.arrays, Search(problem.arrays, 0.0, 1, math.inf, 0), lists(problem, 8)
    finish, back = np.zeros(orders.shape), np.zeros_like(orders)
    generation.generate(search.sides[0], orders, search.chosen(8), np.arange(8) % 2, finish, back)
    for ends in finish:
        starts = ends - a.duration[:, 0]
        for task in range(len(ends)):
            ready = max((ends[pred] for pred in a.preds[a.pred_ptr[task] : a.pred_ptr[task + 1]]), default=0.0)
            for start in np.arange(ready, starts[task]):
                instants = np.arange(start, max(start, start + a.duration[task, 0]))
                others = [
                    (starts <= instant) & (instant < ends) & (np.arange(len(ends)) != task) for instant in instants
                ]
                used = [a.usage[there, 0].sum(axis=0) + a.usage[task, 0] for there in others]
                assert any((row > a.capacity).any() for row in used), "it fits where it does not stand"


def test_solutions_are_the_same_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [hard(jobs=15), hard(jobs=10, modes=3), quarters(hard(jobs=15, seed=1))]
    expected = [judged(problem, policy="search", schedules=300, seed=1) for problem in problems]
    monkeypatch.setattr(genetic, "COMPILES", False)
    assert [judged(problem, policy="search", schedules=300, seed=1) for problem in problems] == expected


def test_nothing_needs_numba() -> None:
    script = (
        "import sys; sys.modules['numba'] = None\n"
        "import nanort.scheduling.solving.solve\n"
        "from nanort.scheduling.problem import Mode, Problem, Task\n"
        "tasks = [Task(str(at), [Mode(1 + at * 7 % 5, {'r': 1 + at * 3 % 4})]) for at in range(12)]\n"
        "problem = Problem(tasks, {'r': 5}, [('0', '9'), ('3', '7')])\n"
        "print(nanort.scheduling.solving.solve.solve(problem, policy='search', schedules=200))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    tasks = [Task(str(at), [Mode(1 + at * 7 % 5, {"r": 1 + at * 3 % 4})]) for at in range(12)]
    problem = Problem(tasks, {"r": 5}, [("0", "9"), ("3", "7")])
    assert run.stdout.strip() == str(judged(problem, policy="search", schedules=200))
