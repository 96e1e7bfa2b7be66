"""Peers' plans of hundreds of random graphs on several devices: valid, and judged to take what they are planned to."""

from __future__ import annotations

import importlib
import random

import pytest

import dags
import nanort as nr
from nanort import graphs
from tree import ROOT

DEVICES = [nr.device(name) for name in ("h200", "a100-80g", "l40s", "b200")]
DEVICES += [nr.device("cpu").with_(sms=sms, hbm_saturation_sms=(1, sms)) for sms in (2, 8)]


@pytest.mark.parametrize("first", range(0, 30, 10))
def test_hundreds_of_plans(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)  # benchmarks are run from there and are not installed
    peers, bench = (importlib.import_module(f"benchmarks.{name}") for name in ("peers", "bench_policies"))
    for seed in range(first, first + 10):
        device = DEVICES[seed % len(DEVICES)]
        for graph, cuts in ((dags.dag(seed), (1,)), (graphs.synthetic.random_dag(seed), (1, 2))):
            if any(node.span[0] > device.sms for node in graph.nodes):
                continue
            for peer in peers.PEERS:
                schedule = nr.co_schedule(graph, device, policy=peer, nano_batches=cuts, effort=32, guard=False)
                schedule.check()
                assert bench.judge(schedule, bench.Truth(schedule.saturation)) == pytest.approx(schedule.makespan)
                truth = bench.Truth.draw(graph, device, random.Random(seed))
                assert bench.judge(schedule, truth) > 0.5 * schedule.bounds.best


def test_nanort_is_best_or_equal_on_most_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few layers of each step and a dozen random graphs; benchmarks/bench_policies.py has them all."""
    monkeypatch.syspath_prepend(ROOT)
    bench, workloads = (importlib.import_module(f"benchmarks.{name}") for name in ("bench_policies", "workloads"))
    verdicts = [bench.compare(name, build(4)) for name, build in workloads.WORKLOADS.items()]
    best = bench.rows("steps", verdicts)[0]
    assert best.met, "\n".join(f"{v.graph}: {peer} {v.ratio(peer):.4f}" for v in verdicts for peer in v.seconds)
