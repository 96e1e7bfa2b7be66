"""Explanations: what they say adds up on any schedule, and is right where it can be worked out by hand."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import dags
import nanort as nr
import random_dags
from nanort import graphs, partition
from nanort.partition import Group
from nanort.scheduling import explain as module
from nanort.scheduling.coschedule import co_schedule
from nanort.scheduling.critical import CAUSES, critical_path, stretches
from nanort.scheduling.explain import explain
from nanort.scheduling.schedule import Assignment, Outlook, Schedule
from nanort.scheduling.whatif import twice_as_fast

H200 = nr.device("h200")
MS = 1e-3


def serial(*demands: nr.Demand, beside: bool = False) -> Schedule:
    """The serial schedule of a chain of nodes, or of nodes that wait for nothing."""
    return co_schedule((dags.beside if beside else dags.chain)(*demands), H200, policy="serial", nano_batches=(1,))


def causes(schedule: Schedule) -> list[str]:
    """The cause of each stretch."""
    return [stretch.cause for stretch in stretches(schedule, critical_path(schedule))]


def adds_up(schedule: Schedule) -> None:
    """The critical path and the stretches each cover the time from zero to the makespan, without gap or overlap."""
    path = critical_path(schedule)
    found = stretches(schedule, path)
    for parts in (path, found):
        times = [0.0, *(part.end for part in parts)]
        assert [part.start for part in parts] == times[:-1]
        assert times[-1] == schedule.makespan
        assert all(part.start <= part.end for part in parts)
    assert all((a.cause, a.detail) != (b.cause, b.detail) for a, b in pairwise(found))
    assert {stretch.cause for stretch in found} <= set(CAUSES)
    data, printed = schedule.explain().data, str(schedule.explain())
    assert json.loads(json.dumps(data)) == data
    assert sum(data["causes"].values()) == pytest.approx(schedule.makespan, rel=1e-9)
    assert sum(data["path_seconds"].values()) == pytest.approx(schedule.makespan, rel=1e-9)
    assert len(printed.splitlines()) <= 25


# On any schedule.


@pytest.mark.parametrize("seed", range(30))
def test_path_and_stretches_cover_the_makespan_of_plans(seed: int) -> None:
    for graph, cuts in ((dags.dag(seed), (1,)), (graphs.synthetic.random_dag(seed), (1, 2))):
        schedule = co_schedule(graph, H200, effort=16, nano_batches=cuts, guard=seed % 2 == 0)
        adds_up(schedule)
        data = schedule.explain().data
        assert twice_as_fast(schedule, [""])[""] == pytest.approx(schedule.makespan, rel=1e-9)
        assert data["split_cost"] - data["won_back"] == pytest.approx(schedule.makespan / schedule.serial_makespan - 1)
        path = [step for step in critical_path(schedule) if step.place >= 0]
        assert all(step.start == schedule.assignments[step.place].start for step in path)
        assert all(step.end == schedule.assignments[step.place].end for step in path), "plans have no gaps"


@pytest.mark.parametrize("seed", range(30))
def test_path_and_stretches_cover_the_makespan_of_any_placement(seed: int) -> None:
    adds_up(random_dags.placed(random_dags.synthetic(seed)[0], random.Random(seed)))


def test_every_step_of_the_path_waits_for_the_one_before() -> None:
    schedule = co_schedule(graphs.synthetic.random_dag(4, 60), H200, effort=16, nano_batches=(1,))
    path = critical_path(schedule)
    assert path[0].reason == "start"
    awaited = {(wait.node, wait.on) for wait in schedule.waits}
    for before, after in pairwise(path):
        one, other = schedule.assignments[before.place], schedule.assignments[after.place]
        edges = {pred for pred, _ in schedule.graph.nodes[other.node].preds}
        if after.reason == "stream":
            assert one.stream == other.stream
        else:
            assert one.node in edges or (other.node, one.node) in awaited


def test_an_empty_schedule_has_nothing_to_bind_it() -> None:
    graph = nr.Graph("empty")
    graph.output(x=graph.input("x", (1,), torch.float32))
    schedule = co_schedule(graph, H200)
    assert (critical_path(schedule), stretches(schedule, ())) == ((), ())
    adds_up(schedule)


def test_a_loaded_schedule_is_explained_alike(tmp_path: Path) -> None:
    graph = dags.dag(7)
    schedule = co_schedule(graph, H200, effort=16)
    schedule.save(tmp_path / "plan.json")
    assert Schedule.load(tmp_path / "plan.json", graph).explain().data == schedule.explain().data


# What binds.


@pytest.mark.parametrize(
    ("demand", "cause"),
    [
        (nr.Demand(), "launch"),
        (nr.Demand(flops=7.8e11), "SMs"),
        (nr.Demand(hbm_bytes=4.3e9), "HBM"),
        (nr.Demand(h2d_bytes=5e7, sms=(0, 0)), "PCIe down"),
        (nr.Demand(d2h_bytes=5e7, sms=(8, 16)), "PCIe up"),
        (nr.Demand(net_bytes=4.5e8, sms=(8, 16)), "network"),
        (nr.Demand.rigid(seconds=MS, sms=8), "dependency"),
        (nr.Demand.rigid(seconds=MS, sms=132), "SMs"),
        (nr.Demand.rigid(seconds=MS, sms=8, hbm=0.95), "HBM"),
    ],
)
def test_a_node_alone_is_bound_by_what_it_asks_for(demand: nr.Demand, cause: str) -> None:
    assert causes(serial(demand)) == [cause]


def test_a_ready_node_that_waits_beside_free_sms_waits_for_its_turn() -> None:
    schedule = serial(*[nr.Demand.rigid(seconds=MS, sms=8)] * 3, beside=True)
    found = stretches(schedule, critical_path(schedule))
    assert [(s.start, s.end, s.cause) for s in found] == [(0.0, 2 * MS, "order"), (2 * MS, 3 * MS, "dependency")]


def test_nodes_that_ask_for_more_than_all_of_memory_are_bound_by_it() -> None:
    """Alone, neither draws enough; together they draw 1.2 times what there is, and each takes 1.2 times as long."""
    demand = nr.Demand.rigid(seconds=MS, sms=64, hbm=0.6)
    apart = partition.streams(partition.split(H200, (64, 64)))
    made = random_dags.schedule(dags.beside(demand, demand), apart, [0, 1])
    together = [replace(assignment, start=0.0, end=1.2 * MS) for assignment in made.assignments]
    schedule = replace(made, assignments=tuple(together), outlooks=(Outlook(43, 1.2 * MS, 2 * MS),))
    schedule.check()
    assert twice_as_fast(schedule, [""])[""] == pytest.approx(1.2 * MS, rel=1e-9)
    assert causes(schedule) == ["HBM"]
    assert causes(serial(demand)) == ["dependency"]


def test_operators_of_one_cause_are_told_apart_and_nodes_of_one_operator_are_not() -> None:
    graph = nr.Graph("told apart")
    value = graph.input("x", (1,), torch.bfloat16)
    one, other = (
        nr.op(demand=nr.Demand(flops=7.8e11), name=name, axes="rows")(function)
        for name, function in (("one", lambda x: x + 1), ("other", lambda x: x + 2))
    )
    for op in (one, one, other):
        value = op(value)
    schedule = co_schedule(graph, H200, policy="serial")
    found = stretches(schedule, critical_path(schedule))
    assert [(stretch.cause, stretch.detail) for stretch in found] == [("SMs", "one"), ("SMs", "other")]


def test_time_in_which_nothing_runs_is_a_step_without_a_node() -> None:
    graph = dags.chain(nr.Demand.rigid(seconds=MS, sms=132), nr.Demand.rigid(seconds=MS, sms=132))
    group = Group("whole", 132)
    made = random_dags.schedule(graph, partition.streams((group,)), [0, 0])
    times = ((1 * MS, 2 * MS), (5 * MS, 6 * MS))
    assignments = [replace(a, start=start, end=end) for a, (start, end) in zip(made.assignments, times, strict=True)]
    schedule = replace(made, assignments=tuple(assignments), outlooks=(Outlook(43, 6 * MS, 2 * MS),))
    assert [step.place for step in critical_path(schedule)] == [-1, 0, -1, 1]
    assert causes(schedule) == ["order", "SMs", "order", "SMs"]
    adds_up(schedule)


# What if.


def test_half_of_an_operators_time_on_the_path_is_won() -> None:
    schedule = serial(nr.Demand(flops=7.8e11), nr.Demand(hbm_bytes=4.3e9))
    data = explain(schedule).data
    assert data["twice_as_fast"] == {"_touch": pytest.approx(schedule.makespan / 2)}


def test_what_is_hidden_behind_an_operator_binds_once_that_is_faster() -> None:
    """A product of 4 ms beside an upload of 3 ms: twice as fast, the product leaves the upload to wait for."""
    graph = nr.Graph("hidden")
    x = graph.input("x", (1,), torch.bfloat16)
    nr.op(demand=nr.Demand(flops=4 * 7.8e11), name="product", axes="rows")(lambda x: x + 1)(x)
    nr.op(demand=nr.Demand(h2d_bytes=3 * 5e7, sms=(0, 0)), name="send", axes="rows")(lambda x: x + 2)(x)
    schedule = co_schedule(graph, H200, effort=8)
    data = explain(schedule).data
    assert list(data["path_seconds"]) == ["product"]
    assert data["twice_as_fast"] == {"product": pytest.approx(3 * MS, rel=1e-2)}


def test_of_a_large_graph_fewer_operators_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = co_schedule(graphs.synthetic.random_dag(3, 60), H200, effort=8)
    assert len(schedule.explain().data["twice_as_fast"]) > 1
    monkeypatch.setattr(module, "MANY_NODES", 10)
    (asked,) = schedule.explain().data["twice_as_fast"]
    assert asked == next(iter(schedule.explain().data["path_seconds"]))


# In words.


def test_words_say_what_splitting_cost_and_which_bounds_apply() -> None:
    schedule = co_schedule(graphs.synthetic.random_dag(3, 60), H200, effort=8, nano_batches=(2,), guard=False)
    printed, data = str(schedule.explain()), schedule.explain().data
    assert f"splitting cost {100 * data['split_cost']:.0f} % of serial" in printed
    assert all(label in printed for label in ("split", "physical", "partitioned", "bound by", "path", "2x as fast"))
    assert data["gap"] == pytest.approx(schedule.makespan / schedule.bounds.best - 1)
    assert data["ideal_gap"] == pytest.approx(1 - data["ideal_seconds"] / schedule.makespan)


def test_names_cannot_reach_the_terminal() -> None:
    graph = nr.Graph("names")
    x = graph.input("x", (1,), torch.bfloat16)
    nr.op(demand=nr.Demand(flops=7.8e11), name="red\x1b[31m", axes="rows")(lambda x: x + 1)(x)
    assert "\x1b" not in str(co_schedule(graph, H200).explain())


def test_a_schedule_by_hand_may_have_any_order() -> None:
    """Assignments that claim the impossible are explained as far as they go, and end."""
    graph = dags.chain(nr.Demand(flops=7.8e11), nr.Demand(flops=7.8e11))
    made = random_dags.schedule(graph, partition.streams((Group("whole", 132),)), [0, 0])
    late, early = made.assignments
    swapped = (
        Assignment(early.node, early.name, "whole", 132, "reference", 0.0, 2.0),
        Assignment(late.node, late.name, "whole", 132, "reference", 1.0, 3.0),
    )
    adds_up(replace(made, assignments=swapped))
