from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

import nanort as nr
from nanort.errors import ProblemError, ScheduleError
from nanort.scheduling.problem import Mode, Problem, Solution, Task
from problems import random_problem

ONE, TWO = Task("a", [Mode(1, {"r": 1})]), Task("b", [Mode(2, {"r": 2})])
PAIR = Problem([ONE, TWO], {"r": 2}, [("a", "b")], name="pair")
TOP = 1 << 53


@pytest.mark.parametrize("figure", [-1, -0.5, math.nan, math.inf, TOP + 1, 10**400, True, "2", None])
def test_a_figure_that_cannot_be_is_refused(figure: float) -> None:
    with pytest.raises(ProblemError, match="the duration of a mode is"):
        Mode(figure)
    with pytest.raises(ProblemError, match="the usage of 'r' is"):
        Mode(1, {"r": figure})
    with pytest.raises(ProblemError, match="the capacity of 'r' is"):
        Problem([Task("a", [Mode(1)])], {"r": figure})


@pytest.mark.parametrize(
    ("tasks", "pairs", "said"),
    [
        ([], [], "has no tasks"),
        (["a"], [], "'a' is no task"),
        ([ONE, ONE], [], "two tasks are called 'a'"),
        ([Task("a", [Mode(1, {"r": 3}), Mode(2, {"r": 2.5})])], [], "'a' fits in none of its 2 modes"),
        ([Task("a", [Mode(1, {"x": 1})])], [], r"uses \['x'\]"),
        ([ONE, TWO], [("a", "c")], "there is no task 'c'"),
        ([ONE, TWO], [("b", "b")], "cannot wait for itself"),
        ([ONE, TWO], ["ab"], "give pairs"),
        ([ONE, TWO], [("a", "b", "c")], "give pairs"),
        ([Task(c, [Mode(1)]) for c in "abcde"], [("a", "b"), ("b", "c"), ("c", "d"), ("d", "b")], "'b' -> 'c' -> 'd'"),
        ([Task(c, [Mode(TOP)]) for c in "ab"], [], "choose a longer unit of time"),
    ],
)
def test_a_problem_that_cannot_be_is_refused(tasks: list[Task], pairs: list[tuple[str, str]], said: str) -> None:
    with pytest.raises(ProblemError, match=said):
        Problem(tasks, {"r": 2}, pairs)


def test_a_task_that_cannot_be_is_refused() -> None:
    with pytest.raises(ProblemError, match="has no mode"):
        Task("a", [])
    with pytest.raises(ProblemError, match="a name is a string"):
        Task(3, [Mode(1)])  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ProblemError, match="give a sequence of Mode"):
        Task("a", Mode(1))  # type: ignore[arg-type]  # wrong on purpose


def test_figures_are_plain_and_values_are_equal_by_what_they_hold() -> None:
    mode = Mode(np.int64(3), {"r": np.float32(0.5)})
    assert (type(mode.duration), type(mode.usage["r"])) == (int, float)
    assert Problem(iter([ONE, TWO]), {"r": 2}, [("a", "b"), ("a", "b")], name="pair") == PAIR
    assert len({PAIR, Problem([ONE, TWO], {"r": 2}, [("a", "b")], name="pair")}) == 1
    assert repr(PAIR) == "<Problem pair: 2 tasks, 1 precedence, 1 resource>"


def test_arrays_hold_the_modes_that_fit_the_shortest_first() -> None:
    modes = [Mode(4, {"r": 1}), Mode(1, {"r": 9}), Mode(2, {"r": 2, "s": 8}), Mode(2, {"r": 1, "s": 8})]
    arrays = Problem([Task("a", modes), Task("b", [Mode(0)])], {"r": 4, "s": 8}, [("b", "a")]).arrays
    assert arrays.mode_index.tolist() == [[3, 2, 0], [0, -1, -1]]
    assert arrays.modes.tolist() == [3, 1]
    assert arrays.duration.tolist() == [[2, 2, 4], [0, math.inf, math.inf]]
    assert arrays.usage.tolist() == [[[1, 8], [2, 8], [1, 0]], [[0, 0]] * 3]
    assert arrays.capacity.tolist() == [4, 8]
    assert (arrays.pred_ptr.tolist(), arrays.preds.tolist()) == ([0, 1, 1], [1])
    assert (arrays.succ_ptr.tolist(), arrays.succs.tolist()) == ([0, 0, 1], [0])
    assert arrays.order.tolist() == [1, 0]
    assert arrays.integral


@pytest.mark.parametrize("part", ["duration", "usage", "capacity"])
def test_one_fraction_makes_a_problem_fractional(part: str) -> None:
    figure = {"duration": 1.0, "usage": 1.0, "capacity": 2.0}
    for fraction in (0.0, 0.5):
        figure[part] += fraction
        problem = Problem([Task("a", [Mode(figure["duration"], {"r": figure["usage"]})])], {"r": figure["capacity"]})
        assert problem.arrays.integral == (fraction == 0.0)


@pytest.mark.parametrize("seed", range(20))
def test_arrays_state_every_precedence_both_ways_in_a_topological_order(seed: int) -> None:
    problem = random_problem(random.Random(seed), 30, integral=False)
    arrays, index = problem.arrays, {task.name: at for at, task in enumerate(problem.tasks)}
    place = np.argsort(arrays.order)
    for pointers, others, forward in ((arrays.succ_ptr, arrays.succs, 1), (arrays.pred_ptr, arrays.preds, -1)):
        rows = np.repeat(np.arange(30), np.diff(pointers))
        pairs = list(zip(rows.tolist(), others.tolist(), strict=True))
        assert sorted(pair[::forward] for pair in pairs) == sorted((index[a], index[b]) for a, b in problem.precedence)
        assert (forward * (place[others] - place[rows]) > 0).all()


GOOD = Solution((0, 1), (0, 0), 3, 3)


def test_check_takes_a_solution_and_says_that_it_is_optimal() -> None:
    PAIR.check(GOOD)
    assert GOOD.optimal
    assert repr(GOOD) == "<Solution: makespan 3, optimal; 0 schedules>"
    late = Solution((0, 2), (0, 0), 4, 3, 20, "time was up after 20 schedules")
    PAIR.check(late)
    assert repr(late) == (
        "<Solution: makespan 4, bound 3, at most 33.3% above the optimum; 20 schedules; time was up after 20 schedules>"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"starts": (0,)}, "2 tasks, 1 starts and 2 modes"),
        ({"modes": (0, 1)}, r"'b' is in mode 1, and those that fit are \[0\]"),
        ({"modes": (0, 0.0)}, "'b' is in mode 0.0"),
        ({"starts": (0, 0.5)}, "'b' starts at 0.5, before 'a' ends at 1"),
        ({"starts": (-1, 1)}, "the start of 'a' is -1"),
        ({"starts": (0, math.nan)}, "the start of 'b' is nan"),
        ({"starts": (0, math.inf)}, "the start of 'b' is inf"),
        ({"starts": (0, 10**400)}, "the start of 'b' is 1000"),
        ({"starts": ("0", 1)}, "the start of 'a' is '0'"),
        ({"makespan": 4}, "the makespan is said to be 4, the last task ends at 3"),
        ({"makespan": math.nan}, "the makespan is nan"),
        ({"bound": 3.5}, "the bound 3.5 is above the makespan 3"),
        ({"bound": -1}, "the bound is -1"),
    ],
)
def test_check_refuses_what_breaks_a_constraint(change: dict[str, object], said: str) -> None:
    with pytest.raises(ScheduleError, match=said):
        PAIR.check(replace(GOOD, **change))  # type: ignore[arg-type]  # fields of several types


def test_check_names_the_tasks_that_use_too_much_at_once() -> None:
    tasks = [Task(name, [Mode(length, {"r": 1, "s": 3})]) for name, length in (("a", 2), ("b", 2), ("c", 1), ("d", 0))]
    problem = Problem(tasks, {"s": 8, "r": 2})
    with pytest.raises(ScheduleError, match=r"at 1 there is 8 of 's', and these tasks use 9: 'a', 'b', 'c'"):
        problem.check(Solution((0, 0, 1, 1), (0, 0, 0, 0), 2, 2))
    problem.check(Solution((0, 0, 2, 1), (0, 0, 0, 0), 3, 2))  # 'd' takes no time, and so nothing


def test_a_mode_that_does_not_fit_is_refused_even_if_it_takes_no_time() -> None:
    problem = Problem([Task("a", [Mode(0, {"r": 3}), Mode(1)])], {"r": 2})
    with pytest.raises(ScheduleError, match=r"mode 0, and those that fit are \[1\]"):
        problem.check(Solution((0,), (0,), 0, 0))


def test_rounding_is_forgiven_where_figures_are_fractions_and_only_there() -> None:
    thirds = [Task(name, [Mode(0.1, {"r": 0.1})]) for name in "abc"]
    problem = Problem([*thirds, Task("d", [Mode(0.3)])], {"r": 0.3}, [("a", "d")])
    assert 0.1 + 0.1 + 0.1 > 0.3
    good = Solution((0, 0, 0, 0.1 - 1e-12), (0,) * 4, 0.4, 0.4)
    problem.check(good)
    with pytest.raises(ScheduleError, match="before 'a' ends"):
        problem.check(replace(good, starts=(0, 0, 0, 0.1 - 1e-8)))
    with pytest.raises(ScheduleError, match="before 'a' ends"):
        PAIR.check(replace(GOOD, starts=(0, 1 - 1e-12)))


@pytest.mark.parametrize("seed", range(200))
def test_check_agrees_with_a_look_at_every_instant(seed: int) -> None:
    rng = random.Random(seed)
    problem = random_problem(rng, 5, integral=True, modes=1)
    starts = tuple(rng.randint(0, 12) for _ in problem.tasks)
    ends = [start + task.modes[0].duration for start, task in zip(starts, problem.tasks, strict=True)]
    index = {task.name: at for at, task in enumerate(problem.tasks)}
    right = all(ends[index[a]] <= starts[index[b]] for a, b in problem.precedence) and all(
        sum(t.modes[0].usage.get(name, 0) for t, s, e in zip(problem.tasks, starts, ends, strict=True) if s <= now < e)
        <= capacity
        for name, capacity in problem.capacities.items()
        for now in range(20)
    )
    solution = Solution(starts, (0,) * 5, max(ends), 0)
    if right:
        problem.check(solution)
    else:
        with pytest.raises(ScheduleError):
            problem.check(solution)


def test_a_graph_of_rigid_demands_is_a_problem() -> None:
    graph, device = nr.Graph("rigid"), nr.device("h200")
    x = graph.input("x", (4, 4), torch.float32)
    y = graph.call(torch.relu, x, demand=nr.Demand.rigid(seconds=3e-6, sms=(32, 64), hbm=0.5), name="relu")
    z = graph.call(torch.neg, x, demand=nr.Demand.rigid(seconds=2e-6, sms=0, h2d=0.9), name="copy")
    graph.call(torch.add, y, z, demand=nr.Demand.rigid(seconds=1e-6, sms=8), name="sum", sms=(16, 16))
    problem = Problem.of(graph, device)
    assert problem.name == "rigid"
    assert [task.name for task in problem.tasks] == ["relu", "copy", "sum"]
    assert set(problem.precedence) == {("relu", "sum"), ("copy", "sum")}
    assert problem.tasks[0].modes == (Mode(3e-6, {"sms": 32, "hbm": 0.5, "h2d": 0, "d2h": 0}),)
    assert problem.tasks[1].modes[0].usage == {"sms": 0, "hbm": 0, "h2d": 0.9, "d2h": 0, "h2d engine": 1}
    assert problem.tasks[2].modes[0].usage["sms"] == 16
    assert problem.capacities == {"sms": device.sms} | dict.fromkeys(
        ["hbm", "h2d", "d2h", "h2d engine", "d2h engine"], 1
    )
    problem.check(Solution((0, 0, 3e-6), (0, 0, 0), 4e-6, 0))


def test_a_graph_with_work_to_place_is_refused_by_the_node() -> None:
    graph = nr.Graph("fluid")
    x = graph.input("x", (4, 4), torch.float32)
    graph.call(torch.relu, x, demand=nr.Demand(flops=1e9), name="relu")
    with pytest.raises(ProblemError, match=r"test_problem.py:\d+: relu has no fixed duration"):
        Problem.of(graph, nr.device("h200"))
