"""No bound is above an optimum, nor above what any streams are simulated to take; some are worked out by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import product

import networkx as nx
import numpy as np
import pytest
import torch
from ortools.sat.python import cp_model
from scipy.optimize import linprog

import dags
import nanort as nr
from nanort import graphs, partition
from nanort.costs.profile import Measurement, Pair, Profile
from nanort.costs.roofline import Costs
from nanort.partition import Group
from nanort.scheduling.bounds import Bounds, _waists, bounds, ideal
from nanort.scheduling.coresident import best_prices, prices
from nanort.scheduling.coschedule import co_schedule
from nanort.scheduling.waits import waits
from nanort.simulation.fluid import Jobs, Modes, replay

H200 = nr.device("h200")
COSTS = Costs(H200)
LAUNCH = H200.launch_seconds
WHOLE, LANES = (partition.whole(H200),), (partition.whole(H200, lanes=2),)
FOUR = nr.device("cpu").with_(sms=4, hbm_saturation_sms=(2, 4), launch_seconds=1e-12)
FIVE = FOUR.with_(sms=5, sm_granularity=2, sm_minimum=2)
EXACT = 1_000
"""Small graphs that are solved for the optimum on each of two devices."""


def groupings(device: nr.Device) -> list[tuple[Group, ...]]:
    """Groups of every sort: the whole device with up to three lanes, groups beside each other, and some with two."""
    whole, grain, usable = partition.whole(device), device.sm_granularity, device.partitionable_sms
    found: list[tuple[Group, ...]] = [(partition.whole(device, lanes=lanes),) for lanes in (1, 2, 3)]
    for sms in range(grain, usable, max(grain, usable // 5 // grain * grain)):
        one, other = partition.split(device, (sms, usable - sms))
        found.append((whole, one, other))
        found.append((whole, one, Group(other.name, other.sms, other.units, lanes=2)))
    return found


def played(graph: nr.Graph, costs: Costs, groups: Sequence[Group], rng: random.Random) -> float:
    """Simulated seconds of the graph's nodes in order, each on a random stream that can carry it."""
    streams = partition.streams(groups, partition.ENGINES)
    lane = []
    for node in graph.nodes:
        engine = node.demand.engine
        fits = [k for k, s in enumerate(streams) if (s.engine == engine if engine else s.sms >= node.span[0])]
        lane.append(rng.choice(fits))
    awaited: list[list[int]] = [[] for _ in graph.nodes]
    for wait in waits(graph, streams, range(len(lane)), lane):
        awaited[wait.node].append(wait.on)
    held = [min(streams[k].sms, node.span[1] or costs.device.sms) for k, node in zip(lane, graph.nodes, strict=True)]
    held = [0 if node.demand.engine else sms for sms, node in zip(held, graph.nodes, strict=True)]
    alone = [costs.solo(node, sms) for node, sms in zip(graph.nodes, held, strict=True)]
    links = tuple([getattr(cost, link) for cost in alone] for link in ("hbm", "h2d", "d2h", "net"))
    jobs = Jobs(
        lane,
        Modes([cost.seconds for cost in alone], held, links),
        [node.op.name for node in graph.nodes],
        lambda job, sms: costs.solo(graph.nodes[job], sms).seconds if sms >= graph.nodes[job].span[0] else math.inf,
    )
    return max(replay(jobs, streams, awaited, costs.profile.slowdowns if costs.profile else None)[1], default=0.0)


def measured(graph: nr.Graph, seed: int) -> Profile:
    """Seconds on a few SM counts, half, twice or about those of the model; and pairs of the graph's operators."""
    rng, found = random.Random(seed), dict[object, Measurement]()
    for node in graph.nodes:
        for place, sms in enumerate((16, 48, 100)):
            if not node.demand.engine and not node.demand.is_rigid and node.span[0] <= sms:
                seconds = COSTS.solo(node, sms).seconds * (0.5, 2.0, 1.1)[(place + node.index) % 3]
                one = Measurement.of(node, "measured", sms, seconds)
                found.setdefault((one.operator, one.shapes, one.flops, one.hbm_bytes, sms), one)
    names = sorted({node.op.name for node in graph.nodes})
    pairs = [Pair(a, b, 1 + rng.random(), 1 + rng.random()) for a, b in product(names, names) if a <= b]
    return Profile("h200", 132, "a test", found.values(), [pair for pair in pairs if rng.random() < 0.6])


# No bound is above what is simulated.


@pytest.mark.parametrize("device", [H200, FOUR, FIVE], ids=["h200", "four cores", "five cores"])
@pytest.mark.parametrize("first", range(0, 60, 20))
def test_no_bound_is_above_what_random_streams_take(device: nr.Device, first: int) -> None:
    for seed in range(first, first + 20):
        for graph in (dags.dag(seed), graphs.synthetic.random_dag(seed)):
            rng, costs = random.Random(seed), Costs(device, saturation=device.hbm_saturation_sms[seed % 2])
            if any(node.span[0] > device.sm_granularity for node in graph.nodes if device is not H200):
                continue
            for groups in groupings(device):
                if max(node.span[0] for node in graph.nodes) > max(group.sms for group in groups):
                    continue
                assert bounds(graph, costs, groups).best <= played(graph, costs, groups, rng) * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(40))
def test_no_bound_is_above_what_measured_nodes_and_pairs_take(seed: int) -> None:
    for graph in (dags.dag(seed), graphs.synthetic.random_dag(seed)):
        rng, costs = random.Random(seed), Costs(H200, measured(graph, seed))
        for groups in (WHOLE, LANES, (partition.whole(H200, lanes=3),), (WHOLE[0], *partition.split(H200, (48, 80)))):
            best = bounds(graph, costs, groups).best
            assert all(best <= played(graph, costs, groups, rng) * (1 + 1e-9) for _ in range(4))


@pytest.mark.parametrize("seed", range(20))
def test_no_bound_is_above_the_best_plan_found(seed: int) -> None:
    for graph in (dags.dag(seed), graphs.synthetic.random_dag(seed)):
        schedule = co_schedule(graph, H200, effort=40, nano_batches=(1,))
        found = schedule.bounds
        assert 0 < found.physical[1] <= found.best <= schedule.makespan * (1 + 1e-9)
        assert found.best == max(found.physical[1], getattr(found, found.own) if found.own else 0.0)


# No bound is above the optimum.


def small(seed: int) -> nr.Graph:
    """Three to five nodes which take whole milliseconds on any SMs, and tenths of bandwidths."""
    rng = random.Random(seed)
    graph = nr.Graph(f"small-{seed}")
    values = [graph.input("x", (1,), torch.float32)]
    for index in range(rng.randint(3, 5)):
        seconds, least = rng.randint(1, 5) * 12e-3, rng.choice((1, 1, 2, 3))
        what = rng.choice(
            (
                nr.Demand.rigid(seconds=seconds, sms=least, hbm=rng.randint(0, 8) / 10),
                nr.Demand.rigid(seconds=seconds, sms=(least, 4), d2h=rng.randint(0, 5) / 10),
                nr.Demand.rigid(seconds=seconds, sms=(0, 0), h2d=1.0),
                nr.Demand(flops=seconds * FOUR.rate(torch.float32), sms=(1, rng.choice((2, None)))),
            )
        )
        before = rng.sample(values, min(len(values), rng.randint(1, 2))) if rng.random() < 0.6 else values[:1]
        values.append(dags.node(graph, f"n{index}", what, *before))
    return graph


def optimum(graph: nr.Graph, costs: Costs) -> float:
    """The least seconds in which groups of SMs can run the graph: exact."""
    device, usable = costs.device, costs.device.partitionable_sms
    model = cp_model.CpModel()
    top, starts, ends = 10_000, [], []
    drawn: dict[str, list[tuple[cp_model.IntervalVar, int]]] = {name: [] for name in ("sms", "hbm", "h2d", "d2h")}
    for node in graph.nodes:
        least, most = node.span
        sizes = range(max(least, 1), usable + 1)
        modes = {(sms, costs.solo(node, min(sms, most or sms))) for sms in sizes if sms % device.sm_granularity == 0}
        modes.add((usable, costs.solo(node, device.sms)))
        if node.demand.engine:
            modes = {(0, costs.solo(node, 0))}
        starts.append(model.new_int_var(0, top, ""))
        ends.append(model.new_int_var(0, top, ""))
        chosen = [model.new_bool_var("") for _ in modes]
        model.add_exactly_one(chosen)
        for (sms, cost), here in zip(modes, chosen, strict=True):
            milliseconds = math.ceil(cost.seconds * 1e3 - 1e-6)
            span = model.new_optional_interval_var(starts[-1], milliseconds, ends[-1], here, "")
            shares = {"sms": sms, **{link: round(10 * getattr(cost, link)) for link in ("hbm", "h2d", "d2h")}}
            for name, share in shares.items():
                drawn[name].append((span, share))
        for pred, _ in node.preds:
            model.add(starts[-1] >= ends[pred])
    for name, uses in drawn.items():
        model.add_cumulative([span for span, _ in uses], [share for _, share in uses], usable if name == "sms" else 10)
    makespan = model.new_int_var(0, top, "")
    model.add_max_equality(makespan, ends)
    model.minimize(makespan)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.linearization_level = 0
    solver.parameters.cp_model_presolve = False
    solver.parameters.catch_sigint_signal = False  # it would leave a handler that ends the process
    assert solver.solve(model) == cp_model.OPTIMAL
    return solver.objective_value * 1e-3


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("device", [FOUR, FIVE], ids=["four cores", "five cores"])
def test_no_bound_is_above_the_optimum_and_most_are_near_it(device: nr.Device, part: int) -> None:
    ratios, costs = [], Costs(device)
    for seed in range(part, EXACT, 4):
        graph = small(seed)
        groups = (partition.whole(device), *partition.split(device, [device.sm_granularity] * 2))
        found, best = bounds(graph, costs, groups), optimum(graph, costs)
        assert found.best <= best * (1 + 1e-9), f"small({seed}): {found.limit}"
        ratios.append(found.best / best)
    assert sum(ratios) / len(ratios) > 0.9
    assert sum(ratio > 1 - 1e-3 for ratio in ratios) > len(ratios) / 3


# Co-residency: prices are the solution of a linear program.


@pytest.mark.parametrize("seed", range(60))
def test_prices_are_those_of_a_reference_solver(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(1, 12))
    pairs = [np.eye(classes)]
    for a in range(classes):
        for b in range(a, classes):
            if rng.random() < 0.7:
                row = np.zeros((1, classes))
                row[0, a] += 1 / (1 + rng.random())
                row[0, b] += 1 / (1 + rng.random())
                pairs.append(row)
    moments, work = np.concatenate(pairs), rng.random(classes) ** 3
    ours, reference = best_prices(moments, work), linprog(-work, A_ub=moments, b_ub=np.ones(len(moments)))
    assert (moments @ ours).max() <= 1 + 1e-9
    assert ours @ work == pytest.approx(-reference.fun, rel=1e-6)


def test_complementary_operators_are_spread_over_alone_and_together() -> None:
    """10 ms of a, 4 ms of b; together a takes 1.25 times as long and b 2 times: b hides for 8 ms, a goes on 3.6 ms."""
    graph = nr.Graph("pair")
    x = graph.input("x", (1,), torch.bfloat16)
    for name, milliseconds in (("a", 10), ("b", 4)):
        function = (lambda value: value + 1) if name == "a" else (lambda value: value + 2)
        op = nr.op(demand=nr.Demand(flops=milliseconds * 7.8e11), name=name, axes="rows")(function)
        op(x)
    profile = Profile("h200", 132, "a test", [], [Pair("a", "b", 1.25, 2.0)])
    found = bounds(graph, Costs(H200, profile), LANES)
    assert found.own == "coresident"
    assert found.coresident == pytest.approx(8e-3 + (10e-3 - 8e-3 / 1.25), rel=1e-2)
    assert found.sms == pytest.approx(14e-3, rel=1e-2)
    assert "co-resident" in str(found)


def test_without_pairs_nodes_that_fill_the_device_run_one_after_the_other() -> None:
    work = nr.Demand(flops=7.8e11)
    seconds = bounds(dags.beside(*[work] * 5), COSTS, LANES).coresident
    assert seconds == pytest.approx(5 * (1e-3 + LAUNCH), rel=1e-12)
    narrow = nr.Demand.rigid(seconds=1e-3, sms=60)
    assert bounds(dags.beside(*[narrow] * 5), COSTS, LANES).coresident == pytest.approx(2.5e-3, rel=1e-12)


def test_many_operators_are_priced_as_well() -> None:
    nodes = [dags.chain(nr.Demand.rigid(seconds=1e-3, sms=sms)).nodes[0] for sms in range(1, 133)]
    found = prices(nodes, [1e-3] * len(nodes), range(1, 133), COSTS)
    assert 0 < sum(price * count for price, count in zip(found, range(1, 133), strict=True)) <= sum(range(133)) * 1e-3


# Worked out by hand.


def test_a_chain_cannot_be_shorter_than_its_nodes_on_the_whole_device() -> None:
    found = bounds(dags.chain(*[dags.demand("compute", 1.0)] * 3), COSTS)
    alone = COSTS.solo(dags.chain(dags.demand("compute", 1.0)).nodes[0], 132).seconds
    assert found.critical_path == pytest.approx(3 * alone, rel=1e-12)
    assert (found.limit, found.best) == ("critical_path", found.critical_path)


def test_nodes_beside_each_other_share_all_sms() -> None:
    """The whole device computes faster than 128 SMs do, but a launch is less on a group of 8."""
    long = bounds(dags.beside(*[nr.Demand(flops=7.8e11)] * 10), COSTS, WHOLE)
    assert long.sms == pytest.approx(10 * (1e-3 + LAUNCH), rel=1e-12)
    assert long.compute == pytest.approx(10e-3, rel=1e-12)
    assert (long.limit, long.partitioned, long.physical) == ("sms", ("sms", long.sms), ("compute", long.compute))
    short = bounds(dags.beside(*[nr.Demand()] * 10), COSTS, WHOLE)
    assert short.sms == pytest.approx(10 * LAUNCH / 16, rel=1e-12)


def test_a_group_is_held_by_a_node_that_can_use_less_of_it() -> None:
    found = bounds(dags.beside(*[nr.Demand.rigid(seconds=1e-3, sms=9)] * 24), COSTS, WHOLE)
    assert found.sms == pytest.approx(24e-3 * 16 / 128, rel=1e-12)


def test_seconds_of_several_dtypes_add_up() -> None:
    graph = nr.Graph("dtypes")
    for dtype in (torch.bfloat16, torch.float32):
        dags.node(graph, str(dtype)[6:], nr.Demand(flops=7.8e11), graph.input(str(dtype), (1,), dtype))
    assert bounds(graph, COSTS).compute == pytest.approx(1e-3 + 2e-3, rel=1e-12)


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


def test_a_window_may_leave_out_what_comes_early() -> None:
    """A short upload needs nothing; three long ones wait for 5 ms of compute, and count without the short one."""
    graph = nr.Graph("late")
    x = graph.input("x", (1,), torch.bfloat16)
    dags.node(graph, "early", nr.Demand(h2d_bytes=5e7, sms=(0, 0)), x)
    late = dags.node(graph, "late", nr.Demand(flops=5 * 7.8e11), x)
    for index in range(3):
        dags.node(graph, f"u{index}", nr.Demand(h2d_bytes=5e7, sms=(0, 0)), late)
    assert bounds(graph, COSTS).h2d == pytest.approx(5e-3 + LAUNCH + 3e-3, rel=1e-12)


def test_nothing_overlaps_across_a_node_that_all_others_come_before_or_after() -> None:
    """Two uploads, 1 ms of compute that waits for them, two uploads that wait for it: 5 ms; the longest path has 3."""
    graph = nr.Graph("waist")
    x = graph.input("x", (1,), torch.bfloat16)
    upload = nr.Demand(h2d_bytes=5e7, sms=(0, 0))
    waist = dags.node(
        graph, "waist", nr.Demand(flops=7.8e11), *[dags.node(graph, f"u{k}", upload, x) for k in range(2)]
    )
    for k in range(2, 4):
        dags.node(graph, f"u{k}", upload, waist)
    found = bounds(graph, COSTS)
    assert found.h2d == pytest.approx(5e-3 + LAUNCH, rel=1e-12)
    assert found.critical_path == pytest.approx(3e-3 + 3 * LAUNCH, rel=1e-12)


@pytest.mark.parametrize("part", range(4))
def test_waists_are_comparable_with_every_other_node(part: int) -> None:
    for seed in range(50 * part, 50 * part + 50):
        for graph in (dags.dag(seed), graphs.synthetic.random_dag(seed)):
            order = nx.DiGraph()
            order.add_nodes_from(range(len(graph.nodes)))
            order.add_edges_from((pred, node.index) for node in graph.nodes for pred, _ in node.preds)
            others = [len(nx.ancestors(order, index) | nx.descendants(order, index)) for index in order]
            assert _waists(graph).tolist() == [count == len(order) - 1 for count in others]


def test_a_node_counts_what_it_can_draw_while_it_runs() -> None:
    """What stays in L2 can beat device memory: here half of the bytes must have."""
    graph = dags.chain(nr.Demand(hbm_bytes=8.6e9))
    profile = Profile("h200", 132, "a test", [Measurement.of(graph.nodes[0], "fused", 132, 1e-3)])
    assert bounds(graph, Costs(H200, profile)).hbm == pytest.approx(1e-3, rel=1e-12)


def test_measured_pairs_that_beat_the_rate_lower_the_bound_on_compute() -> None:
    graph = dags.beside(*[nr.Demand(flops=7.8e11)] * 10)
    profile = Profile("h200", 132, "a test", [], [Pair("_touch", "_touch", 1.0, 1.0)])
    found = bounds(graph, Costs(H200, profile), LANES)
    assert found.compute == pytest.approx(5 * (1e-3 + LAUNCH), rel=1e-2)
    assert found.best <= played(graph, Costs(H200, profile), LANES, random.Random(0))


def test_the_ideal_is_the_work_of_the_busiest_unit() -> None:
    graph = dags.chain(nr.Demand(flops=7.8e11, hbm_bytes=1e9), nr.Demand(flops=7.8e11), nr.Demand(hbm_bytes=4.3e9))
    assert ideal(graph, COSTS) == (pytest.approx(2e-3, rel=1e-12), "compute")


def test_an_empty_graph_is_bounded_by_nothing() -> None:
    graph = nr.Graph("empty")
    graph.input("x", (1,), torch.float32)
    assert bounds(graph, COSTS, LANES) == Bounds(0, 0, 0, 0, 0, 0, 0, 0, own="coresident")
    assert ideal(graph, COSTS)[0] == 0
