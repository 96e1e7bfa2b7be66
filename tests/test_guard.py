from __future__ import annotations

import random
from collections.abc import Sequence
from math import log
from typing import Any

import pytest
import torch

import nanort as nr
from nanort.errors import MissingInputError, ScheduleError
from nanort.scheduling.guard import Median, fastest
from nanort.scheduling.schedule import Schedule
from random_dags import WORK

CPU = nr.device("cpu")


def schedules(count: int) -> list[Schedule]:
    """Serial schedules of different graphs, called s0, s1, ..."""
    made = []
    for name in range(count):
        graph = nr.Graph(f"s{name}")
        graph.output(y=graph.call(torch.relu, graph.input("x", (4,), torch.float32), demand=WORK))
        made.append(nr.co_schedule(graph, CPU, policy="serial"))
    return made


@pytest.mark.parametrize(
    ("runs", "interval"), [(1, None), (5, None), (6, (1, 6)), (8, (1, 8)), (9, (2, 8)), (11, (2, 10)), (20, (6, 15))]
)
def test_intervals_are_the_order_statistics_of_the_sign_test(runs: int, interval: tuple[int, int] | None) -> None:
    sample = random.Random(runs).sample(range(1, runs + 1), runs)
    assert Median.of(sample) == Median((runs + 1) / 2, interval)


def test_an_interval_holds_the_median_of_a_skewed_distribution_as_often_as_it_says() -> None:
    rng = random.Random(0)
    found = [Median.of([rng.expovariate(1.0) for _ in range(9)]).interval for _ in range(4000)]
    held = sum(interval is not None and interval[0] <= log(2) <= interval[1] for interval in found)
    assert 0.95 * 4000 < held < 0.975 * 4000  # of nine runs 96.1 %


def test_the_least_median_is_used_and_a_line_says_by_how_much() -> None:
    first, second, baseline = schedules(3)
    noise = [0.97, 0.98, 0.99, 1.0, 1.01, 1.02, 90.0]  # an outlier that a mean would follow
    lists = {id(first): [3e-3 * n for n in noise], id(second): [2e-3 * n for n in noise], id(baseline): [2.4e-3] * 7}

    def measure(asked: Sequence[Schedule]) -> list[list[float]]:
        return [lists[id(schedule)] for schedule in asked]

    kept, lines = fastest(baseline, [first, second], measure)
    assert kept is second
    start = "measured, 7 interleaved runs each, 95 % intervals: serial"
    assert lines == [
        f"{start} 3 ms [2.91 ms, 270 ms], serial 2.4 ms [2.4 ms, 2.4 ms]: 0.80x [0.01x, 0.82x]",
        f"{start} 2 ms [1.94 ms, 180 ms], serial 2.4 ms [2.4 ms, 2.4 ms]: 1.20x [0.01x, 1.24x]",
    ]
    assert fastest(baseline, [first], measure)[0] is baseline
    lists[id(first)] = lists[id(baseline)]
    assert fastest(baseline, [first], measure)[0] is first, "not slower"


def test_a_ratio_is_of_runs_that_were_side_by_side() -> None:
    plan, baseline = schedules(2)
    drift = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]  # the machine slows down, and both meet it
    _, (line,) = fastest(baseline, [plan], lambda _: [[x * 1.0 for x in drift], [x * 1.5 for x in drift]])
    assert line.endswith("serial 6 s [1 s, 32 s], serial 9 s [1.5 s, 48 s]: 1.50x [1.50x, 1.50x]")


def test_a_few_runs_tell_no_interval() -> None:
    plan, baseline = schedules(2)
    kept, (line,) = fastest(baseline, [plan], lambda _: [[2.0], [1.0]])
    assert kept is baseline
    assert line == "measured, 1 interleaved run each, too few for intervals: serial 2 s, serial 1 s: 0.50x"


@pytest.mark.parametrize(
    "samples",
    [
        [],
        [[1.0]],
        [[1.0], [1.0, 2.0]],
        [[], []],
        [[1.0], [0.0]],
        [[1.0], [float("nan")]],
        [[1.0]] * 3,
        [[1.0] * 2, [1.0] * 2, []],
        None,
        1.0,
        [1.0, 2.0],
        [[None], [1.0]],
    ],
)
def test_what_does_not_time_all_schedules_alike_is_refused(samples: Any) -> None:
    plan, baseline = schedules(2)
    with pytest.raises(ScheduleError, match="for 2 schedules: it must give the seconds of each run, as many"):
        fastest(baseline, [plan], lambda _: samples)


def test_true_measures_on_random_tensors_and_says_so() -> None:
    cores = CPU.with_(sms=2, hbm_saturation_sms=(2, 2))
    graph = nr.Graph("branches")
    x = graph.input("x", (64, 64), torch.float32)
    work = nr.Demand(flops=1e9, sms=(1, 1))
    parts = [graph.call(torch.matmul, x, graph.constant(f"w{k}", (64, 64), torch.float32), demand=work) for k in (0, 1)]
    graph.output(y=graph.call(torch.add, *parts, demand=work))
    schedule = nr.co_schedule(graph, cores, measure=True, effort=16, nano_batches=1)
    assert schedule.why[0].startswith("measured, 11 interleaved runs each, 95 % intervals: ")
    schedule.check()
    assert not any(line.startswith("measured") for line in nr.co_schedule(graph, cores, measure=False, effort=8).why)


def test_true_is_refused_before_any_search_where_integers_are_asked_for() -> None:
    graph = nr.Graph("lookup")
    table, rows = graph.constant("table", (8, 2), torch.float32), graph.input("rows", (4,), torch.int64)
    seen = graph.state("seen", (8,), torch.bool)
    graph.output(y=graph.call(lambda t, r, _: t[r], table, rows, seen, demand=WORK, name="lookup"))
    told: list[int] = []
    with pytest.raises(MissingInputError, match=r"measure=nr.Stopwatch\(inputs={'rows': ...}, states={'seen': ...}\)"):
        nr.co_schedule(graph, CPU, measure=True, progress=lambda judged, *_: told.append(judged))
    assert told == []


def test_a_ratio_lies_in_its_interval() -> None:
    plan, baseline = schedules(2)
    here = [float(k) for k in range(1, 12)]
    there = [11.0, *here[:-1]]  # the same runs, one later: medians alike, all pairs but one faster
    _, (line,) = fastest(baseline, [plan], lambda _: [here, there])
    assert line.endswith(": 0.86x [0.67x, 0.91x]")


def test_what_measures_nothing_is_refused_before_any_search() -> None:
    graph = nr.Graph("lookup")
    table, rows = graph.constant("table", (8, 2), torch.float32), graph.input("rows", (4,), torch.int64)
    graph.output(y=graph.call(lambda t, r: t[r], table, rows, demand=WORK, name="lookup"))
    told: list[int] = []
    for measure, error in ((nr.Stopwatch(), MissingInputError), (3, ScheduleError)):
        with pytest.raises(error):
            nr.co_schedule(graph, CPU, measure=measure, progress=lambda judged, *_: told.append(judged))  # type: ignore[arg-type]
    assert told == []
