"""No bound is above what any structure is simulated to take; each is exact where it can be worked out by hand."""

from __future__ import annotations

import pytest
import torch

import dags
import nanort as nr
from nanort import graphs
from nanort.costs.profile import Measurement, Pair, Profile
from nanort.costs.roofline import Costs
from nanort.scheduling.bounds import bounds, ideal
from nanort.scheduling.flat import Flat
from nanort.scheduling.list_schedule import ORDERS, Outline, dispatch, serial
from nanort.scheduling.structures import overlapping

H200 = nr.device("h200")
COSTS = Costs(H200)
LAUNCH = H200.launch_seconds


def makespans(graph: nr.Graph, device: nr.Device, saturation: int, profile: Profile | None = None) -> list[float]:
    """What every structure, ordered in every way, is simulated to take."""
    flat = Flat(graph, device, profile)
    outline, found = Outline(flat, saturation), [serial(flat, saturation).makespan]
    for structure in overlapping(device, ("h2d", "d2h")):
        for order in ORDERS:
            found += [dispatch(outline, structure, order, borrow).makespan for borrow in (False, True)]
    return found


@pytest.mark.parametrize("name", ["h200", "four cores"])
@pytest.mark.parametrize("seed", range(12))
def test_no_bound_is_above_a_makespan(name: str, seed: int) -> None:
    four = nr.device("cpu").with_(sms=4, hbm_saturation_sms=(2, 4))
    device = {"h200": H200, "four cores": four}[name]
    for graph in (dags.dag(seed), graphs.synthetic.random_dag(seed)):
        if any(node.span[0] > device.sms for node in graph.nodes):
            continue
        for saturation in device.hbm_saturation_sms:
            best = bounds(graph, Costs(device, saturation=saturation)).best
            assert best <= min(makespans(graph, device, saturation)) * (1 + 1e-9)


@pytest.mark.parametrize("pairs", [(), (Pair("_touch", "_touch", 1.0, 1.0),)], ids=["measured", "pairs too"])
@pytest.mark.parametrize("seed", range(6))
def test_no_bound_is_above_a_makespan_where_nodes_were_measured(seed: int, pairs: tuple[Pair, ...]) -> None:
    graph, model = dags.dag(seed), COSTS
    measured = {}
    for node in graph.nodes:
        for place, sms in enumerate((16, 48, 100)):
            if not node.demand.engine and not node.demand.is_rigid and node.span[0] <= sms:
                seconds = model.solo(node, sms).seconds * (0.5, 2.0, 1.1)[(place + node.index) % 3]
                found = Measurement.of(node, "measured", sms, seconds)
                measured.setdefault((found.shapes, found.flops, found.hbm_bytes, sms), found)
    profile = Profile("h200", 132, "a test", measured.values(), pairs)
    best = bounds(graph, Costs(H200, profile)).best
    assert best <= min(makespans(graph, H200, 85, profile)) * (1 + 1e-9)


def test_a_chain_cannot_be_shorter_than_its_nodes_on_the_whole_device() -> None:
    found = bounds(dags.chain(*[dags.demand("compute", 1.0)] * 3), COSTS)
    alone = COSTS.solo(dags.chain(dags.demand("compute", 1.0)).nodes[0], 132).seconds
    assert found.critical_path == pytest.approx(3 * alone, rel=1e-12)
    assert (found.limit, found.best) == ("critical_path", found.critical_path)


def test_nodes_beside_each_other_share_all_sms() -> None:
    """A launch is least on a single SM, the work is the same on any number."""
    found = bounds(dags.beside(*[nr.Demand(flops=7.8e11)] * 10), COSTS)
    assert found.sms == pytest.approx(10 * (1e-3 + LAUNCH / 132), rel=1e-12)
    assert found.limit == "sms"


def test_bytes_take_their_bandwidth() -> None:
    upload, download = nr.Demand(h2d_bytes=5e7, sms=(0, 0)), nr.Demand(d2h_bytes=1e8, sms=(0, 0))
    memory, network = nr.Demand(hbm_bytes=4.3e9), nr.Demand(net_bytes=4.5e8, sms=(1, 1))
    found = bounds(dags.beside(upload, upload, download, memory, memory, memory, network), COSTS)
    assert found.h2d == pytest.approx(2e-3, rel=1e-12)
    assert found.d2h == pytest.approx(2e-3, rel=1e-12)
    assert found.hbm == pytest.approx(3e-3, rel=1e-12)
    assert found.net == pytest.approx(1e-3, rel=1e-12)


def test_a_resource_waits_for_what_comes_first_and_is_waited_for() -> None:
    compute = nr.Demand(flops=7.8e11)
    found = bounds(dags.chain(compute, nr.Demand(h2d_bytes=5e7, sms=(0, 0)), compute, compute), COSTS)
    assert found.h2d == pytest.approx(1e-3 + 3 * (1e-3 + LAUNCH), rel=1e-12)


def test_a_node_counts_what_it_can_draw_while_it_runs() -> None:
    """What stays in L2 can beat device memory: here half of the bytes must have."""
    graph = dags.chain(nr.Demand(hbm_bytes=8.6e9))
    profile = Profile("h200", 132, "a test", [Measurement.of(graph.nodes[0], "fused", 132, 1e-3)])
    assert bounds(graph, Costs(H200, profile)).hbm == pytest.approx(1e-3, rel=1e-12)


def test_pairs_that_share_sms_well_void_the_bound_on_sms() -> None:
    graph = dags.beside(*[nr.Demand(flops=7.8e11)] * 10)
    profile = Profile("h200", 132, "a test", [], [Pair("_touch", "_touch", 1.0, 1.0)])
    assert bounds(graph, Costs(H200, profile)).sms == 0


def test_the_ideal_is_the_work_of_the_busiest_unit() -> None:
    graph = dags.chain(nr.Demand(flops=7.8e11, hbm_bytes=1e9), nr.Demand(flops=7.8e11), nr.Demand(hbm_bytes=4.3e9))
    assert ideal(graph, COSTS) == (pytest.approx(2e-3, rel=1e-12), "compute")


def test_an_empty_graph_is_bounded_by_nothing() -> None:
    graph = nr.Graph("empty")
    graph.input("x", (1,), torch.float32)
    assert bounds(graph, COSTS).best == 0
