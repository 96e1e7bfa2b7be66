from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

import dags
import nanort as nr
import random_dags
from nanort import partition
from nanort.errors import CapacityError
from nanort.programs.lower import lower
from nanort.programs.memory import ALIGNMENT, PLANNED, MemoryPlan, heaviest_antichain, plan_memory
from nanort.programs.program import Copy, Launch, Program, Record, View, Wait
from random_dags import WORK

H200 = nr.device("h200")
STREAMS = partition.streams(partition.split(H200, [16, 32]), partition.ENGINES)  # g0, g1, h2d, d2h
SIZES = (0, 1, 2, 255, 256, 257, 1000, 4096, 5000, 20_000, 65_536, 100_000)

double = nr.op(demand=WORK, name="double", axes="rows")(lambda x: 2 * x)
repeat = nr.op(demand=WORK, name="repeat", axes="whole")(lambda x: torch.cat([x, x]))
halve = nr.op(demand=WORK, name="halve", axes="rows")(lambda x: x[: len(x) // 2] / 2)


@nr.op(demand=WORK, writes=("x",))
def clear(x: torch.Tensor) -> None:
    x.zero_()


# Random programs, and a judge of plans that knows nothing of how they were made.


def random_program(seed: int) -> tuple[Program, tuple[int, ...]]:
    """A program of a random graph, cut and schedule, and buffers of it that get slots: its outputs, or none.

    Half of the schedules are planned, by several policies; the others are random placements. In half of the programs
    buffers have random sizes instead of those of their values.
    """
    rng = random.Random(seed)
    family = rng.choice((*random_dags.FAMILIES, None))
    graph = family(seed)[0] if family else dags.dag(seed)  # these cannot be cut, nor run on any stream
    if family and rng.random() < 0.6:
        schedule = random_dags.placed(random_dags.cut(graph, rng), rng)
    else:
        pieces, policy = rng.randint(1, 3) if family else 1, rng.choice(("serial", "list", "search"))
        schedule = nr.co_schedule(graph, H200, policy=policy, nano_batches=pieces, effort=8, guard=False, seed=seed)
    program = lower(schedule)
    if rng.random() < 0.5:
        program = resized(program, [rng.choice(SIZES) for _ in program.buffers])
    outputs = tuple({view.buffer for view in program.outputs.values()})
    return program, outputs if rng.random() < 0.5 else ()


def resized(program: Program, sizes: Sequence[int]) -> Program:
    """The program with buffers of so many bytes."""
    buffers = zip(program.buffers, sizes, strict=True)
    return replace(program, buffers=tuple(replace(b, shape=(size,), dtype=torch.uint8) for b, size in buffers))


def uses(program: Program) -> dict[int, set[int]]:
    """By buffer: the instructions that touch it, by their place; outputs are touched by the end of the run as well."""
    found: dict[int, set[int]] = {}
    for at, step in enumerate(program.instructions):
        if isinstance(step, (Launch, Copy)):
            views = (step.source, step.target) if isinstance(step, Copy) else (*step.args, *step.outs)
            for view in views:
                if isinstance(view, View):
                    found.setdefault(view.buffer, set()).add(at)
    for view in program.outputs.values():
        found.setdefault(view.buffer, set()).add(len(program.instructions))
    return found


def judge(program: Program) -> Callable[[int, int], bool]:
    """Says of two buffers whether every use of the first leads to each of the other in the graph of instructions."""
    successors: list[set[int]] = [set() for _ in program.instructions] + [set()]
    last: dict[str, int] = {}
    records: dict[int, int] = {}
    for at, step in enumerate(program.instructions):
        successors[at].add(len(program.instructions))
        if step.stream in last:
            successors[last[step.stream]].add(at)
        last[step.stream] = at
        if isinstance(step, Record):
            records[step.event] = at
        elif isinstance(step, Wait):
            successors[records[step.event]].add(at)

    @cache
    def reachable(start: int) -> set[int]:
        seen, todo = set[int](), [start]
        while todo:
            new = successors[todo.pop()] - seen
            seen |= new
            todo.extend(new)
        return seen

    touched = uses(program)
    return lambda a, b: all(touched[b] <= reachable(use) for use in touched[a])


def overlaps(program: Program, plan: MemoryPlan) -> list[tuple[str, str]]:
    """The buffers that share bytes though neither is over before the other begins."""
    before, found = judge(program), []
    for places in (plan.device, plan.host):
        there = [
            (place, place + buffer.nbytes, buffer)
            for place, buffer in zip(places, program.buffers, strict=True)
            if place is not None
        ]
        for (start, end, a), (other_start, other_end, b) in combinations(there, 2):
            share = max(start, other_start) < min(end, other_end)
            if share and not before(a.index, b.index) and not before(b.index, a.index):
                found.append((a.name, b.name))
    return found


def misplaced(program: Program, plan: MemoryPlan, slots: Sequence[int] = ()) -> list[str]:
    """The buffers that have no place and need one, have one and need none, or one that is not aligned or too high."""
    touched, found = uses(program), []
    for buffer in program.buffers:
        wanted = buffer.kind in PLANNED and buffer.index in touched and buffer.index not in slots
        for places, size, side in ((plan.device, plan.device_bytes, "device"), (plan.host, plan.host_bytes, "host")):
            place = places[buffer.index]
            if wanted and buffer.device == side:
                if place is None or place < 0 or place % ALIGNMENT or place + buffer.nbytes > size:
                    found.append(f"{buffer.name} at {place}")
            elif place is not None:
                found.append(f"{buffer.name} at {place} of the {side}")
    return found


def test_plans_of_random_programs_overlap_nowhere_and_are_near_their_bound() -> None:
    ratios = []
    for seed in range(300):
        program, slots = random_program(seed)
        plan = plan_memory(program, slots=slots)
        assert overlaps(program, plan) == [], seed
        assert misplaced(program, plan, slots) == [], seed
        assert plan.lower_bound <= plan.device_bytes <= plan.separate_bytes
        ratios.append(plan.device_bytes / max(1, plan.lower_bound))
    assert np.mean(ratios) < 1.02


def test_judge_sees_what_shares_bytes_and_what_lies_outside() -> None:
    program, plan = two_streams(waits=True)
    none: tuple[None, ...] = (None,) * len(program.buffers)
    assert overlaps(program, plan) == []
    assert overlaps(two_streams(waits=False)[0], plan) != []
    everything = tuple(0 if buffer.kind in PLANNED else None for buffer in program.buffers)
    assert ("a", "b") in overlaps(program, replace(plan, device=everything))
    assert len(misplaced(program, replace(plan, device=none))) == 4
    assert len(misplaced(program, replace(plan, device_bytes=0))) == 4
    assert len(misplaced(program, plan, slots=[place.buffer for place in program.outputs.values()])) == 1


# What may share bytes: values of 1 KiB unless said otherwise.


def planned(
    build: Callable[[nr.Graph, nr.Value], dict[str, nr.Value]], lanes: Sequence[int]
) -> tuple[Program, MemoryPlan, dict[str, int | None]]:
    """The program of a graph that reads ``x`` (256 floats) on so many streams, its plan, and places by name."""
    graph = nr.Graph("small")
    x = graph.input("x", (256,), torch.float32)
    graph.output(**build(graph, x))
    program = lower(random_dags.schedule(graph, STREAMS, lanes))
    plan = plan_memory(program)
    assert overlaps(program, plan) == []
    return program, plan, {buffer.name: plan.device[buffer.index] for buffer in program.buffers}


def chain(graph: nr.Graph, x: nr.Value, names: str = "abcd") -> dict[str, nr.Value]:
    for name in names:
        x = graph.call(double, x, name=name)
    return {"y": x}


def two_streams(*, waits: bool) -> tuple[Program, MemoryPlan]:
    """a and b on one stream, c and d on another, which waits in between or not; planned for the program that does."""

    def build(graph: nr.Graph, x: nr.Value) -> dict[str, nr.Value]:
        b = graph.call(double, graph.call(double, x, name="a"), name="b")
        c = graph.call(double, x, name="c", after=(b,))
        return {"y": graph.call(double, c, name="d")}

    program, plan, _ = planned(build, [0, 0, 1, 1])
    kept = tuple(step for step in program.instructions if waits or not isinstance(step, Wait))
    return replace(program, instructions=kept), plan


def test_chain_alternates_between_two_places() -> None:
    _, plan, at = planned(chain, [0] * 4)
    assert at["a"] == at["c"] != at["b"] == at["d"]
    assert at["x"] is None
    assert (plan.device_bytes, plan.lower_bound, plan.separate_bytes) == (2048, 2048, 4096)
    assert (plan.host, plan.host_bytes) == ((None,) * 5, 0)


def test_streams_share_nothing_unless_they_wait() -> None:
    program, plan = two_streams(waits=True)
    assert plan.device_bytes == 2048
    alone, _ = two_streams(waits=False)
    assert alone.activities == program.activities  # planned one after the other all the same
    assert plan_memory(alone).device_bytes == plan_memory(alone).lower_bound == 4096


def test_a_wait_on_what_was_not_recorded_orders_nothing() -> None:
    program, _ = two_streams(waits=True)
    late = sorted(program.instructions, key=lambda step: isinstance(step, Record))
    assert plan_memory(replace(program, instructions=tuple(late))).device_bytes == 4096


def test_a_reader_on_another_stream_keeps_a_buffer_until_it_is_waited_for() -> None:
    def build(graph: nr.Graph, x: nr.Value, *, waits: bool) -> dict[str, nr.Value]:
        a = graph.call(double, x, name="a")
        reader = graph.call(double, a, name="reader")  # on the other stream
        b = graph.call(double, x, name="b", after=(reader,) if waits else ())
        c = graph.call(double, b, name="c")
        return {"y": graph.call(double, c, name="d"), "z": reader}

    for waits in (True, False):
        _, plan, at = planned(lambda g, x, waits=waits: build(g, x, waits=waits), [0, 1, 0, 0, 0])
        others = {at["b"], at["c"], at["d"]}
        assert (at["a"] in others) is waits
        assert len(others) == 2
        assert plan.device_bytes == plan.lower_bound == (3072 if waits else 4096)


def test_a_join_lives_from_its_first_writer_to_its_last_reader() -> None:
    def build(graph: nr.Graph, x: nr.Value) -> dict[str, nr.Value]:
        left = graph.call(halve, graph.call(double, x, name="a"), name="left")
        right = graph.call(halve, graph.call(double, x, name="b"), name="right")
        last = graph.call(repeat, graph.join(left, right), name="last")  # 2 KiB from here on
        return chain(graph, last, "ef")

    program, plan, at = planned(build, [0, 0, 1, 1, 0, 0, 0])
    (join,) = (buffer for buffer in program.buffers if buffer.kind == "join")
    assert "left" not in at
    assert "right" not in at  # they are views of the join
    assert plan.device[join.index] not in {at["a"], at["b"], at["last"]}  # the other part may be written already
    assert plan.device_bytes == plan.lower_bound == 4096  # last and e: the join is over


def test_a_change_in_place_keeps_a_buffer_alive() -> None:
    def build(graph: nr.Graph, x: nr.Value) -> dict[str, nr.Value]:
        a = graph.call(double, x, name="a")
        b = graph.call(double, a, name="b")
        graph.call(clear, a, after=(b,))
        return chain(graph, b, "cde")

    _, _, at = planned(build, [0] * 6)
    assert at["a"] != at["b"]
    assert at["a"] in {at["c"], at["d"], at["e"]}


def test_outputs_live_to_the_end_on_bytes_that_were_used_before() -> None:
    def build(graph: nr.Graph, x: nr.Value) -> dict[str, nr.Value]:
        early = graph.call(double, x, name="early")
        return {"early": early, **chain(graph, x)}

    _, plan, at = planned(build, [0] * 5)
    assert at["early"] not in {at[name] for name in "abcd"}
    assert (at["a"], at["b"]) == (at["c"], at["d"])
    assert plan.device_bytes == plan.lower_bound == 3072


def test_slots_are_left_out() -> None:
    program, plan, _ = planned(chain, [0] * 4)
    slots = [view.buffer for view in program.outputs.values()]
    apart = plan_memory(program, slots=slots)
    assert [apart.device[slot] for slot in slots] == [None]
    assert misplaced(program, apart, slots) == []
    assert apart.separate_bytes == plan.separate_bytes - 1024


def test_what_nobody_reads_has_bytes_while_it_is_written() -> None:
    def build(graph: nr.Graph, x: nr.Value) -> dict[str, nr.Value]:
        graph.call(double, x, name="unread")
        return chain(graph, x, "ab")

    _, plan, at = planned(build, [0] * 3)
    assert at["unread"] is not None
    assert plan.device_bytes == 2048
    assert planned(build, [1, 0, 0])[1].device_bytes == 3072  # nothing says when it is over


def test_empty_buffers_take_no_bytes_and_untouched_ones_have_no_place() -> None:
    graph = nr.Graph("empty")
    x = graph.input("x", (64,), torch.float32)
    unused, nothing = (graph.empty((0, 4), torch.float32) for _ in range(2))
    graph.output(y=graph.call(double, x), z=nothing)
    program = lower(random_dags.schedule(graph, STREAMS, [0]))
    plan = plan_memory(program)
    assert plan.device[unused.index] is None
    assert plan.device[nothing.index] == 0
    assert plan.device_bytes == 256
    assert overlaps(program, plan) == misplaced(program, plan) == []


def test_a_program_that_makes_nothing_needs_nothing() -> None:
    graph = nr.Graph("nothing")
    graph.output(x=graph.input("x", (4,), torch.float32))
    plan = plan_memory(lower(random_dags.schedule(graph, STREAMS, [])), 0)
    assert (plan.device, plan.device_bytes, plan.lower_bound, plan.host_bytes) == ((None,), 0, 0, 0)
    assert str(plan).startswith("device memory: 0 bytes for 0 in use at once, 0 % less")


def test_host_and_device_are_two_arenas() -> None:
    def build(graph: nr.Graph, x: nr.Value) -> dict[str, nr.Value]:
        below = nr.ops.to_host(graph.call(double, x, name="a"))
        again = nr.ops.to_host(nr.ops.to_device(below))
        return {"y": nr.ops.to_device(again)}

    program, plan, _ = planned(build, [0, 3, 2, 3, 2])
    assert [type(step) for step in program.instructions if isinstance(step, (Launch, Copy))] == [Launch, *[Copy] * 4]
    assert plan.host_bytes == plan.device_bytes == 1024  # each is over before the next is written
    assert [place for place in plan.host if place is not None] == [0, 0]
    assert [place for place in plan.device if place is not None] == [0, 0, 0]
    assert misplaced(program, plan) == []


@pytest.mark.parametrize(("nbytes", "planned_bytes"), [(1, 256), (256, 256), (257, 512)])
def test_buffers_are_aligned(nbytes: int, planned_bytes: int) -> None:
    program, _, _ = planned(chain, [0] * 4)
    plan = plan_memory(resized(program, [nbytes] * len(program.buffers)))
    assert plan.device_bytes == 2 * planned_bytes
    assert {place for place in plan.device if place is not None} == {0, planned_bytes}


# Budgets and words.


def test_budget_is_exact_to_the_byte() -> None:
    for seed in range(20):
        program, slots = random_program(seed)
        needed = plan_memory(program, slots=slots).device_bytes
        assert plan_memory(program, needed, slots=slots) == plan_memory(program, slots=slots)
        with pytest.raises(CapacityError, match=f"the budget is {needed - 1:,}: {needed:,} would do"):
            plan_memory(program, needed - 1, slots=slots)


def test_plan_says_what_it_saves() -> None:
    _, plan, _ = planned(chain, [0] * 4)
    assert str(plan).splitlines() == [
        "device memory: 2,048 bytes for 2,048 in use at once, 50 % less than without reuse",
        "pinned host memory: 0 bytes",
    ]
    assert repr(plan) == "MemoryPlan(device_bytes=2048, host_bytes=0)"


# The bound.


@pytest.mark.parametrize("seed", range(40))
def test_bound_is_the_heaviest_antichain(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.randint(0, 9)
    order = np.zeros((count, count), dtype=np.bool_)
    for a, b in combinations(range(count), 2):
        order[a, b] = rng.random() < rng.choice((0.1, 0.3, 0.6))
    for k in range(count):  # closed under transitivity
        order |= np.outer(order[:, k], order[k])
    weights = np.array([rng.randint(0, 9) for _ in range(count)], dtype=np.int64)
    antichains = (
        chosen
        for size in range(count + 1)
        for chosen in combinations(range(count), size)
        if not any(order[a, b] for a, b in combinations(chosen, 2))
    )
    assert heaviest_antichain(order, weights) == max(sum(weights[list(chosen)]) for chosen in antichains)


def test_order_and_rivals_are_what_a_search_finds() -> None:
    for seed in range(60):
        program, slots = random_program(seed)
        before, lives = judge(program), plan_memory(program, slots=slots).lives
        expected = [[before(a, b) for b in lives.buffers] for a in lives.buffers]
        order = lives.order()
        assert order.tolist() == expected
        assert [rivals.tolist() for rivals in lives.rivals()] == [
            np.flatnonzero(~(order[k] | order[:, k])).tolist() for k in range(len(order))
        ]


# Values: programs run in one arena, streams interleaved at random.


def interleaved(program: Program, rng: random.Random) -> Iterator[Launch | Copy]:
    """Launches and copies in a random order that streams and events allow."""
    queues = [[step for step in program.instructions if step.stream == s.name] for s in program.streams]
    happened: set[int] = set()
    while queues := [queue for queue in queues if queue]:
        queue = rng.choice([q for q in queues if not isinstance(q[0], Wait) or q[0].event in happened])
        step = queue.pop(0)
        if isinstance(step, Record):
            happened.add(step.event)
        elif not isinstance(step, Wait):
            yield step


@pytest.mark.parametrize("seed", range(40))
def test_programs_that_run_in_one_arena_give_the_bits_of_eager(seed: int) -> None:
    rng = random.Random(seed)
    graph, tensors = rng.choice((random_dags.ragged, random_dags.synthetic))(seed)
    schedule = random_dags.placed(random_dags.cut(graph, rng), rng)
    tensors = random_dags.packed(schedule.graph, tensors)
    expected = schedule.graph.eager(**{name: tensor.clone() for name, tensor in tensors.items()})
    program = lower(schedule)
    plan = plan_memory(program)
    arenas = [torch.full((size,), 255, dtype=torch.uint8) for size in (plan.device_bytes, plan.host_bytes)]  # NaNs

    def memory(index: int) -> torch.Tensor:
        buffer = program.buffers[index]
        for arena, places in zip(arenas, (plan.device, plan.host), strict=True):
            if (place := places[index]) is not None:
                return arena[place : place + buffer.nbytes].view(buffer.dtype).view(buffer.shape)
        return tensors[buffer.name]

    def show(argument: Any) -> Any:
        if not isinstance(argument, View):
            return argument
        whole = memory(argument.buffer)
        return whole.as_strided(argument.shape, argument.strides, argument.offset + whole.storage_offset())

    for step in interleaved(program, rng):
        if isinstance(step, Copy):
            show(step.target).copy_(show(step.source))
            continue
        results = step.op.reference(*map(show, step.args), **step.static)
        for view, result in zip(step.outs, results if isinstance(results, tuple) else (results,), strict=False):
            show(view).copy_(result)
    for name, view in program.outputs.items():
        assert torch.equal(show(view), expected[name]), name
