from __future__ import annotations

import importlib
from types import ModuleType

import pytest

from nanort.costs.roofline import Costs
from nanort.scheduling.bounds import bounds
from tree import ROOT

SERIAL = 225.05e-3
"""The paper's seconds of all operators, one after the other."""

MEASURED = 1.17
"""How many times faster overlap made the paper's system."""


@pytest.fixture
def nanoflow(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT)  # benchmarks are run from there and are not installed
    return importlib.import_module("benchmarks.nanoflow")


def cheapest(nanoflow: ModuleType) -> float:
    """Device-seconds of all operators, each on the share where its exchange costs least."""
    rates: dict[str, float] = {
        name: min(share / performance for share, performance in points) for name, points in nanoflow.EXCHANGE.items()
    }
    spent: dict[str, float] = nanoflow.MILLISECONDS
    return sum(rates.get(name, 1.0) * milliseconds / 1e3 for name, milliseconds in spent.items())


def test_one_after_the_other_takes_what_the_paper_measured(nanoflow: ModuleType) -> None:
    graph, costs = nanoflow.graph(), Costs(nanoflow.A100, nanoflow.PROFILE)
    assert sum(costs.solo(node, 108).seconds for node in graph.nodes) == pytest.approx(SERIAL, rel=1e-5)


def test_the_exchange_allows_1_28(nanoflow: ModuleType) -> None:
    assert pytest.approx(1.28, abs=0.005) == SERIAL / cheapest(nanoflow)


def test_planned_gain_lies_between_what_was_measured_and_what_the_exchange_allows(nanoflow: ModuleType) -> None:
    layers = 8
    schedule = nanoflow.plan(nanoflow.graph(layers), nanoflow.Nested())
    schedule.check()
    outlook = schedule.outlooks[0]
    assert outlook.serial_seconds == pytest.approx(SERIAL * layers / nanoflow.LAYERS, rel=1e-5)
    assert MEASURED <= outlook.gain <= SERIAL / cheapest(nanoflow)


def test_bounds_find_the_cheapest_exchange(nanoflow: ModuleType) -> None:
    layers = 8
    schedule = nanoflow.plan(nanoflow.graph(layers), nanoflow.Nested((20,), (44,)), 4)
    found = bounds(schedule.graph, Costs(nanoflow.A100, nanoflow.PROFILE), schedule.partition)
    least = cheapest(nanoflow) * layers / nanoflow.LAYERS
    assert least <= found.partitioned[1] * (1 + 1e-9) <= schedule.makespan * (1 + 1e-9)
    assert found.sms == pytest.approx(least, rel=0.01)


def test_networks_do_not_run_beside_each_other(nanoflow: ModuleType) -> None:
    schedule = nanoflow.plan(nanoflow.graph(2), nanoflow.Nested((20,), (44,)))
    streams: dict[str, set[str]] = {}
    for a in schedule.assignments:
        streams.setdefault(schedule.graph.nodes[a.node].op.name, set()).add(a.stream)
    assert streams["network"] == {"network"}
    assert streams["decode_attention"] == {"attention"}
