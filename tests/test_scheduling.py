from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dags
import nanort as nr
from nanort import graphs
from nanort.costs.profile import Measurement, Pair, Profile
from nanort.errors import (
    BatchFlowError,
    CapacityError,
    FileError,
    ForeignFileError,
    NewerVersionError,
    PolicyError,
    ScheduleError,
    TruncatedFileError,
)
from nanort.graphs.step import decoder_step
from nanort.partition import WHOLE
from nanort.scheduling.coschedule import co_schedule
from nanort.scheduling.schedule import Schedule
from nanort.simulation.fluid import Jobs, Modes, replay

H200 = nr.device("h200")
LLAMA = replace(graphs.CONFIGS["llama-3-8b"], layers=6)
DEVICES = {
    "h200": H200,
    "a100-80g": nr.device("a100-80g"),
    "two cores": nr.device("cpu").with_(sms=2, hbm_saturation_sms=(2, 2)),
    "one core": nr.device("cpu").with_(sms=1, hbm_saturation_sms=(1, 1)),
}


def mixed_step() -> nr.Graph:
    return decoder_step(LLAMA, decode=670, context=1280, prefill=1340)


def planned(graph: nr.Graph, device: nr.Device, **options: object) -> Schedule:
    """A schedule of little effort, checked."""
    schedule = co_schedule(graph, device, **{"effort": 24} | options)
    schedule.check()
    return schedule


# What holds of every schedule.


@pytest.mark.parametrize("policy", ["serial", "list", "search"])
@pytest.mark.parametrize("device", DEVICES)
def test_schedules_of_random_graphs_are_valid_bounded_and_never_slower_than_serial(device: str, policy: str) -> None:
    for seed in range(25):
        for graph in (dags.dag(seed), graphs.synthetic.random_dag(seed)):
            if any(node.span[0] > DEVICES[device].sms for node in graph.nodes):
                continue
            cuts = (1,) if graph.name.startswith("dag") else (1, 2)
            schedule = planned(graph, DEVICES[device], policy=policy, nano_batches=cuts, seed=seed)
            assert schedule.bounds.best <= schedule.makespan * (1 + 1e-9)
            assert schedule.makespan <= schedule.serial_makespan * (1 + 1e-9)
            assert all(outlook.gain >= schedule.outlooks[0].gain >= 1 for outlook in schedule.outlooks)


@pytest.mark.parametrize("seed", range(12))
def test_times_are_those_of_its_streams_and_waits_played_by_the_simulator(seed: int) -> None:
    schedule = planned(graphs.synthetic.random_dag(seed, 60), H200)
    nodes = [schedule.graph.nodes[a.node] for a in schedule.assignments]
    alone = [schedule.costs.solo(node, a.sms) for node, a in zip(nodes, schedule.assignments, strict=True)]
    names, place = [s.name for s in schedule.streams], {a.node: k for k, a in enumerate(schedule.assignments)}
    awaited: list[list[int]] = [[] for _ in nodes]
    for wait in schedule.waits:
        awaited[place[wait.node]].append(place[wait.on])
    links = tuple([getattr(cost, link) for cost in alone] for link in ("hbm", "h2d", "d2h", "net"))
    jobs = Jobs(
        [names.index(a.stream) for a in schedule.assignments],
        Modes([cost.seconds for cost in alone], [a.sms for a in schedule.assignments], links),
        [node.op.name for node in nodes],
        lambda job, sms: schedule.costs.solo(nodes[job], sms).seconds if sms >= nodes[job].span[0] else float("inf"),
    )
    start, end = replay(jobs, schedule.streams, awaited, event_seconds=H200.event_seconds)
    assert start == pytest.approx([a.start for a in schedule.assignments], rel=1e-9)
    assert end == pytest.approx([a.end for a in schedule.assignments], rel=1e-9)


def test_the_same_seed_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    code = (
        "import sys, nanort as nr; from nanort import graphs; from nanort.scheduling.coschedule import co_schedule\n"
        "co_schedule(graphs.synthetic.random_dag(3, 200), nr.device('h200'), effort=40, seed=5).save(sys.argv[1])"
    )
    command, elsewhere = [sys.executable, "-c", code, str(tmp_path / "a")], {**os.environ, "PYTHONHASHSEED": "1"}
    subprocess.run(command, check=True, env=elsewhere)
    for name, seed in (("b", 5), ("c", 6)):
        co_schedule(graphs.synthetic.random_dag(3, 200), H200, effort=40, seed=seed).save(tmp_path / name)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c, "the seed is part of the file"


def test_an_empty_graph_has_an_empty_schedule() -> None:
    graph = nr.Graph("empty")
    graph.output(x=graph.input("x", (1,), torch.float32))
    schedule = planned(graph, H200)
    assert (schedule.assignments, schedule.makespan, schedule.waits) == ((), 0.0, ())
    assert "serial" in str(schedule.explain())


# What it finds.


@pytest.mark.parametrize(("saturation", "gain"), [(43, 1.22), (64, 1.13), (85, 1.09)])
def test_a_mixed_step_gains_from_a_partition_and_two_nano_batches(saturation: int, gain: float) -> None:
    """On all 32 layers it is 1.30, 1.20 and 1.13."""
    schedule = co_schedule(mixed_step(), H200.with_(hbm_saturation_sms=(saturation, saturation)))
    schedule.check()
    assert schedule.mechanism.startswith("isolated")
    assert schedule.split is not None
    assert schedule.split.sizes == 2
    assert schedule.outlooks[0].gain > gain


def test_it_plans_for_the_worst_plausible_device() -> None:
    robust = co_schedule(mixed_step(), H200)
    optimist = co_schedule(mixed_step(), H200.with_(hbm_saturation_sms=(43, 43)))
    assert [outlook.saturation for outlook in robust.outlooks] == [85, 60, 43]
    assert robust.outlooks[0].gain == min(outlook.gain for outlook in robust.outlooks)
    assert optimist.outlooks[0].gain > robust.outlooks[-1].gain, "it is planned for another device"


def test_decode_alone_is_not_cut_since_that_reads_all_weights_twice() -> None:
    schedule = planned(decoder_step(LLAMA, decode=64, context=512, prefill=0), H200)
    assert schedule.split is None


def test_nodes_measured_to_run_well_together_share_the_device() -> None:
    others = ("rope_kv_append", "silu_mul", "add_rms_norm", "prefill_attention", "rms_norm")
    pairs = [Pair("linear", "decode_attention", 1.1, 1.0)] + [Pair("decode_attention", o, 1.0, 1.5) for o in others]
    schedule = planned(mixed_step(), H200, profile=Profile("h200", 132, "a test", [], pairs))
    assert schedule.mechanism == "co-resident"
    assert [stream.name for stream in schedule.streams] == ["whole", "whole.1"]
    assert schedule.outlooks[0].gain > 1.3


def test_transfers_run_beside_compute() -> None:
    graph = dags.beside(dags.demand("compute", 1.0), dags.demand("upload", 1.0), dags.demand("download", 1.0))
    schedule = planned(graph, H200)
    assert {a.stream for a in schedule.assignments} == {"whole", "h2d", "d2h"}
    assert schedule.makespan == pytest.approx(max(a.end - a.start for a in schedule.assignments), rel=1e-9)


def test_two_cores_run_what_two_cores_can() -> None:
    """Neither node can use two cores: side by side they take half the time."""
    work = nr.Demand(flops=1e9, sms=(1, 1))
    schedule = planned(dags.beside(work, work), DEVICES["two cores"])
    assert schedule.outlooks[0].gain == pytest.approx(2.0, rel=1e-6)


def test_a_node_that_is_ready_alone_gets_the_whole_device() -> None:
    graph = nr.Graph("fork")
    x = graph.input("x", (1,), torch.bfloat16)
    memory, compute = (dags.node(graph, kind, dags.demand(kind, 4.0), x) for kind in ("memory", "compute"))
    dags.node(graph, "last", dags.demand("compute", 1.0), memory, compute)
    schedule = planned(graph, H200.with_(hbm_saturation_sms=(32, 32)))
    assert schedule.mechanism.startswith("isolated")
    assert schedule.assignments[-1].name == "last"
    assert schedule.assignments[-1].stream == WHOLE
    assert {wait.reason for wait in schedule.waits} == {"data"}


def test_groups_that_share_sms_wait_for_each_other_where_no_data_says_so() -> None:
    graph = nr.Graph("two forks")
    x = graph.input("x", (1,), torch.bfloat16)
    for k in range(2):
        dags.node(graph, f"memory{k}", dags.demand("memory", 4.0), x)
        dags.node(graph, f"compute{k}", dags.demand("compute", 4.0), x)
    dags.node(graph, "everywhere", nr.Demand(flops=1e10, sms=(132, 132)), x)
    schedule = planned(graph, H200.with_(hbm_saturation_sms=(32, 32)))
    assert "resource" in {wait.reason for wait in schedule.waits}


def test_a_plan_that_does_not_pay_is_not_used() -> None:
    schedule = planned(dags.chain(*[dags.demand("both", 1.0)] * 4), H200)
    assert schedule.mechanism == "serial"
    assert schedule.makespan == schedule.serial_makespan
    assert "the serial schedule is used" in schedule.why[0]


# What it is told.


def test_the_serial_policy_runs_everything_in_graph_order_transfers_included() -> None:
    graph = dags.beside(dags.demand("upload", 1.0), dags.demand("compute", 1.0))
    schedule = planned(graph, H200, policy="serial")
    assert [(a.name, a.stream, a.sms) for a in schedule.assignments] == [("n0", "whole", 0), ("n1", "whole", 132)]
    assert schedule.assignments[1].start == schedule.assignments[0].end
    assert (schedule.effort, schedule.waits) == (0, ())


def test_nano_batches_may_be_given_by_size_and_operator() -> None:
    graph = mixed_step()
    schedule = planned(graph, H200, nano_batches=[(1000, 1010)], per_op={"decode_attention": 4})
    assert schedule.split is not None
    assert (schedule.split.sizes, schedule.split.per_op) == ((1000, 1010), (("decode_attention", 4),))
    assert sum(node.op.name == "decode_attention" for node in schedule.graph.nodes) == 4 * LLAMA.layers


def test_a_split_that_cannot_be_is_left_out_and_said() -> None:
    graph = nr.Graph("softmax")
    x = graph.input("x", (8, 4), torch.float32, batch=0)
    work = nr.Demand(flops=1.0)
    graph.output(y=graph.call(torch.softmax, x, 0, demand=work, example=(torch.rand(8, 4), 0)))
    assert any("softmax" in line for line in planned(graph, H200).why)
    with pytest.raises(BatchFlowError, match="softmax"):
        co_schedule(graph, H200, nano_batches=(2,))


def test_pins_are_kept() -> None:
    graph = nr.Graph("pinned")
    x = graph.input("x", (1,), torch.bfloat16)
    for k in range(6):
        dags.node(graph, f"free{k}", dags.demand("both", 1.0), x)
    dags.node(graph, "pinned", dags.demand("compute", 1.0), x, stream="g0", sms=(8, 8), after=("free5",))
    schedule = planned(graph, H200)
    (pinned,) = [a for a in schedule.assignments if a.name == "pinned"]
    (before,) = [a for a in schedule.assignments if a.name == "free5"]
    assert (pinned.stream, pinned.sms) == ("g0", 8)
    assert pinned.start >= before.end


@pytest.mark.parametrize(
    ("pins", "demand", "error", "says"),
    [
        ({"stream": "g7"}, "compute", PolicyError, "n is pinned to stream 'g7', which isolated"),
        ({"stream": "h2d"}, "compute", PolicyError, "n is pinned to stream 'h2d'"),
        ({"sms": (133, 133)}, "compute", CapacityError, "n needs 133 SMs, h200 has 132"),
        ({"stream": "g0", "sms": (128, 128)}, "compute", CapacityError, "n needs 128 SMs, stream 'g0' has"),
    ],
)
def test_pins_that_no_structure_has_are_refused(
    pins: dict[str, object], demand: str, error: type[Exception], says: str
) -> None:
    graph = nr.Graph("pinned")
    dags.node(graph, "n", dags.demand(demand, 1.0), graph.input("x", (1,), torch.bfloat16), **pins)
    with pytest.raises(error, match=says):
        co_schedule(graph, H200)


def test_a_pin_that_serial_plans_lack_is_refused_by_the_serial_policy() -> None:
    graph = nr.Graph("pinned")
    dags.node(graph, "n", dags.demand("compute", 1.0), graph.input("x", (1,), torch.bfloat16), stream="g0")
    with pytest.raises(PolicyError, match="n is pinned to 'g0', serial plans lack that stream"):
        co_schedule(graph, H200, policy="serial")


def test_constants_and_states_must_fit_in_memory() -> None:
    graph = nr.Graph("large")
    x, w = graph.input("x", (1, 1 << 20), torch.float32), graph.constant("w", (1 << 20, 1 << 16), torch.float32)
    graph.state("offloaded", (1 << 20, 1 << 16), torch.float32, device="host")
    graph.call(torch.matmul, x, w, demand=nr.Demand(flops=1.0))
    with pytest.raises(CapacityError, match=r"take 256.0 GiB, h200 has 139.0 GiB: .* largest is w"):
        co_schedule(graph, H200)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"policy": "best"}, PolicyError),
        ({"nano_batches": ()}, ScheduleError),
        ({"effort": 0}, ScheduleError),
        ({"effort": 2.5}, ScheduleError),
        ({"seconds": 0.0}, ScheduleError),
        ({"seconds": float("nan")}, ScheduleError),
        ({"seconds": float("inf")}, ScheduleError),
    ],
)
def test_budgets_that_cannot_be_are_refused(options: dict[str, object], error: type[Exception]) -> None:
    (name,) = options
    with pytest.raises(error, match=name):
        co_schedule(dags.dag(0), H200, **options)


def test_effort_is_the_number_of_schedules_judged() -> None:
    seen: list[tuple[int, int, float, float]] = []
    schedule = planned(mixed_step(), H200, policy="list", effort=9, progress=lambda *told: seen.append(told))
    assert [judged for judged, _, _, _ in seen] == list(range(1, schedule.effort + 1))
    assert {effort for _, effort, _, _ in seen} == {9}
    assert [best for _, _, best, _ in seen] == sorted((best for _, _, best, _ in seen), reverse=True)
    assert all(bound <= best for _, _, best, bound in seen)
    assert (schedule.effort, schedule.truncated) == (6, False), "one of two mechanisms and one to borrow in, two cuts"
    for effort in (7, 100):
        assert planned(mixed_step(), H200, effort=effort).effort == effort


def test_an_interrupted_search_keeps_the_best_so_far() -> None:
    for moment in (3, 150):  # while structures are tried, and while the best are tuned

        def interrupt(judged: int, *_: float, moment: int = moment) -> None:
            if judged >= moment:
                raise KeyboardInterrupt

        schedule = planned(mixed_step(), H200, effort=400, progress=interrupt)
        assert schedule.truncated
        assert any("interrupted after" in line for line in schedule.why)
        assert schedule.outlooks[0].gain >= 1.0


def test_more_effort_refines_the_plan() -> None:
    device = H200.with_(hbm_saturation_sms=(85, 85))
    gains = [co_schedule(mixed_step(), device, effort=effort).outlooks[0].gain for effort in (4, 120, 300)]
    assert gains == sorted(gains)
    assert gains[0] < gains[2]


def test_a_schedule_that_ran_out_of_time_says_so() -> None:
    schedule = planned(mixed_step(), H200, effort=500, seconds=1e-9)
    assert schedule.truncated
    assert schedule.effort == 1
    assert any("time was up after 1 of 500 schedules" in line for line in schedule.why)


@pytest.mark.parametrize(("plan", "serial", "kept"), [(1.0, 2.0, "isolated"), (2.0, 1.0, "serial")])
def test_what_is_measured_to_be_faster_is_kept(plan: float, serial: float, kept: str) -> None:
    def measure(schedules: Sequence[Schedule]) -> list[list[float]]:
        return [[serial if schedule.mechanism == "serial" else plan] * 6 for schedule in schedules]

    schedule = planned(mixed_step(), H200, measure=measure)
    assert schedule.mechanism.startswith(kept)
    assert schedule.why[0].startswith("measured, 6 interleaved runs each, 95 % intervals: isolated")
    assert not any("nothing was predicted to beat it" in line for line in schedule.why)


def test_a_measurement_of_nothing_is_refused() -> None:
    with pytest.raises(ScheduleError, match="it must give the seconds of each run"):
        planned(mixed_step(), H200, measure=lambda schedules: [[float("nan")] for _ in schedules])


def test_measured_kernels_and_seconds_are_planned_with() -> None:
    graph = dags.chain(dags.demand("compute", 1.0))
    profile = Profile("h200", 132, "a test", [Measurement.of(graph.nodes[0], "tuned", 132, 0.25)])
    (assignment,) = planned(graph, H200, profile=profile, policy="serial").assignments
    assert (assignment.kernel, assignment.end) == ("tuned", 0.25)


# What can be done with one.


@pytest.fixture(scope="module")
def plan() -> Schedule:
    return co_schedule(mixed_step(), H200, effort=24)


def test_an_explanation_has_all_figures(plan: Schedule) -> None:
    data = plan.explain().data
    assert json.loads(json.dumps(data)) == data
    assert data["serial_seconds"] / data["seconds"] == pytest.approx(data["gain"])
    assert data["bounds"][data["limit"]] == plan.bounds.best <= data["seconds"]
    assert data["ideal_seconds"] < data["seconds"]
    printed = str(plan.explain())
    assert all(
        word in printed
        for word in ("serial", "predicted", f"{data['gain']:.2f}x", "bounds", "limited by SMs", "ideal", "why")
    )


def test_a_schedule_prints_as_a_timeline(plan: Schedule) -> None:
    printed = str(plan)
    assert all(stream.name in printed for stream in plan.streams)
    assert f"{plan.outlooks[0].gain:.2f}x serial" in printed
    timeline = plan.timeline()
    assert timeline.makespan == plan.makespan
    assert sum(len(activity.waits) for activity in timeline.activities) == len(plan.waits)


def test_a_difference_names_what_is_decided_otherwise(plan: Schedule) -> None:
    assert plan.diff(plan).data["decisions"] == {}
    assert plan.diff(plan).data["moved"] == {}
    other = co_schedule(plan.source, nr.device("a100-80g").with_(memory_bytes=1 << 40), policy="serial")
    difference = other.diff(plan)
    assert set(difference.data["decisions"]) == {"device", "split", "mechanism"}
    assert "device: a100-80g -> h200" in str(difference)
    name, last = plan.assignments[5].name, plan.assignments[-1]
    swapped = replace(plan, assignments=(*plan.assignments[:-1], replace(last, sms=last.sms - 1)))
    assert list(plan.diff(swapped).data["moved"]) == [last.name] != [name]


def test_a_schedule_is_read_as_it_was_written(plan: Schedule, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.json")
    again = Schedule.load(tmp_path / "plan.json", plan.source)
    assert again == plan
    assert again.makespan == plan.makespan
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "plan.json").read_bytes()


def test_a_schedule_of_another_graph_or_profile_is_refused(plan: Schedule, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.json")
    with pytest.raises(ForeignFileError, match="plans another graph, 'decoder'"):
        Schedule.load(tmp_path / "plan.json", dags.dag(0))
    with pytest.raises(ForeignFileError, match="rests on no profile"):
        Schedule.load(tmp_path / "plan.json", plan.source, profile=Profile("h200", 132, "a test", []))


def test_a_schedule_that_is_cut_short_is_refused(plan: Schedule, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    for length in range(0, len(text) - 2, len(text) // 40):
        (tmp_path / "plan.json").write_text(text[:length])
        with pytest.raises(TruncatedFileError):
            Schedule.load(tmp_path / "plan.json", plan.source)


@pytest.mark.parametrize(
    ("key", "value", "error", "says"),
    [
        ("version", 3, NewerVersionError, "update nanort"),
        ("unknown", 1, FileError, "has the fields"),
        ("seed", "0", FileError, "seed is '0'"),
        ("split", {"sizes": "2", "per_op": {}}, FileError, "sizes is '2'"),
        ("split", None, FileError, "which the graph does not have"),
        ("device", {}, FileError, "device has the fields"),
        ("groups", [], FileError, "is on group"),
        ("streams", [["g0"]], FileError, "stream 0 is"),
        ("outlooks", [], FileError, "outlooks are"),
        ("outlooks", [[85, -1, 1.0]], FileError, "outlooks are"),
        ("assignments", [], ScheduleError, "is not assigned"),
        ("assignments", [["nobody", "g0", 8, "reference", 0.0, 1.0]], FileError, "names the node 'nobody'"),
        ("assignments", [["nobody", "g0", 8, "reference", 0.0]], FileError, "assignment 0 is"),
        ("waits", [["a", "b", 1]], FileError, "wait 0 is 1"),
        ("waits", [], ScheduleError, "nothing makes"),
        ("why", [1], FileError, "why is 1"),
    ],
)
def test_a_schedule_is_read_strictly(
    plan: Schedule, tmp_path: Path, key: str, value: object, error: type[Exception], says: str
) -> None:
    path = tmp_path / "plan.json"
    plan.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(error, match=says):
        Schedule.load(path, plan.source)
