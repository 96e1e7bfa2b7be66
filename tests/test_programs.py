from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

import nanort as nr
import random_dags
from nanort import partition
from nanort.eager import Memory, bind, materialise
from nanort.errors import ProgramError
from nanort.programs.lower import lower
from nanort.programs.program import Copy, Launch, Program, Record, View, Wait
from nanort.scheduling.schedule import Schedule
from nanort.values import Value
from random_dags import WORK

STREAMS = partition.streams(partition.split(nr.device("h200"), [16, 32]), partition.ENGINES)  # g0, g1, h2d, d2h
double = nr.op(demand=WORK, name="double", axes="rows")(lambda x: 2 * x)


@nr.op(demand=WORK, writes=("x",))
def clear(x: torch.Tensor) -> None:
    x.zero_()


SEEDS = pytest.mark.parametrize("seed", range(30))


def random_schedule(seed: int) -> tuple[Schedule, dict[str, torch.Tensor]]:
    """A random placement of a random cut, and tensors for it."""
    rng = random.Random(seed)
    graph, tensors = rng.choice((random_dags.ragged, random_dags.synthetic))(seed)
    cut = random_dags.cut(graph, rng)
    return random_dags.placed(cut, rng), random_dags.packed(cut, tensors)


def steps(program: Program) -> list[Launch | Copy]:
    return [step for step in program.instructions if isinstance(step, (Launch, Copy))]


def two_streams() -> Schedule:
    """a and b on g0, c and d on g1: c reads a, b reads c, d reads a and c."""
    graph = nr.Graph("four")
    x = graph.input("x", (4, 2), torch.float32)
    a = graph.call(double, x, name="a")
    c = graph.call(double, a, name="c")
    b = graph.call(double, c, name="b")
    d = graph.call(torch.add, a, c, demand=WORK, name="d")
    graph.output(b=b, d=d)
    return random_dags.schedule(graph, STREAMS, [0, 1, 0, 1])


# Instructions.


def test_listing_shows_launches_records_and_waits() -> None:
    program = lower(two_streams())
    assert str(program).splitlines() == [
        "program four on h200: 8 instructions",
        "  g0       launch a [double:reference] on 16 SMs",
        "  g0       record e0",
        "  g1       wait   e0 (data)",
        "  g1       launch c [double:reference] on 32 SMs",
        "  g1       record e1",
        "  g0       wait   e1 (data)",
        "  g0       launch b [double:reference] on 16 SMs",
        "  g1       launch d [add:reference] on 32 SMs",
    ]
    assert repr(program) == str(program)
    assert (len(program), program.events) == (8, 2)


@SEEDS
def test_launches_are_the_assignments_in_planned_order(seed: int) -> None:
    schedule, _ = random_schedule(seed)
    program = lower(schedule)
    for step, assignment in zip(steps(program), schedule.assignments, strict=True):
        node = schedule.graph.nodes[assignment.node]
        assert (step.node, step.name, step.stream, step.where) == (node.index, node.name, assignment.stream, node.where)
        assert step.reads == node.reads
        if isinstance(step, Launch):
            assert (step.op, step.static, step.writes) == (node.op, node.static, node.writes)
            assert (step.kernel, step.sms) == ("reference", assignment.sms)
    assert program.activities == schedule.timeline().activities
    assert program.streams == schedule.streams
    assert program.graph is schedule.graph


@SEEDS
def test_waits_and_records_are_exactly_those_of_the_schedule(seed: int) -> None:
    schedule, _ = random_schedule(seed)
    program = lower(schedule)
    recorded: dict[int, int] = {}  # the node that an event stands for
    found, pending, previous = [], list[Wait](), None
    for step in program.instructions:
        if isinstance(step, Record):
            assert isinstance(previous, (Launch, Copy))
            assert previous.stream == step.stream
            assert step.event not in recorded
            recorded[step.event] = previous.node
        elif isinstance(step, Wait):
            pending.append(step)
        else:
            assert all(wait.stream == step.stream for wait in pending)
            found += [(step.node, recorded[wait.event], wait.reason) for wait in pending]
            pending = []
        previous = step
    assert not pending
    assert sorted(found) == sorted((wait.node, wait.on, wait.reason) for wait in schedule.waits)
    assert len(recorded) == program.events == len({wait.on for wait in schedule.waits})


@SEEDS
def test_every_edge_of_the_graph_is_kept_however_fast_the_streams_are(seed: int) -> None:
    """By brute force: all that happens before each launch, along streams and from records to waits."""
    schedule, _ = random_schedule(seed)
    program = lower(schedule)
    on_stream: dict[str, set[int]] = {stream.name: set() for stream in program.streams}
    at_event: dict[int, set[int]] = {}
    for step in program.instructions:
        before = on_stream[step.stream]
        if isinstance(step, Record):
            at_event[step.event] = set(before)
        elif isinstance(step, Wait):
            before |= at_event[step.event]
        else:
            missing = {pred for pred, _ in schedule.graph.nodes[step.node].preds} - before
            assert not missing
            before.add(step.node)


@SEEDS
def test_streams_get_to_their_end_in_any_interleaving(seed: int) -> None:
    rng, program = random.Random(seed), lower(random_schedule(seed)[0])
    queues = {s.name: [i for i in reversed(program.instructions) if i.stream == s.name] for s in program.streams}
    happened, launched = set[int](), 0
    while ready := [
        queue
        for queue in queues.values()
        if queue and not (isinstance(queue[-1], Wait) and queue[-1].event not in happened)
    ]:
        step = rng.choice(ready).pop()
        if isinstance(step, Record):
            happened.add(step.event)
        launched += isinstance(step, (Launch, Copy))
    assert launched == len(program.graph.nodes)


def test_wait_for_a_later_launch_is_refused() -> None:
    schedule = two_streams()
    a, *others = schedule.assignments
    late = replace(schedule, assignments=(others[0], a, *others[1:]))
    with pytest.raises(ProgramError, match=r"c waits \(data\) for a node that is launched after it"):
        lower(late)


def test_wait_for_a_node_that_is_not_launched_is_refused() -> None:
    schedule = two_streams()
    with pytest.raises(ProgramError, match="c waits"):
        lower(replace(schedule, assignments=schedule.assignments[1:]))


# Buffers and views.


@SEEDS
def test_views_show_what_eager_shows(seed: int) -> None:
    """Results written through their views, one after the other, are then found through all views of arguments."""
    schedule, tensors = random_schedule(seed)
    graph, program = schedule.graph, lower(schedule)
    whole = Memory(graph, bind(graph, tensors))
    for node in graph.nodes:
        whole.store(node, node.op.reference(*whole.args(node), **node.static))
    env = whole.env
    memory = [
        env[buffer.root]
        if buffer.kind in ("input", "constant", "state")
        else torch.full(buffer.shape, -1.0).to(buffer.dtype)
        for buffer in program.buffers
    ]

    def show(view: View) -> torch.Tensor:
        return memory[view.buffer].as_strided(view.shape, view.strides, view.offset)

    for step in steps(program):
        outs = step.outs if isinstance(step, Launch) else (step.target,)
        for view, value in zip(outs, graph.nodes[step.node].outputs, strict=True):
            assert view.shape == value.shape
            show(view).copy_(env[value.index])
    for step in steps(program):
        args = step.args if isinstance(step, Launch) else (step.source,)
        for argument, value in zip(args, graph.nodes[step.node].args, strict=True):
            if isinstance(value, Value):
                assert torch.equal(show(argument), materialise(value, env))
            else:
                assert argument == value
    for name, view in program.outputs.items():
        assert torch.equal(show(view), materialise(graph.outputs[name], env))


@SEEDS
def test_parts_of_a_join_lie_in_its_buffer(seed: int) -> None:
    graph = random_schedule(seed)[0].graph
    program = lower(random_dags.schedule(graph, STREAMS[:1], [0] * len(graph.nodes)))
    written = {
        value.index: view
        for step in steps(program)
        for value, view in zip(graph.nodes[step.node].outputs, _outs(step), strict=True)
    }
    joins = [root for root in graph.roots if root.kind == "join"]
    parts = {part.index for join in joins for part in join.parts}
    assert {buffer.root for buffer in program.buffers if buffer.kind == "result"} == written.keys() - parts
    for join in joins:
        first = written[join.parts[0].index]
        offset = first.offset
        for part in join.parts:
            view = written[part.index]
            assert (view.buffer, view.offset) == (first.buffer, offset)
            offset += part.shape[0] * first.strides[0]
        assert program.buffers[first.buffer].kind == "join"


def _outs(step: Launch | Copy) -> tuple[View, ...]:
    return step.outs if isinstance(step, Launch) else (step.target,)


def joined() -> tuple[nr.Graph, dict[str, Any]]:
    """Rows 0:2, 2:5 and 5:6 of a buffer of 6, made by nodes; the first two are a join as well."""
    graph = nr.Graph("nested")
    x = graph.input("x", (6, 4), torch.float32)
    a, b, c = double(x[:2]), double(x[2:5]), double(x[5:])
    inner = graph.join(a, b)
    outer = graph.join(inner, c)
    return graph, {"x": x, "a": a, "b": b, "c": c, "inner": inner, "outer": outer}


def test_nested_joins_share_the_outer_buffer() -> None:
    graph, values = joined()
    graph.output(**{name: value for name, value in values.items() if name != "x"}, cut=values["inner"][1:4, 1:3])
    program = lower(random_dags.schedule(graph, STREAMS[:1], [0] * 3))
    assert [(buffer.kind, buffer.shape, buffer.nbytes) for buffer in program.buffers] == [
        ("input", (6, 4), 96), ("join", (6, 4), 96)
    ]  # fmt: skip  # side by side
    assert program.outputs == {
        "a": View(1, 0, (2, 4), (4, 1)),
        "b": View(1, 8, (3, 4), (4, 1)),
        "c": View(1, 20, (1, 4), (4, 1)),
        "inner": View(1, 0, (5, 4), (4, 1)),
        "outer": View(1, 0, (6, 4), (4, 1)),
        "cut": View(1, 5, (3, 2), (4, 1)),
    }
    assert [step.args for step in steps(program) if isinstance(step, Launch)] == [
        (View(0, 0, (2, 4), (4, 1)),), (View(0, 8, (3, 4), (4, 1)),), (View(0, 20, (1, 4), (4, 1)),)
    ]  # fmt: skip  # side by side


def test_join_that_crosses_another_has_a_buffer_of_its_own() -> None:
    """b and c lie in the buffer of a, b, c: rows joined in another order, or twice, are copied."""
    graph, values = joined()
    crossing = graph.join(values["c"], values["b"])
    graph.output(crossing=crossing, outer=values["outer"])
    program = lower(random_dags.schedule(graph, STREAMS[:1], [0] * len(graph.nodes)))
    assert [step.name for step in steps(program)] == ["double", "double.1", "double.2", "copy", "copy.1"]
    assert program.outputs["crossing"].buffer != program.outputs["outer"].buffer


@pytest.mark.parametrize("part", ["view", "changed"])
def test_join_with_a_part_that_is_copied_is_not_nested_in_another(part: str) -> None:
    """a stands first in both joins; what follows it in the second is a copy, not what follows it in the first."""
    graph = nr.Graph("copied")
    x = graph.input("x", (6, 4), torch.float32)
    a, b = double(x[:2]), double(x[2:5])
    if part == "changed":
        clear(b)
        first, second = graph.join(a, b), graph.join(a, b)
    else:
        first, second = graph.join(a, b), graph.join(a, b[:2])
    graph.output(first=first, second=second)
    schedule = random_dags.schedule(graph, STREAMS[:1], [0] * len(graph.nodes))
    program = lower(schedule)
    assert program.outputs["first"].buffer != program.outputs["second"].buffer


def test_view_is_whole_only_as_the_buffer_lies() -> None:
    graph = nr.Graph("views")
    x = graph.input("x", (4, 6), torch.float32)
    graph.output(all=x, rows=x[1:], columns=x[:, :3], flat=x.reshape(24))
    program = lower(random_dags.schedule(graph, STREAMS[:1], []))
    assert {name: view.is_whole(program.buffers[0]) for name, view in program.outputs.items()} == {
        "all": True, "rows": False, "columns": False, "flat": False
    }  # fmt: skip  # side by side


# Transfers.

BYTES = nr.Demand(h2d_bytes=64, sms=(0, 0))
up = nr.op(demand=BYTES, name="up", to="device")(lambda x: x.clone())
down = nr.op(demand=nr.Demand(d2h_bytes=64, sms=(0, 0)), name="down", to="host")(lambda x: x.clone())


def test_transfers_become_copies() -> None:
    graph = nr.Graph("transfers")
    x = graph.input("x", (4, 4), torch.float32, device="host")
    y = up(x[1:])
    graph.output(y=double(y), z=down(y))
    program = lower(random_dags.schedule(graph, STREAMS, [2, 0, 3]))
    copy, _, back = steps(program)
    node, source, target = graph.nodes[0], View(0, 4, (3, 4), (4, 1)), View(1, 0, (3, 4), (4, 1))
    assert copy == Copy(0, "up", "h2d", source, target, node.reads, node.where)
    assert isinstance(back, Copy)
    assert [program.buffers[view.buffer].device for view in (copy.source, copy.target, back.target)] == [
        "host", "device", "host"
    ]  # fmt: skip  # side by side
    assert "  h2d      copy   up 12 elements" in str(program)


@pytest.mark.parametrize(
    "op",
    [
        nr.op(demand=BYTES, name="no_target")(lambda x: x.clone()),
        nr.op(demand=BYTES, name="converts", to="device")(lambda x: x.half()),
        nr.op(demand=BYTES, name="gathers", to="device")(lambda x: x[:1].clone()),
        nr.op(demand=BYTES, name="twice", to="device")(lambda x: (x.clone(), x.clone())),
        nr.op(demand=nr.Demand(hbm_bytes=64), name="kernel", to="device")(lambda x: x.clone()),
    ],
    ids=lambda op: op.name,
)
def test_what_is_no_plain_transfer_stays_a_launch(op: nr.Op) -> None:
    graph = nr.Graph("custom")
    x = graph.input("x", (4, 4), torch.float32, device="host")
    op(x)
    lane = 2 if graph.nodes[0].demand.engine else 0
    (step,) = steps(lower(random_dags.schedule(graph, STREAMS, [lane])))
    assert isinstance(step, Launch)
    assert step.stream == ("h2d" if lane else "g0")


def test_programs_of_equal_schedules_are_equal() -> None:
    schedule = two_streams()
    assert lower(schedule) == lower(schedule)
    assert lower(schedule) != lower(random_dags.schedule(schedule.graph, STREAMS, [0] * 4))
