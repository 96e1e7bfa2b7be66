from __future__ import annotations

import importlib
from collections import Counter
from types import ModuleType

import pytest

import nanort as nr
from nanort.costs.roofline import Costs
from tree import ROOT


@pytest.fixture
def workloads(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT)  # benchmarks are run from there and are not installed
    return importlib.import_module("benchmarks.workloads")


def test_three_models_in_four_shapes(workloads: ModuleType) -> None:
    assert len(workloads.WORKLOADS) == 12
    device = workloads.device(64)
    for name, build in workloads.WORKLOADS.items():
        graph = build(2)
        pieces = nr.nano_batch(graph, 2)
        assert len(pieces.nodes) > len(graph.nodes)
        assert any(node.op.name == "expert_linear" for node in graph.nodes) == ("mixtral" in name)
        bound = Counter(node.bound_by(device) for node in graph.nodes)
        assert min(bound["compute"], bound["memory"]) > 0
        assert (bound["pcie"] > 0) == ("offload" in name)


@pytest.mark.parametrize(("model", "layers"), [("llama-3-8b", 32), ("llama-3-70b", 80), ("mixtral-8x7b", 32)])
def test_full_depth_fits_the_device(workloads: ModuleType, model: str, layers: int) -> None:
    graph = workloads.WORKLOADS[f"{model}/offload"](None)
    assert {layer for node in graph.nodes for _, layer in node.scope} == set(range(layers))
    held = sum(root.nbytes for root in graph.roots if root.kind in ("constant", "state"))
    assert held < workloads.device(64).memory_bytes / 2


def test_shapes_lean_as_their_names_say(workloads: ModuleType) -> None:
    def memory_over_compute(step: str) -> float:
        device: nr.Device = workloads.device(64)
        graph: nr.Graph = workloads.WORKLOADS[f"llama-3-8b/{step}"](4)
        demands = [node.demand for node in graph.nodes]
        memory = sum(demand.hbm_bytes for demand in demands) / device.hbm_bandwidth
        compute = sum(demand.flops for demand in demands) / device.flops["bfloat16"]
        return memory / compute

    over = {step: memory_over_compute(step) for step in ("decode-heavy", "balanced", "prefill-heavy")}
    assert over["decode-heavy"] > 1 > over["balanced"] > over["prefill-heavy"]


def test_device_saturates_where_asked(workloads: ModuleType) -> None:
    assert workloads.device(48).hbm_saturation_sms == (48, 48)
    assert workloads.device(48).flops == nr.device("h200").flops


def test_synthetic_graphs_are_seeded_and_mix_what_binds(workloads: ModuleType) -> None:
    graphs = workloads.synthetic(40)
    assert [graph.fingerprint for graph in graphs] == [graph.fingerprint for graph in workloads.synthetic(40)]
    assert len({graph.fingerprint for graph in graphs}) == 40
    costs = Costs(workloads.device(64))
    nodes = [node for graph in graphs for node in graph.nodes]
    bound = Counter(node.bound_by(costs.device) for node in nodes)
    assert all(bound[kind] > len(nodes) / 20 for kind in ("compute", "memory", "pcie"))
    assert all(1e-5 < costs.solo(node, 132).seconds < 1e-3 for node in nodes)
