"""Schedule.check finds whatever is wrong: every constraint is broken here in turn, and by brute force."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import dags
import nanort as nr
from nanort import graphs
from nanort.errors import ScheduleError
from nanort.partition import Stream, split, streams, whole
from nanort.scheduling.check import latecomer
from nanort.scheduling.coschedule import co_schedule
from nanort.scheduling.schedule import Assignment, Outlook, Schedule
from nanort.scheduling.structures import overlapping
from nanort.scheduling.waits import Wait

H200 = nr.device("h200").with_(hbm_saturation_sms=(32, 32))


def with_assignment(plan: Schedule, index: int, **changes: object) -> Schedule:
    changed = list(plan.assignments)
    changed[index] = replace(changed[index], **changes)
    return replace(plan, assignments=tuple(sorted(changed, key=lambda a: a.start)))


def refused(plan: Schedule, says: str | None = None) -> None:
    with pytest.raises(ScheduleError, match=says):
        plan.check()


def forks() -> nr.Graph:
    """Memory-bound beside compute-bound nodes and transfers, after which one node takes the whole device, twice."""
    graph = nr.Graph("forks")
    value = graph.input("x", (1,), torch.bfloat16)
    for k in range(2):
        ends = [
            dags.node(graph, f"{kind}{k}", dags.demand(kind, 4.0), value) for kind in ("memory", "compute", "upload")
        ]
        dags.node(graph, f"everywhere{k}", nr.Demand(flops=1e10, sms=(132, 132)), value, ends[2])
        value = dags.node(graph, f"last{k}", dags.demand("compute", 1.0), *ends)
    return graph


@pytest.fixture(scope="module")
def plan() -> Schedule:
    """A plan with every kind of stream and with waits for data and for SMs."""
    found = co_schedule(forks(), H200)
    found.check()
    assert {stream.name for stream in found.streams} == {"whole", "g0", "g1", "h2d"}
    assert {wait.reason for wait in found.waits} == {"data", "resource"}
    return found


# What the message says.


def find(plan: Schedule, name: str) -> int:
    return next(index for index, a in enumerate(plan.assignments) if a.name == name)


def test_every_node_is_assigned_once(plan: Schedule) -> None:
    refused(replace(plan, assignments=plan.assignments[1:]), f"'{plan.assignments[0].name}' is not assigned")
    refused(replace(plan, assignments=(plan.assignments[0], *plan.assignments)), "is assigned twice")
    refused(with_assignment(plan, 0, node=99), "is not node 99")
    refused(with_assignment(plan, 0, name="somebody"), "'somebody' is not node")


def test_streams_must_be_there_and_able(plan: Schedule) -> None:
    refused(with_assignment(plan, 0, stream="g5"), "'g5', which the schedule does not have")
    refused(with_assignment(plan, find(plan, "compute0"), stream="h2d"), "is no h2d transfer")
    refused(replace(plan, streams=(*plan.streams, plan.streams[0])), "two streams are called the same")


def test_sms_must_be_what_the_node_asks_for_and_the_group_has(plan: Schedule) -> None:
    refused(with_assignment(plan, find(plan, "everywhere0"), sms=131), "asks for 132 to None SMs|asks for 132 to 132")
    refused(with_assignment(plan, find(plan, "memory0"), sms=132), "holds 132 of the")
    refused(with_assignment(plan, find(plan, "memory0"), sms=0), "holds 0 of the")


def test_a_node_takes_no_less_than_alone(plan: Schedule) -> None:
    a = plan.assignments[find(plan, "compute1")]
    cost = plan.costs.solo(plan.graph.nodes[a.node], a.sms)
    shorter = a.start + 0.99 * cost.seconds
    refused(with_assignment(plan, find(plan, "compute1"), end=shorter), "'compute1' takes .* alone it takes")


def test_a_node_starts_after_what_it_reads(plan: Schedule) -> None:
    index = find(plan, "last1")
    a = plan.assignments[index]
    refused(with_assignment(plan, index, start=a.start - 2e-6, end=a.end - 2e-6))


def test_times_are_numbers(plan: Schedule) -> None:
    refused(with_assignment(plan, 0, start=float("nan")), "from nan")
    refused(with_assignment(plan, 0, start=-1.0), "from -1.0")
    refused(with_assignment(plan, len(plan.assignments) - 1, end=float("inf")))


def test_assignments_are_in_order_of_their_start(plan: Schedule) -> None:
    first, *middle, last = plan.assignments
    refused(replace(plan, assignments=(last, *middle, first)), "before the one assigned ahead of it")


def test_a_pin_is_a_constraint() -> None:
    graph = nr.Graph("pinned")
    x = graph.input("x", (1,), torch.bfloat16)
    dags.node(graph, "n", dags.demand("compute", 1.0), x, stream="g1")
    found = co_schedule(graph, H200)
    (stream,) = found.streams
    moved = replace(stream, name="g0")
    wrong = replace(found.assignments[0], stream="g0")
    refused(replace(found, streams=(moved,), assignments=(wrong,)), "'n' is pinned to stream 'g1' and runs on 'g0'")


def by_hand(graph: nr.Graph, on: tuple[Stream, ...], rows: list[tuple[str, float, float]], *waits: Wait) -> Schedule:
    """A schedule of nodes n0, n1, ... at (stream, start, end)."""
    sms = {stream.name: stream.sms for stream in on}
    assignments = [
        Assignment(k, f"n{k}", name, 0 if graph.nodes[k].demand.engine else sms[name], "reference", start, end)
        for k, (name, start, end) in enumerate(rows)
    ]
    end = max(end for _, _, end in rows)
    return Schedule(
        source=graph,
        split=None,
        graph=graph,
        device=H200,
        mechanism="by hand",
        streams=on,
        assignments=tuple(sorted(assignments, key=lambda a: a.start)),
        waits=waits,
        outlooks=(Outlook(32, end, end),),
    )


WORK = nr.Demand(flops=7.8e10)  # 0.1 ms on all SMs


def test_one_stream_runs_one_node_at_a_time() -> None:
    on = streams(split(H200, (64,)))
    by_hand(dags.beside(WORK, WORK), on, [("g0", 0.0, 1.0), ("g0", 1.0, 2.0)]).check()
    refused(
        by_hand(dags.beside(WORK, WORK), on, [("g0", 0.0, 1.0), ("g0", 0.9, 2.0)]),
        "'n0' and 'n1' run at once on stream 'g0'",
    )


def test_groups_that_share_sms_run_in_turn_and_something_makes_them() -> None:
    on = streams((*split(H200, (64, 64)), whole(H200)))
    graph = dags.beside(WORK, WORK, WORK)
    rows = [("g0", 0.0, 1.0), ("g1", 0.0, 1.0), ("whole", 1.0, 2.0)]
    waits = (Wait(2, 0, "resource"), Wait(2, 1, "resource"))
    by_hand(graph, on, rows, *waits).check()
    refused(by_hand(graph, on, [*rows[:2], ("whole", 0.9, 2.0)], *waits), "hold the same SMs at once")
    for wait in waits:
        refused(by_hand(graph, on, rows, wait), r"nothing makes 'n2' wait for 'n\d', which holds the same SMs")


def test_lanes_of_one_group_may_run_at_once() -> None:
    on = streams([whole(H200, lanes=2)])
    by_hand(dags.beside(WORK, WORK), on, [("whole", 0.0, 1.0), ("whole.1", 0.0, 1.0)]).check()


def test_waits_may_be_kept_through_others() -> None:
    """n0 -> n1 -> n2 on three streams, and n0 -> n2: the edge needs no wait of its own."""
    graph = nr.Graph("triangle")
    x = graph.input("x", (1,), torch.bfloat16)
    first = dags.node(graph, "n0", WORK, x)
    dags.node(graph, "n2", WORK, first, dags.node(graph, "n1", WORK, first))
    on, rows = streams(split(H200, (40, 40, 40))), [("g0", 0.0, 1.0), ("g1", 1.0, 2.0), ("g2", 2.0, 3.0)]
    chain = Wait(1, 0, "data"), Wait(2, 1, "data")
    by_hand(graph, on, rows, *chain).check()
    refused(by_hand(graph, on, rows, chain[0]), "nothing makes 'n2' wait for 'n[01]', which its data needs")
    refused(by_hand(graph, on, rows, Wait(1, 2, "data"), *chain), "'n1' waits for 'n2', which starts later")
    refused(by_hand(graph, on, rows, Wait(1, 9, "data"), *chain), "a wait of node 1 on node 9")


@pytest.mark.parametrize(
    ("resource", "demand"),
    [
        ("hbm", nr.Demand(hbm_bytes=4.3e9)),
        ("h2d", nr.Demand(h2d_bytes=5e7, sms=(8, None))),
        ("d2h", nr.Demand(d2h_bytes=5e7, sms=(8, None))),
        ("net", nr.Demand(net_bytes=4.5e8, sms=(8, None))),
    ],
)
def test_no_window_needs_more_bandwidth_than_there_is(resource: str, demand: nr.Demand) -> None:
    """Two nodes that take 1 ms of a bandwidth each cannot end within 1.5 ms, though each lasts long enough."""
    graph, on = dags.beside(demand, demand), streams(split(H200, (64, 64)))
    by_hand(graph, on, [("g0", 0.0, 2.0e-3), ("g1", 0.0, 2.0e-3)]).check()
    refused(by_hand(graph, on, [("g0", 0.0, 1.5e-3), ("g1", 0.0, 1.5e-3)]), f"more {resource} bandwidth than h200 has")


def test_the_predicted_seconds_are_those_of_the_assignments(plan: Schedule) -> None:
    point = plan.outlooks[0]
    refused(replace(plan, outlooks=(replace(point, seconds=0.9 * point.seconds),)), "outlook says")


# Mutations of real plans.


def plans() -> list[Schedule]:
    found = [co_schedule(forks(), H200)]
    for seed in range(30):
        for graph in (graphs.synthetic.random_dag(seed), dags.dag(seed)):
            made = co_schedule(graph, H200, effort=12, nano_batches=(2, 1) if graph.name != f"dag-{seed}" else (1,))
            if made.waits:
                found.append(made)
    return found


@pytest.fixture(scope="module")
def many() -> list[Schedule]:
    found = plans()
    assert {wait.reason for made in found for wait in made.waits} == {"data", "state", "resource"}
    return found


def test_every_wait_is_needed(many: list[Schedule]) -> None:
    for made in many:
        made.check()
        for wait in made.waits:
            refused(replace(made, waits=tuple(other for other in made.waits if other != wait)), "nothing makes")


def test_waits_for_what_a_graph_pins_are_needed() -> None:
    graph = nr.Graph("after")
    x = graph.input("x", (1,), torch.bfloat16)
    dags.node(graph, "memory", dags.demand("memory", 4.0), x)
    dags.node(graph, "compute", dags.demand("compute", 4.0), x)
    dags.node(graph, "compute.1", dags.demand("compute", 4.0), x, after=("memory",))
    found = co_schedule(graph, H200)
    (wait,) = [wait for wait in found.waits if wait.reason == "after"]
    left = tuple(other for other in found.waits if other != wait)
    refused(replace(found, waits=left), "nothing makes 'compute.1' wait for 'memory', which its after needs")


def test_no_node_can_be_shorter_than_alone(many: list[Schedule]) -> None:
    chance = random.Random(0)
    for made in many:
        index = chance.randrange(len(made.assignments))
        a = made.assignments[index]
        cost = made.costs.solo(made.graph.nodes[a.node], a.sms).seconds
        if cost > 1e-6 * made.makespan:
            refused(with_assignment(made, index, end=a.start + 0.99 * cost))


def test_two_nodes_of_a_stream_cannot_trade_places_if_one_reads_the_other(many: list[Schedule]) -> None:
    traded = 0
    for made in many:
        slot = {a.node: index for index, a in enumerate(made.assignments)}
        for index, a in enumerate(made.assignments):
            for pred, _ in made.graph.nodes[a.node].preds:
                b = made.assignments[slot[pred]]
                if b.stream == a.stream:
                    swapped = list(made.assignments)
                    swapped[index] = replace(b, start=a.start, end=a.end)
                    swapped[slot[pred]] = replace(a, start=b.start, end=b.end)
                    refused(replace(made, assignments=tuple(swapped)))
                    traded += 1
    assert traded > 100


# Bandwidth in every window, by brute force.


def windows(jobs: list[tuple[float, float, float, str]]) -> bool:
    """Whether no window from a start to an end holds more work than time."""
    return all(
        sum(work for start, end, work, _ in jobs if low <= start and end <= high) <= high - low + 1e-9
        for low, *_ in jobs
        for _, high, *_ in jobs
        if high >= low
    )


def test_earliest_deadline_first_agrees_with_all_windows() -> None:
    chance, late = random.Random(0), 0
    for _ in range(400):
        jobs = []
        for k in range(chance.randint(1, 12)):
            start = chance.randint(0, 8)
            length = chance.randint(1, 10)
            jobs.append((float(start), float(start + length), chance.randint(1, 4 * length) / 8, f"n{k}"))
        name = latecomer(jobs, 1e-9)
        assert (name == "") == windows(jobs)
        late += name != ""
    assert 100 < late < 300


# Structures.


@pytest.mark.parametrize("name", ["h200", "a100-80g", "b200", "l40s", "cpu"])
def test_structures_hold_all_splits_that_the_granularity_allows(name: str) -> None:
    device = nr.device(name)
    found = list(overlapping(device, ("h2d",)))
    nested = [structure for structure in found if " or " in str(structure)]
    assert all(len(structure.groups) == 5 for structure in nested)
    assert len(nested) == len(range(device.sm_minimum, device.partitionable_sms, device.sm_granularity)) - max(
        1, device.partitionable_sms // 8 // device.sm_granularity
    )
    isolated = [structure for structure in found if structure.lanes("alone") and structure not in nested]
    groups = [[one.streams[one.lanes(role)[0]].group for role in ("compute", "memory")] for one in isolated]
    sizes = {(compute.sms, memory.sms) for compute, memory in groups if compute and memory}
    grain, usable = device.sm_granularity, device.partitionable_sms
    assert sizes == {(usable - sms, sms) for sms in range(grain, usable, grain)}
    assert [str(one) for one in found if one not in isolated + nested] == [
        "copies", "co-resident", "co-resident on 4 streams", "co-resident on 8 streams",
    ]  # fmt: skip
    for compute, memory in groups:
        assert memory is not None
        assert compute is not None
        assert not memory.overlaps(compute)


def mutations() -> list[Callable[[Schedule], Schedule]]:
    """What a fault in a planner might do."""
    return [
        lambda made: replace(made, waits=()),
        lambda made: with_assignment(made, len(made.assignments) - 1, start=0.0),
        lambda made: replace(made, streams=made.streams[1:]),
        lambda made: replace(made, assignments=made.assignments[:-1]),
    ]


def test_no_fault_goes_unseen(many: list[Schedule]) -> None:
    for made in many:
        for mutation in mutations():
            refused(mutation(made))


def test_two_lanes_of_one_group_cannot_both_have_all_its_sms() -> None:
    graph = nr.Graph("pair")
    x = graph.input("x", (1,), torch.bfloat16)
    for name in ("one", "two"):
        dags.node(graph, name, nr.Demand(flops=2e12), x)
    serial = co_schedule(graph, H200, policy="serial")
    lanes = streams((whole(H200, lanes=2),))
    first, second = serial.assignments
    moved = replace(second, stream=lanes[1].name, start=first.start, end=first.end)
    plan = replace(
        serial,
        streams=lanes,
        assignments=(first, moved),
        outlooks=(replace(serial.outlooks[0], seconds=first.end), *serial.outlooks[1:]),
    )
    refused(plan, "more SM-seconds than there are")
