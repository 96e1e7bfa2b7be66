"""Hundreds of schedules, each judged by its own check, by its bounds, and by a search for paths; and large graphs.

1,200 more pass their check, with --soak 10,000.
"""

from __future__ import annotations

import networkx
import pytest

import dags
import nanort as nr
from nanort import graphs
from nanort.graphs.step import decoder_step
from nanort.scheduling.coschedule import co_schedule
from nanort.scheduling.schedule import Schedule
from nanort.scheduling.waits import exclusive

CI, SOAK = 300, 2_500
"""Graphs of a block."""
DEVICES = [nr.device(name) for name in ("h200", "a100-80g", "l40s", "b200")]
DEVICES += [nr.device("cpu").with_(sms=sms, hbm_saturation_sms=(1, sms)) for sms in (1, 2, 4, 8)]


def order_is_kept(schedule: Schedule) -> None:
    """The events of the schedule, as a graph, have a path for every edge and between nodes on the same SMs."""
    events = networkx.DiGraph()
    events.add_nodes_from(range(len(schedule.graph.nodes)))
    events.add_edges_from((wait.on, wait.node) for wait in schedule.waits)
    lanes = {
        stream.name: [a.node for a in schedule.assignments if a.stream == stream.name] for stream in schedule.streams
    }
    for lane in lanes.values():
        networkx.add_path(events, lane)
    assert networkx.is_directed_acyclic_graph(events)
    reached = {node: networkx.descendants(events, node) for node in events}
    for node in schedule.graph.nodes:
        assert all(node.index in reached[pred] for pred, _ in node.preds)
    for stream, rivals in zip(schedule.streams, exclusive(schedule.streams), strict=True):
        for node in lanes[stream.name]:
            for rival in rivals:
                assert all(o in reached[node] or node in reached[o] for o in lanes[schedule.streams[rival].name])
    reduced = networkx.transitive_reduction(events)
    assert all(reduced.has_edge(wait.on, wait.node) for wait in schedule.waits), "a wait that others imply"


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_hundreds_of_random_graphs(first: int) -> None:
    for seed in range(first, first + 50):
        device = DEVICES[seed % len(DEVICES)]
        for graph, cuts in ((dags.dag(seed), (1,)), (graphs.synthetic.random_dag(seed), (1, 2, 3))):
            if any(node.span[0] > device.sms for node in graph.nodes):
                continue
            for policy in ("serial", "list", "auto"):
                schedule = co_schedule(graph, device, policy=policy, nano_batches=cuts, effort=60, seed=seed)
                schedule.check()
                order_is_kept(schedule)
                assert schedule.bounds.best <= schedule.makespan * (1 + 1e-9)
                assert schedule.makespan <= schedule.serial_makespan * (1 + 1e-9)


@pytest.mark.parametrize("block", range(4))
def test_thousands_of_random_graphs_pass_the_check(block: int, pytestconfig: pytest.Config) -> None:
    each = SOAK if pytestconfig.getoption("soak") else CI
    for seed in range(block * each, (block + 1) * each):
        graph, device = graphs.synthetic.random_dag(seed), DEVICES[seed % 4]
        schedule = co_schedule(graph, device, policy="list", nano_batches=(1,), effort=2, guard=False, seed=seed)
        schedule.check()


def test_a_hundred_thousand_nodes() -> None:
    graph = graphs.synthetic.layered(100_000)
    schedule = co_schedule(graph, nr.device("h200"), policy="list", nano_batches=(1,))
    schedule.check()
    assert schedule.outlooks[0].gain > 1.2
    assert schedule.bounds.best <= schedule.makespan


@pytest.mark.parametrize(("saturation", "gain"), [(43, 1.29), (64, 1.19), (85, 1.12)])
def test_all_layers_of_a_mixed_llama_step(saturation: int, gain: float) -> None:
    """A partition and two nano-batches, wherever device memory saturates."""
    graph = decoder_step(graphs.CONFIGS["llama-3-8b"], decode=670, context=1280, prefill=1340)
    schedule = co_schedule(graph, nr.device("h200").with_(hbm_saturation_sms=(saturation, saturation)))
    schedule.check()
    order_is_kept(schedule)
    assert schedule.outlooks[0].gain > gain
