"""Schedules of graphs of all families: valid, reproducible, never slower than serial even where costs are wrong.

There are 100 of them, with --soak 500.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial

import pytest

import dags
import nanort as nr
from nanort import graphs
from nanort.costs.roofline import Costs
from tree import ROOT

H200 = nr.device("h200")
FAMILIES = ("layered", "fork_join", "series_parallel", "llm_like")
CI, SOAK = 5, 25
"""Blocks of twenty graphs."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("block", range(SOAK if metafunc.config.getoption("soak") else CI))


def family(block: int) -> Iterator[nr.Graph]:
    """Twenty graphs: of every synthetic family, and small ones of every kind of demand."""
    for seed in range(block * 4, block * 4 + 4):
        for name in FAMILIES:
            yield getattr(graphs.synthetic, name)(random.Random(seed).randint(5, 120), seed)
        yield dags.dag(seed)


def off(graph: nr.Graph, rng: random.Random) -> dict[Hashable, float]:
    """By call, how many times as long as planned it takes: up to twice, or half."""
    return {Costs(H200).key(node): 2 ** rng.uniform(-1, 1) for node in graph.nodes}


def side_by_side(judge: Callable[[nr.Schedule], float], schedules: Sequence[nr.Schedule]) -> list[list[float]]:
    """One run of each."""
    return [[judge(schedule)] for schedule in schedules]


def test_schedules_are_valid_reproducible_and_guarded(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)  # benchmarks are run from there and are not installed
    bench = importlib.import_module("benchmarks.bench_policies")
    for graph in family(block):
        cuts = (1,) if graph.name.startswith("dag") else (1, 2)
        options = {"nano_batches": cuts, "effort": 40, "seed": block}
        schedule = nr.co_schedule(graph, H200, **options)
        schedule.check()
        assert schedule.bounds.best <= schedule.makespan * (1 + 1e-9) <= schedule.serial_makespan * (1 + 2e-9)
        again = nr.co_schedule(graph, H200, **options)
        assert again == schedule
        assert repr(again.assignments) == repr(schedule.assignments)
        rng = random.Random(graph.name)
        truth = bench.Truth(rng.randint(*H200.hbm_saturation_sms), off(graph, rng))
        judge = partial(bench.judge, truth=truth)
        told = nr.co_schedule(graph, H200, measure=partial(side_by_side, judge), **options)
        serial = nr.co_schedule(graph, H200, policy="serial", nano_batches=1)
        assert judge(told) <= 1.02 * judge(serial)
