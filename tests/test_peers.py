from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from itertools import combinations
from types import ModuleType

import pytest
import torch

import dags
import nanort as nr
from nanort.graphs import synthetic
from nanort.graphs.modular import affine
from nanort.scheduling.flat import Flat
from nanort.scheduling.policy import plan
from nanort.scheduling.workload import Workload
from tree import ROOT

COMPUTE, MEMORY, UPLOAD = (dags.demand(kind, 1.0) for kind in ("compute", "memory", "upload"))
NAMES = ["NanoFlow", "Opara", "torchsched", "IOS", "two-batch", "prefill/decode"]


@pytest.fixture(autouse=True)
def _root_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)  # benchmarks are run from there and are not installed


@pytest.fixture
def peers() -> ModuleType:
    return importlib.import_module("benchmarks.peers")


@pytest.fixture
def bench() -> ModuleType:
    return importlib.import_module("benchmarks.bench_policies")


def work_on(graph: nr.Graph) -> Workload:
    """On a device whose events cost next to nothing, so that times are sums of what nodes take."""
    return Workload(Flat(graph.seal(), nr.device("h200").with_(event_seconds=1e-15)), 64)


def diamond() -> nr.Graph:
    """n0 feeds n1 and n2, both of which feed n3; n4 stands alone."""
    graph = nr.Graph("diamond")
    x = graph.input("x", (1,), torch.bfloat16)
    first = dags.node(graph, "n0", COMPUTE, x)
    left, right = dags.node(graph, "n1", COMPUTE, first), dags.node(graph, "n2", MEMORY, first)
    dags.node(graph, "n3", COMPUTE, left, right)
    dags.node(graph, "n4", MEMORY, x)
    return graph


@pytest.mark.parametrize("name", NAMES)
def test_plans_are_valid_and_judged_as_planned(name: str, peers: ModuleType, bench: ModuleType) -> None:
    workloads = importlib.import_module("benchmarks.workloads")
    peer = {peer.name: peer for peer in peers.PEERS}[name]
    steps = [workloads.build("llama-3-8b", "balanced", 2), workloads.build("mixtral-8x7b", "offload", 1)]
    for graph in (*steps, *(synthetic.random_dag(seed) for seed in range(4)), *map(dags.dag, range(4)), diamond()):
        for cuts in (1, 2) if any(root.batch is not None for root in graph.roots) else (1,):
            schedule = nr.co_schedule(graph, bench.DEVICE, policy=peer, nano_batches=cuts, effort=6, guard=False)
            schedule.check()
            judged = bench.judge(schedule, bench.Truth(schedule.saturation))
            assert judged == pytest.approx(schedule.makespan, rel=1e-9)


def test_all_six_are_judged(peers: ModuleType) -> None:
    assert [peer.name for peer in peers.PEERS] == NAMES


def test_nanoflow_orders_categories_as_if_each_had_the_device(peers: ModuleType) -> None:
    work = work_on(dags.beside(COMPUTE, COMPUTE, MEMORY, MEMORY, MEMORY, UPLOAD))
    seconds = [work.seconds(node, work.device.sms) for node in range(6)]
    ends, starts = peers.full_device(work, peers.categories(work), [1.0, 0.0, 2.0, 1.0, 0.0, 0.0])
    assert starts == [seconds[1], 0.0, seconds[4] + seconds[3], seconds[4], 0.0, 0.0]
    assert ends == pytest.approx(sum(seconds[2:5]))


def test_nanoflow_keeps_that_order_within_the_split(peers: ModuleType) -> None:
    work = work_on(dags.beside(*[COMPUTE] * 3, *[MEMORY] * 3))
    trace = plan(peers.NanoFlow(), work, work.isolated(48, 80))
    names = [work.isolated(48, 80).streams[lane].sms for lane in trace.lane]
    assert names == [80] * 3 + [48] * 3
    assert trace.start[0] == trace.start[3] == 0.0


def test_what_is_ready_alone_gets_the_whole_device(peers: ModuleType) -> None:
    work = work_on(dags.chain(COMPUTE, MEMORY, dags.demand("narrow", 1.0)))
    trace = plan(peers.PrefillDecode(), work, structure := work.isolated(48, 80))
    assert [structure.streams[lane].sms for lane in trace.lane[:2]] == [132, 132]
    assert structure.streams[trace.lane[2]].sms < 132  # it can use 16 of them: no gain


def test_light_nodes_belong_to_what_they_follow(peers: ModuleType) -> None:
    light = dags.demand("memory", 0.1)
    work = work_on(dags.chain(light, COMPUTE, light, MEMORY, light, UPLOAD, light))
    found = peers.categories(work)
    assert found[:5] == ["memory", "compute", "compute", "memory", "memory"]
    assert found[6] == "memory"  # the upload that it reads is no kernel


def test_opara_hands_streams_down_to_the_first_successor(peers: ModuleType) -> None:
    work = work_on(diamond())
    assert peers.inherited(work, 8) == [0, 0, 1, 0, 2]
    assert peers.inherited(work, 2) == [0, 0, 1, 0, 0]  # the pool is used again


def test_opara_launches_what_memory_binds_in_turn_with_the_rest(peers: ModuleType) -> None:
    small, narrow = dags.demand("memory", 0.5), dags.demand("narrow", 1.0)
    work = work_on(dags.beside(COMPUTE, MEMORY, narrow, small))
    assert peers.launches(work) == [2, 3, 0, 1]  # narrow asks for the fewest SMs, small takes less than the other


def test_torchsched_keeps_a_stream_for_the_deepest_path(peers: ModuleType) -> None:
    work = work_on(diamond())
    assert peers.deepest_path(work) == {0, 1, 3}
    dispatch = peers.RoundRobin().dispatch(work, work.coresident(2))
    assert dispatch.homes == [(0,), (0,), (1,), (0,), (1,)]
    assert [home for (home,) in peers.RoundRobin().dispatch(work, work.coresident(4)).homes] == [0, 0, 1, 0, 2]


def test_two_batches_run_one_phase_apart(peers: ModuleType) -> None:
    graph = nr.Graph("phases")
    value = graph.input("x", (16, 16), torch.float32, batch=0)
    for _ in range(3):
        value = affine(affine(value, kind="compute", size=4.0), kind="memory", size=4.0)
        value = affine(value, kind="narrow", size=0.25)  # belongs to the phase that it follows
    graph.output(y=value)
    work = work_on(nr.nano_batch(graph, 2))
    structure = work.isolated(64, 64)
    keys = peers.TwoBatch().dispatch(work, structure).keys
    first, second = ([n for n, piece in enumerate(work.pieces) if piece == at] for at in sorted(set(work.pieces)))
    assert [keys[node] for node in first] == [0, 1, 1, 2, 3, 3, 4, 5, 5]
    assert [keys[node] for node in second] == [1, 2, 2, 3, 4, 4, 5, 6, 6]
    trace = plan(peers.TwoBatch(), work, structure)
    first, second = ([node for at, node in enumerate(piece) if at % 3 < 2] for piece in (first, second))
    for ahead, behind in zip(first[1:], second, strict=False):
        assert trace.lane[ahead] != trace.lane[behind]
        assert trace.start[behind] < trace.end[ahead]
        assert trace.start[ahead] < trace.end[behind]


def test_prefill_has_at_least_half_of_the_device_and_decode_sixteen(peers: ModuleType) -> None:
    work = work_on(diamond())
    rows = [sorted(group.sms for group in one.groups)[:2] for one in peers.PrefillDecode().structures(work)]
    assert rows == [[16, 112], [24, 104], [32, 96], [40, 88], [48, 80], [56, 72], [64, 64]]


def stagings(left: frozenset[int], succs: list[list[int]]) -> Iterator[list[frozenset[int]]]:
    """Every sequence of stages, the last one first, by definition: no node of a stage feeds an earlier one."""
    if not left:
        yield []
    for count in range(1, len(left) + 1):
        for some in combinations(sorted(left), count):
            stage = frozenset(some)
            if all(succ in stage or succ not in left for node in stage for succ in succs[node]):
                yield from ([stage, *rest] for rest in stagings(left - stage, succs))


@pytest.mark.parametrize("seed", range(8))
def test_ios_finds_the_best_stages(seed: int, peers: ModuleType) -> None:
    rng = random.Random(seed)
    graph = nr.Graph("tiny")
    values = [graph.input("x", (1,), torch.bfloat16)]
    for index in range(5):
        kind = rng.choice(("compute", "memory", "narrow", "narrow", "upload"))
        before = rng.sample(values[-3:], min(len(values[-3:]), rng.randint(1, 2)))
        values.append(dags.node(graph, f"n{index}", dags.demand(kind, rng.uniform(0.5, 2)), *before))
    work, ios = work_on(graph), peers.Ios()
    (structure,) = ios.structures(work)
    after = [sum(1 << succ for succ in succs) for succs in work.succs]

    def seconds(stage: frozenset[int]) -> float:
        groups = ios.connected(sum(1 << node for node in stage), after)
        allowed = max(map(len, groups)) <= ios.group
        return peers.stage_seconds(work, structure, groups) if allowed else float("inf")

    everything = frozenset(range(5))
    known = {stage: seconds(stage) for stages in stagings(everything, work.succs) for stage in stages}
    least = min(sum(known[stage] for stage in stages) for stages in stagings(everything, work.succs))
    found, stages = ios.best(work, structure, range(5))
    assert found == pytest.approx(least)
    assert sorted(node for stage in stages for group in stage for node in group) == list(range(5))
    assert plan(ios, work, structure).makespan == pytest.approx(found)


def test_ios_parts_follow_each_other(peers: ModuleType) -> None:
    """Equal parts are optimized once, and every node is in one of them."""
    work, ios = work_on(dags.chain(*[COMPUTE, MEMORY] * 20)), peers.Ios()
    (structure,) = ios.structures(work)
    trace = plan(ios, work, structure)
    assert trace.makespan == pytest.approx(sum(work.seconds(node, 132) for node in range(40)))


def test_truth_is_the_same_for_every_plan_and_within_its_bounds(bench: ModuleType) -> None:
    graph = synthetic.layered(40, 3)
    truth, other = (bench.Truth.draw(graph, bench.DEVICE, random.Random(seed)) for seed in (1, 2))
    assert truth == bench.Truth.draw(graph, bench.DEVICE, random.Random(1))
    assert truth != other
    assert all(0.8 <= factor <= 1.2 for factor in truth.factors.values())
    assert 48 <= truth.saturation <= 72


def test_serial_plan_takes_the_sum_of_what_its_calls_take(bench: ModuleType) -> None:
    graph = synthetic.layered(40, 3)
    truth = bench.Truth.draw(graph, bench.DEVICE, random.Random(5))
    costs = nr.co_schedule(graph, bench.DEVICE.with_(hbm_saturation_sms=(truth.saturation,) * 2), policy="serial").costs
    for cuts in (1, 2):
        plan = nr.co_schedule(graph, bench.DEVICE, policy="serial", nano_batches=cuts)
        factor = {node.name: truth.factors[costs.key(node)] for node in graph.nodes}
        sms = {a.node: a.sms for a in plan.assignments}
        seconds = [factor[node.origin] * costs.solo(node, sms[node.index]).seconds for node in plan.graph.nodes]
        assert bench.judge(plan, truth) == pytest.approx(sum(seconds))


def test_verdicts_count_ties_as_equal(bench: ModuleType) -> None:
    verdicts = [
        bench.Verdict("ahead", {"nanort": [1.0, 2.0], "peer": [1.5, 4.0]}),
        bench.Verdict("tie", {"nanort": [1.0, 2.0], "peer": [0.998, 1.998]}),
        bench.Verdict("behind", {"nanort": [1.0, 2.0], "peer": [0.9, 2.0]}),
    ]
    best, ratios, mean = bench.rows("some", verdicts)
    assert best.found.p50 == pytest.approx(2 / 3)
    assert best.met is False
    assert ratios.found.count == 3
    assert mean.found.p50 == pytest.approx((3.0**0.5 * (0.998 * 0.999) ** 0.5 * 0.9**0.5) ** (1 / 3), rel=1e-6)


def test_a_graph_is_planned_by_all(bench: ModuleType) -> None:
    verdict = bench.compare("layered", synthetic.layered(12, 1), effort=4)
    assert list(verdict.seconds) == ["nanort", "serial", *NAMES]
    assert all(len(seconds) == bench.TRUTHS and min(seconds) > 0 for seconds in verdict.seconds.values())
