from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import nanort as nr
import random_dags
from nanort import partition
from nanort.costs.profile import Measurement, Profile
from nanort.errors import ScheduleError, SplitError
from nanort.graphs import CONFIGS, DecoderConfig, decoder, decoder_step
from nanort.scheduling.replan import replan
from nanort.scheduling.schedule import Schedule, Split

H200 = nr.device("h200")
LLAMA = replace(CONFIGS["llama-3-8b"], layers=6)
SEEDS = range(60)


def step(decode: int = 670, prefill: int = 1340, context: int = 1280, config: DecoderConfig = LLAMA) -> nr.Graph:
    return decoder_step(config, decode=decode, context=context, prefill=prefill)


@pytest.fixture(scope="module")
def plan() -> Schedule:
    found = nr.co_schedule(step(), H200, nano_batches=2, effort=24)
    assert found.mechanism.startswith("isolated")
    assert found.outlooks[0].gain > 1
    return found


def layout(rng: random.Random) -> nr.Layout:
    """Decode rows, and prompts of several requests, or only one of both."""
    decode = rng.choice((0, rng.randint(1, 9), rng.randint(1, 500)))
    prompts = rng.randint(0 if decode else 1, 3)
    segments = tuple(nr.Segment(rng.randint(1, rng.choice((5, 400))), rng.choice((0, 70))) for _ in range(prompts))
    return nr.Layout(decode=decode, prefill=segments, kv_tokens=decode * rng.randint(0, 2000))


def model(rows: nr.Layout) -> nr.Graph:
    config = replace(LLAMA, layers=2)
    return decoder(config, rows, pages=9, requests=4, table_width=2, dtype=torch.bfloat16)


def split(rows: nr.Layout, rng: random.Random) -> Split | None:
    """No cut, a count of pieces, or their sizes; attention may be cut finer."""
    pieces = rng.randint(1, 3)
    ends = sorted(rng.randint(0, rows.rows) for _ in range(pieces - 1))
    sizes = [high - low for low, high in pairwise([0, *ends, rows.rows])]
    per_op = {"decode_attention": 6} if rows.decode and rng.random() < 0.3 else {}
    return Split.of(rng.choice((pieces, sizes)), per_op)


def placed(graph: nr.Graph, cut: Split | None, rng: random.Random) -> Schedule:
    """A valid schedule that nobody would want, of a graph cut so."""
    found = random_dags.placed(cut.cut(graph) if cut else graph, rng, H200)
    return replace(found, source=graph, split=cut)


def carried(before: Schedule, graph: nr.Graph, guard: bool) -> Schedule | None:
    """What replan makes of it; None where it refuses."""
    try:
        return replan(before, graph, guard=guard)
    except (ScheduleError, SplitError):
        return None


def kinds(rows: nr.Layout) -> set[str]:
    return {kind for kind, count in (("decode", rows.decode), ("prefill", rows.prefill_rows)) if count}


# What holds of every one.


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_plan_is_carried_over_or_refused(seed: int) -> None:
    rng = random.Random(seed)
    old, new = layout(rng), layout(rng)
    before = placed(model(old), split(old, rng), rng)
    graph, guard = model(new), rng.random() < 0.3
    found = carried(before, graph, guard)
    if found is None:
        assert kinds(old) != kinds(new) or before.split is not None
        return
    found.check()
    assert found.source is graph
    assert found.why[0] == f"replanned from a plan for {old!r}"
    if guard:
        assert found.outlooks[0].seconds <= found.serial_makespan
        assert all(outlook.seconds <= outlook.serial_seconds for outlook in found.outlooks)
    if found.mechanism == "random":  # what it was, not the serial schedule
        assert {a.name for a in found.assignments} == {node.name for node in found.graph.nodes}
        stood = {(n.origin, n.piece): a.stream for a in before.assignments for n in [before.graph.nodes[a.node]]}
        runs = {(n.origin, n.piece): a.stream for a in found.assignments for n in [found.graph.nodes[a.node]]}
        assert all(stood.get(key, stream) == stream for key, stream in runs.items())


def test_random_plans_are_carried_over_more_often_than_not() -> None:
    """Otherwise the test above says nothing."""
    found = list[Schedule | None]()
    for seed in SEEDS:
        rng = random.Random(seed)
        old, new = layout(rng), layout(rng)
        found.append(carried(placed(model(old), None, rng), model(new), guard=False))
    assert len(found) / 2 > found.count(None) > 0


def test_equal_sizes_give_equal_times(plan: Schedule) -> None:
    twin = step()
    twin.name = "twin"
    found = replan(plan, twin)
    found.check()
    assert found.waits == plan.waits
    assert [(a.name, a.stream, a.sms, a.kernel) for a in found.assignments] == [
        (a.name, a.stream, a.sms, a.kernel) for a in plan.assignments
    ]
    assert [a.end for a in found.assignments] == pytest.approx([a.end for a in plan.assignments])
    assert [o.gain for o in found.outlooks] == pytest.approx([o.gain for o in plan.outlooks])


def test_an_equal_graph_has_the_schedule_already(plan: Schedule) -> None:
    assert replan(plan, plan.source) is plan
    assert replan(plan, step()) is plan


@pytest.mark.parametrize("sizes", [(680, 1340, 1280), (640, 1400, 1280), (670, 1300, 1200)])
def test_a_step_of_about_the_same_size_gains_about_the_same(plan: Schedule, sizes: tuple[int, int, int]) -> None:
    found = replan(plan, step(*sizes))
    found.check()
    assert (found.mechanism, found.split, found.streams) == (plan.mechanism, plan.split, plan.streams)
    assert found.outlooks[0].gain > 1
    assert {a.name: a.stream for a in found.assignments} == {a.name: a.stream for a in plan.assignments}


def test_one_plan_after_another(plan: Schedule) -> None:
    for decode in range(680, 780, 24):
        plan = replan(plan, step(decode=decode), guard=False)
        plan.check()
    assert len(plan.why) == 1


def test_a_schedule_from_a_file_is_carried_over_alike(plan: Schedule, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.json")
    graph = step(680, 1300)
    assert replan(Schedule.load(tmp_path / "plan.json", plan.source), graph) == replan(plan, graph)


def test_what_was_measured_is_kept(plan: Schedule) -> None:
    calls = {node.op.name: node for node in plan.graph.nodes}
    profile = Profile("h200", 132, "a test", [Measurement.of(calls["linear"], "tuned", 132, 1e-3)])
    found = replan(nr.co_schedule(step(), H200, nano_batches=2, effort=24, profile=profile), step(680, 1300))
    found.check()
    assert found.profile is profile


def test_transfers_stay_on_their_engines() -> None:
    def swapping(decode: int, swap: float) -> nr.Graph:
        return decoder_step(replace(LLAMA, layers=2), decode=decode, context=1280, prefill=1340, swap=swap)

    before = nr.co_schedule(swapping(670, 0.05), H200, effort=24)
    found = replan(before, swapping(640, 0.04))
    found.check()
    assert {"h2d", "d2h"} < {stream.name for stream in found.streams}
    assert found.outlooks[0].gain > 1


def test_a_graph_without_a_layout_is_cut_at_the_same_share_of_its_batch() -> None:
    def chain(rows: int) -> nr.Graph:
        graph = nr.Graph("chain")
        x = graph.input("x", (rows, 64), torch.bfloat16, batch=0)
        for step in range(6):
            work = nr.Demand(flops=rows * 1e8, hbm_bytes=rows * 1e6 * (step % 2))
            x = graph.call(torch.relu, x, demand=work, axes="rows")
        graph.output(y=x)
        return graph

    before = nr.co_schedule(chain(1000), H200, nano_batches=[[512, 488]], guard=False, effort=8)
    found = replan(before, chain(1500), guard=False)
    found.check()
    assert found.split == Split((768, 732))
    assert found.why == ("replanned from a plan for Graph chain: 6 nodes, 5 edges, 1 input, 1 output",)
    assert replan(before, chain(1000)) is before


# The guard.


def test_what_no_longer_beats_the_serial_schedule_is_not_used(plan: Schedule) -> None:
    graph = step(decode=0)
    found = replan(plan, graph)
    found.check()
    assert (found.mechanism, found.split, found.outlooks[0].gain) == ("serial", None, 1.0)
    assert found.why[1].startswith(f"the serial schedule is used: {plan.mechanism} is 0.")
    assert replan(plan, graph, guard=False).outlooks[0].gain < 1


def test_a_serial_schedule_stays_serial() -> None:
    serial = nr.co_schedule(step(), H200, policy="serial", nano_batches=2)
    found = replan(serial, step(600, 300), guard=False)
    found.check()
    assert (found.mechanism, found.split) == ("serial", Split(2))
    assert replan(serial, step(600, 300)).split == Split(2)


# The cut.


def test_sizes_are_scaled_to_whole_tiles_and_counts_kept() -> None:
    before = nr.co_schedule(
        step(), H200, nano_batches=[[896, 1114]], per_op={"prefill_attention": 4}, guard=False, effort=24
    )
    found = replan(before, step(700, 1500), guard=False)
    assert found.split == Split((1024, 1176), (("prefill_attention", 4),))
    found = replan(before, step(decode=100, prefill=0), guard=False)  # fewer rows than a tile
    assert found.split == Split((45, 55))
    found.check()


# Nodes that are there in only one of the steps.


def test_nodes_without_rows_are_left_out(plan: Schedule) -> None:
    found = replan(plan, step(prefill=0), guard=False)
    found.check()
    kept = {a.name for a in found.assignments}
    assert {a.name for a in plan.assignments} - kept == {
        node.name for node in plan.graph.nodes if node.op.name == "prefill_attention"
    }


def test_new_nodes_go_where_only_one_stream_can_be_meant(plan: Schedule) -> None:
    before = replan(plan, step(prefill=0), guard=False)
    with pytest.raises(ScheduleError, match=r"the plan has no .*prefill_attention.*plan anew with nr.co_schedule"):
        replan(before, step(), guard=False)
    graph = step(prefill=0)
    streams = partition.streams(partition.split(H200, (64, 64)))
    one = random_dags.schedule(graph, streams, [0] * len(graph.nodes), device=H200)
    found = replan(one, step(), guard=False)
    found.check()
    assert {a.stream for a in found.assignments} == {streams[0].name}


def test_a_plan_of_two_prompts_is_carried_over_to_a_step_of_one_whose_second_half_reads_the_first() -> None:
    graph = model(nr.Layout(prefill=(nr.Segment(8), nr.Segment(8))))
    cut = Split(2).cut(graph)
    lanes = [node.piece for node in cut.nodes]
    second_first = sorted(range(len(lanes)), key=lambda node: (-lanes[node], node))
    streams = partition.streams((partition.whole(H200, lanes=2),))
    before = random_dags.schedule(cut, streams, lanes, second_first, H200)
    found = replan(replace(before, source=graph, split=Split(2)), model(nr.Layout(prefill=16)), guard=False)
    found.check()
    attends, appends = "layer0.prefill_attention/1", "layer0.rope_kv_append/0"
    before_times, times = ({a.name: (a.start, a.end) for a in one.assignments} for one in (before, found))
    assert before_times[attends][1] <= before_times[appends][0]
    assert times[attends][0] >= times[appends][1]


# What is refused.


def test_another_model_is_refused_by_its_first_difference(plan: Schedule) -> None:
    deeper = replace(LLAMA, layers=7)
    with pytest.raises(ScheduleError, match=r"it has the node 'layer6.q_proj', which is there in only one of them"):
        replan(plan, step(600, config=deeper))
    with pytest.raises(ScheduleError, match=r"it has the node 'layer6.q_proj'"):
        replan(replan(plan, step(prefill=0)), step(config=deeper))
    with pytest.raises(ScheduleError, match=r"it lacks the node 'layer5.q_proj'"):
        replan(plan, step(config=replace(LLAMA, layers=5)))


def test_another_operator_of_the_same_name_is_refused(plan: Schedule) -> None:
    graph = nr.Graph("other")
    x = graph.input("x", (8,), torch.float32, batch=0)
    graph.output(y=graph.call(torch.relu, x, demand=nr.Demand(flops=8), name=plan.source.nodes[0].name, axes="rows"))
    with pytest.raises(ScheduleError, match=r"node 'embedding' calls relu in one and embedding in the other"):
        replan(plan, graph)


def test_a_node_that_outgrew_its_stream_is_refused() -> None:
    def asks(sms: int) -> nr.Graph:
        graph = nr.Graph(f"asks-{sms}")
        x = graph.input("x", (8,), torch.float32, batch=0)
        graph.output(y=graph.call(torch.relu, x, demand=nr.Demand(flops=8, sms=(sms, None)), name="y", axes="rows"))
        return graph

    before = random_dags.schedule(asks(1), partition.streams(partition.split(H200, (64, 64))), [1], device=H200)
    with pytest.raises(ScheduleError, match=r"'y' no longer fits on stream 'g1'"):
        replan(before, asks(100))
