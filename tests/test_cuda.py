from __future__ import annotations

import importlib
import math
import random
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nanort as nr
import random_dags
from fake_driver import FakeDriver
from fake_runs import Tensors, compare_with_eager, executor, gpu, inputs
from nanort import driver, graphs, ops, partition
from nanort.driver import Driver
from nanort.errors import BackendError, CapacityError, InputDeviceError
from nanort.programs.program import Copy, Launch, Program, Record, Wait
from nanort.runtime import kernels
from nanort.runtime.executor import resolve
from nanort.scheduling.schedule import Schedule
from random_dags import WORK

H200 = nr.device("h200")
STREAMS = partition.streams(partition.split(H200, [64, 32]), partition.ENGINES)  # g0, g1, h2d, d2h
double = nr.op(demand=WORK, name="double", axes="rows")(lambda x: 2 * x)
Call = tuple[object, ...]
EITHER = pytest.mark.parametrize("capture", [False, True], ids=["eager", "captured"])


# Values.


@EITHER
@pytest.mark.parametrize("make", random_dags.FAMILIES)
@pytest.mark.parametrize("seed", range(8))
def test_random_placement_is_bit_for_bit_eager(make: random_dags.Family, seed: int, capture: bool) -> None:
    rng = random.Random(seed)
    graph, tensors = make(seed)
    schedule = random_dags.placed(random_dags.cut(graph, rng), rng)
    fake = FakeDriver(seed=seed)
    compare_with_eager(schedule, random_dags.packed(schedule.graph, tensors), fake, capture=capture, trace=seed % 2 > 0)


@EITHER
@pytest.mark.parametrize("seed", range(3))
def test_without_delays_too(seed: int, capture: bool) -> None:
    graph, tensors = random_dags.synthetic(seed)
    compare_with_eager(random_dags.placed(graph, random.Random(seed)), tensors, FakeDriver(), capture=capture)


def decoder_case(swap: int) -> tuple[nr.Graph, Callable[[nr.Layout], Tensors]]:
    """A step of a tiny decoder that swaps pages, and inputs for its rows as a layout packs them."""
    config, sizes = graphs.CONFIGS["tiny"], {"decode": 5, "context": 30, "prefill": 9}
    graph = graphs.decoder_step(config, **sizes, swap=swap, dtype=torch.float32)
    noise = torch.Generator().manual_seed(1)

    def given(layout: nr.Layout) -> Tensors:
        made = graphs.step_inputs(config, layout, **sizes)
        made |= graphs.random_weights(config, torch.float32)
        for root in graph.roots:
            if root.name.startswith("swap"):
                made[root.name] = torch.arange(pages - root.shape[0], pages)
            elif root.name not in made and root.kind in ("input", "state"):
                made[root.name] = torch.randn(root.shape, generator=noise)
        return made

    pages = next(root.shape[0] for root in graph.roots if root.kind == "state")
    return graph, given


@EITHER
@pytest.mark.parametrize("swap", [0, 1])
def test_step_of_a_decoder_is_bit_for_bit_eager(swap: int, capture: bool) -> None:
    graph, given = decoder_case(swap)
    schedule = random_dags.placed(nr.nano_batch(graph, 2), random.Random(swap))
    assert schedule.graph.layout is not None
    compare_with_eager(schedule, given(schedule.graph.layout), FakeDriver(seed=swap), runs=4, capture=capture)


def test_planned_schedules_are_bit_for_bit_eager() -> None:
    for policy in ("serial", "list", "auto"):
        graph, tensors = random_dags.ragged(5)
        schedule = nr.co_schedule(graph, H200, policy=policy, effort=64)
        compare_with_eager(schedule, random_dags.packed(schedule.graph, tensors), FakeDriver(seed=2))


# What the driver is asked to do. Handles are named as they come, so that two lists of calls can be compared.


def named(calls: list[Call]) -> list[Call]:
    """Calls with the same names for streams, events and graphs wherever they play the same part."""
    names: dict[tuple[str, object], str] = {("stream", 0): "caller"}

    def name(kind: str, handle: object) -> str:
        return names.setdefault((kind, handle), f"{kind} {len(names)}")

    kinds = {
        "record": ("event", "stream"), "wait": ("stream", "event"), "launch": ("stream",), "copy": ("stream",),
        "begin_capture": ("stream",), "end_capture": ("stream",), "launch_graph": ("graph", "stream"),
        "synchronize": ("event",),
    }  # fmt: skip  # a row is a method or two
    return [
        (method, *map(name, kinds[str(method)], handles), *handles[len(kinds[str(method)]) :])
        for method, *handles in calls
    ]


def prologue(program: Program, run: int, trace: bool) -> list[Call]:
    """Staging is free, the main stream comes after the caller's, and takes the inputs of the device."""
    main = program.streams[0].name
    inputs = [buffer for buffer in program.buffers if buffer.kind == "input"]
    return [
        *[("synchronize", f"joined {run % 2}") for _ in inputs[:1] if any(b.device == "host" for b in inputs)],
        ("record", "arrived", 0, False),
        ("wait", main, "arrived"),
        *(("copy", main, buffer.nbytes, "d2d") for buffer in inputs if buffer.device != "host"),
        *([("record", "began", main, False)] if trace else []),
    ]


def body(program: Program, trace: bool, captured: bool = False) -> list[Call]:
    """The fork, the program's instructions, and the join."""
    main, *others = [s.name for s in program.streams if s.name in {i.stream for i in program.instructions}]
    calls: list[Call] = [("record", "began", main, True)] if captured and trace else []
    calls += [("record", "fork", main, False)] if others else []
    calls += [("wait", other, "fork") for other in others]
    for step in program.instructions:
        if isinstance(step, Record):
            calls.append(("record", step.event, step.stream, False))
        elif isinstance(step, Wait):
            calls.append(("wait", step.stream, step.event))
        else:
            marks: list[Call] = [("record", f"{edge} {step.name}", step.stream, captured) for edge in ("start", "stop")]
            calls += [*marks[:trace], work(program, step), *marks[1 : 1 + trace]]
    for other in others:
        calls += [("record", f"end of {other}", other, False), ("wait", main, f"end of {other}")]
    return calls


def work(program: Program, step: Launch | Copy) -> Call:
    if isinstance(step, Launch):
        return ("launch", step.stream)
    source, target = (program.buffers[view.buffer] for view in (step.source, step.target))
    nbytes = math.prod(step.source.shape) * source.dtype.itemsize
    directions = {("host", "device"): "h2d", ("device", "host"): "d2h", ("host", "host"): "h2h"}
    return ("copy", step.stream, nbytes, directions.get((source.device, target.device), "d2d"))


def epilogue(program: Program, run: int) -> list[Call]:
    """The caller's stream comes after the main one; the host waits for what it is to read."""
    joined = f"joined {run % 2}"
    to_host = any(program.buffers[view.buffer].device == "host" for view in program.outputs.values())
    calls: list[Call] = [("record", joined, program.streams[0].name, False), ("wait", 0, joined)]
    return calls + ([("synchronize", joined)] if to_host else [])


@cache
def example(name: str) -> Schedule:
    """What an example or the demo plans, small enough to run."""
    if name == "hello_overlap":
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(Path(__file__).parents[1] / "examples")
            graph = importlib.import_module(name).hello(64, 256, 4, 64, 1 << 12)
    else:
        graph = decoder_case(swap=name == "kv_offload")[0]
    return nr.co_schedule(graph, H200, guard=False, effort=64)


EXAMPLES = pytest.mark.parametrize("name", ["hello_overlap", "kv_offload", "demo"])
TRACED = pytest.mark.parametrize("trace", [False, True], ids=["untraced", "traced"])


def some_tensors(graph: nr.Graph) -> Tensors:
    """Zeros, which every operator takes."""
    kinds = ("input", "constant", "state")
    return {root.name: torch.zeros(root.shape, dtype=root.dtype) for root in graph.roots if root.kind in kinds}


@TRACED
@EXAMPLES
def test_driver_is_asked_for_exactly_the_program(name: str, trace: bool) -> None:
    schedule = example(name)
    program, tensors = nr.lower(schedule), some_tensors(schedule.graph)
    expected: list[Call] = []
    with gpu(FakeDriver()) as fake, executor(schedule, tensors, trace=trace) as run:
        before = len(fake.calls)
        for number in range(3):
            run(**inputs(schedule.graph, tensors, number))
            expected += prologue(program, number, trace) + body(program, trace) + epilogue(program, number)
        assert named(fake.calls[before:]) == named(expected)
    assert len(program.streams) > 1
    assert bool(program.events) == (name != "hello_overlap")  # whose operators have nothing to do with each other


@TRACED
@EXAMPLES
def test_graph_holds_exactly_the_program(name: str, trace: bool) -> None:
    """The first run is queued call by call, the next two capture a graph for each slot, all others replay them."""
    schedule = example(name)
    program, tensors = nr.lower(schedule), some_tensors(schedule.graph)
    main = program.streams[0].name
    expected: list[Call] = []
    with gpu(FakeDriver()) as fake, executor(schedule, tensors, trace=trace, capture=True) as run:
        before = len(fake.calls)
        for number in range(5):
            run(**inputs(schedule.graph, tensors, number))
            expected += prologue(program, number, trace)
            captured = [("begin_capture", main), *body(program, trace, captured=True), ("end_capture", main)]
            expected += captured if number in (1, 2) else []
            expected += [("launch_graph", f"graph {number % 2}", main)] if number else body(program, trace)
            expected += epilogue(program, number)
        assert named(fake.calls[before:]) == named(expected)


@pytest.mark.parametrize("seed", range(10))
def test_driver_is_asked_for_exactly_a_random_program(seed: int) -> None:
    rng = random.Random(seed)
    graph, tensors = random_dags.ragged(seed)
    schedule = random_dags.placed(random_dags.cut(graph, rng), rng)
    program, packed = nr.lower(schedule), random_dags.packed(schedule.graph, tensors)
    with gpu(FakeDriver(seed=seed)) as fake, executor(schedule, packed, trace=False) as run:
        before = len(fake.calls)
        run(**inputs(schedule.graph, packed, 0))
        expected = prologue(program, 0, trace=False) + body(program, trace=False) + epilogue(program, 0)
        assert named(fake.calls[before:]) == named(expected)


def test_streams_keep_to_their_groups() -> None:
    graph = nr.Graph("groups")
    x = graph.input("x", (2,), torch.float32)
    graph.output(a=double(x), b=double(x))
    with gpu(FakeDriver()) as fake, executor(random_dags.schedule(graph, STREAMS, [0, 1]), {}) as run:
        run(x=torch.ones(2))
        first, second = (set(fake.sms(int(str(call[1])))) for call in fake.calls if call[0] == "launch")
    assert (len(first), len(second), first & second) == (64, 32, set())


# The caller's tensors.


def sums() -> tuple[Schedule, Tensors]:
    """total += weight * x on one stream, and twice it on another; and tensors."""
    graph = nr.Graph("sums")
    x = graph.input("x", (2, 3), torch.float32)
    total = graph.state("total", (2, 3), torch.float32)
    accumulate(total, x, graph.constant("weight", (2, 3), torch.float32))
    graph.output(twice=double(total))
    given = {"x": torch.ones(2, 3), "total": torch.zeros(2, 3), "weight": torch.full((2, 3), 2.0)}
    return random_dags.schedule(graph, STREAMS, [0, 1]), given


@nr.op(demand=WORK, writes=("total",))
def accumulate(total: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> None:
    total += weight * x


@EITHER
def test_outputs_stay_while_the_next_run_is_under_way(capture: bool) -> None:
    schedule, tensors = sums()
    with gpu(FakeDriver(seed=3)) as fake, executor(schedule, tensors, capture=capture) as run:
        found = [run(x=torch.full((2, 3), float(k))) for k in range(4)]
        fake.settle(0)
    assert [out["twice"].unique().tolist() for out in found[2:]] == [[4.0 * (0 + 1 + 2)], [4.0 * (0 + 1 + 2 + 3)]]
    first, second, third, fourth = (out["twice"].data_ptr() for out in found)
    assert (first, second) == (third, fourth)
    assert first != second
    assert tensors["total"].unique().tolist() == [12.0]


@EITHER
@pytest.mark.parametrize("seed", range(10))
def test_torch_code_of_the_caller_needs_no_synchronisation(seed: int, capture: bool) -> None:
    """It fills the inputs and the states before, changes them after, and reads the outputs."""
    schedule, tensors = sums()
    x, total, seen = tensors["x"], tensors["total"], [torch.empty(2, 3) for _ in range(4)]
    with gpu(FakeDriver(seed=seed)) as fake, executor(schedule, tensors, capture=capture) as run:
        for number, copy in enumerate(seen):
            fake.launch(0, lambda number=number: x.fill_(number))
            fake.launch(0, lambda: total.fill_(1))
            out = run(x=x)["twice"]
            fake.launch(0, lambda: x.fill_(-100))
            fake.launch(0, lambda: total.fill_(-100))
            fake.launch(0, lambda copy=copy, out=out: copy.copy_(out))
            fake.launch(0, lambda out=out: out.fill_(-100))
        fake.settle(0)
    assert [copy.unique().tolist() for copy in seen] == [[2.0 * (1 + 2 * number)] for number in range(4)]


def uploads() -> Schedule:
    """Twice what is on the host, on the device."""
    graph = nr.Graph("uploads")
    there = ops.to_device(graph.input("x", (2, 3), torch.float32, device="host"))
    graph.output(y=double(there))
    return random_dags.schedule(graph, STREAMS, [2, 0])


@EITHER
@pytest.mark.parametrize("seed", range(10))
def test_inputs_of_the_host_may_be_changed_at_once(seed: int, capture: bool) -> None:
    x, seen = torch.empty(2, 3), [torch.empty(2, 3) for _ in range(5)]
    with gpu(FakeDriver(seed=seed)) as fake, executor(uploads(), {}, capture=capture) as run:
        for number, copy in enumerate(seen):
            out = run(x=x.fill_(number))["y"]
            fake.launch(0, lambda copy=copy, out=out: copy.copy_(out))
        x.fill_(-100)
        fake.settle(0)
    assert [copy.unique().tolist() for copy in seen] == [[2.0 * number] for number in range(5)]


@EITHER
def test_inputs_of_the_host_may_be_written_where_the_run_reads_them(capture: bool) -> None:
    graph = nr.Graph("uploads")
    x = graph.input("x", (2, 3), torch.float32, device="host")
    graph.output(y=double(ops.to_device(x)))
    with (
        gpu(FakeDriver(seed=5)) as fake,
        executor(random_dags.schedule(graph, STREAMS, [2, 0]), {}, capture=capture) as run,
    ):
        seen = []
        for number in range(5):
            there = run.host_inputs
            there["x"].fill_(number)
            seen.append(run(**there)["y"])
            fake.settle(0)
            assert seen[-1].unique().tolist() == [2.0 * number]


@EITHER
def test_outputs_on_the_host_are_there_when_the_run_returns(capture: bool) -> None:
    graph = nr.Graph("downloads")
    x = graph.input("x", (2, 3), torch.float32)
    graph.output(y=ops.to_host(double(x)))
    with (
        gpu(FakeDriver(seed=5)),
        executor(random_dags.schedule(graph, STREAMS, [0, 3]), {}, capture=capture) as run,
    ):
        for number in range(4):
            assert run(x=torch.full((2, 3), float(number)))["y"].unique().tolist() == [2.0 * number]


@EITHER
@pytest.mark.parametrize("seed", range(10))
def test_without_waiting_they_are_there_when_the_stream_has_come_past_the_run(seed: int, capture: bool) -> None:
    graph, late = nr.Graph("downloads"), 0
    x = graph.input("x", (2, 3), torch.float32)
    graph.output(y=ops.to_host(double(x)))
    schedule = random_dags.schedule(graph, STREAMS, [0, 3])
    with gpu(FakeDriver(seed=seed)) as fake, executor(schedule, {}, capture=capture, wait=False) as run:
        event = fake.create_event()
        for number in range(1, 6):
            out = run(x=torch.full((2, 3), float(number)))["y"]
            late += out.unique().tolist() != [2.0 * number]
            fake.record(event, 0)
            fake.synchronize(event)
            assert out.unique().tolist() == [2.0 * number]
        fake.destroy_event(event)
    assert late, "the call did not wait"


def test_any_layout_of_inputs_and_any_parameter_will_do() -> None:
    graph = nr.Graph("module")
    x, weight = graph.input("x", (4, 3), torch.float32), graph.constant("weight", (3, 3), torch.float32)
    graph.output(y=graph.call(torch.matmul, x, weight, demand=WORK), row=x[1:2], weight=weight)
    parameter, given = torch.nn.Linear(3, 3).weight, torch.randn(4, 6, requires_grad=True)[:, ::2]
    schedule = random_dags.schedule(graph, STREAMS, [0])
    with gpu(FakeDriver(seed=1)) as fake, executor(schedule, {"weight": parameter}) as run:
        out = run(x=given)
        fake.settle(0)
    assert torch.equal(out["y"], graph.eager(x=given, weight=parameter)["y"])
    assert torch.equal(out["row"], given[1:2])
    assert torch.equal(out["weight"], parameter)
    assert not any(tensor.requires_grad for tensor in out.values())


def test_graph_without_nodes_gives_its_inputs_back_twice() -> None:
    graph = nr.Graph("empty")
    x = graph.input("x", (4, 3), torch.float32)
    host = graph.input("host", (2,), torch.int64, device="host")
    graph.output(x=x, rows=x[1:3], host=host, none=graph.empty((0, 3), torch.int64))
    with gpu(FakeDriver(seed=1)) as fake, executor(random_dags.schedule(graph, (), []), {}, capture=True) as run:
        for _ in range(2):
            given, here = [torch.randn(4, 3), torch.randn(4, 3)], [torch.tensor([1, 2]), torch.tensor([3, 4])]
            found = [run(x=a, host=b) for a, b in zip(given, here, strict=True)]
            fake.settle(0)
            assert all(
                torch.equal(out["x"], a) and torch.equal(out["rows"], a[1:3])
                for out, a in zip(found, given, strict=True)
            )
            assert all(torch.equal(out["host"], b) for out, b in zip(found, here, strict=True))
        assert (found[0]["none"].shape, found[0]["none"].dtype) == ((0, 3), torch.int64)
        assert len(run.timeline) == 0


def test_values_of_the_host_that_are_not_pinned_are_told_of_once() -> None:
    graph = nr.Graph("tier")
    tier = graph.state("tier", (1 << 20,), torch.uint8, device="host")
    graph.output(y=ops.to_device(tier))
    schedule = random_dags.schedule(graph, STREAMS, [2])
    told = r"tier on the host is not pinned.* 1,048,576 bytes keeps the host waiting, 2.1e-05 s or more: .*pin_memory"
    with gpu(FakeDriver()):
        with pytest.warns(RuntimeWarning, match=told):
            run = executor(schedule, {"tier": torch.arange(1 << 20).to(torch.uint8)})
        with run:
            assert torch.equal(run()["y"], torch.arange(1 << 20).to(torch.uint8))


# Memory.


def chain(length: int = 20) -> tuple[Schedule, Tensors]:
    """A chain of large values, of which two are needed at a time."""
    graph = nr.Graph("chain")
    y = graph.input("x", (1024, 256), torch.float32)
    weight = graph.constant("weight", (256,), torch.float32)
    for _ in range(length):
        y = graph.call(torch.add, y, weight, demand=WORK)
    graph.output(y=y)
    given = {"x": torch.ones(1024, 256), "weight": torch.ones(256)}
    return random_dags.schedule(graph, STREAMS, [k % 2 for k in range(length)]), given


def test_memory_is_that_of_the_plan_and_given_back() -> None:
    schedule, tensors = chain()
    with gpu(FakeDriver()) as fake:
        before = fake.memory
        with executor(schedule, tensors) as run:
            out = run(x=tensors["x"])["y"]
            assert run.memory_bytes == before - fake.memory
            assert run.memory_bytes == 5 << 20  # the input, two between nodes, the output in two slots: of 1 MiB each
        assert run.memory_bytes == 0
        assert out.unique().tolist() == [21.0]
        del out, run
        assert fake.memory == before


@pytest.mark.parametrize("budget", [0, -1, float("nan")])
def test_budget_that_is_none_is_refused(budget: int) -> None:
    schedule, tensors = chain()
    with gpu(FakeDriver()), pytest.raises(CapacityError, match="more than none"):
        executor(schedule, tensors, budget=budget)


def test_budget_says_what_would_do() -> None:
    schedule, tensors = chain()
    with gpu(FakeDriver()):
        with pytest.raises(CapacityError, match=r"chain takes .* budget=1,000,000: give at least \d+") as caught:
            executor(schedule, tensors, budget=1_000_000)
        least = int(str(caught.value).partition("at least ")[2].partition(",")[0])
        with pytest.raises(CapacityError):
            executor(schedule, tensors, budget=least - 1)
        with executor(schedule, tensors, budget=least) as run:
            assert run.memory_bytes == least


# Kernels and copies.


def with_kernels(schedule: Schedule, kernel: str) -> Schedule:
    assigned = tuple(replace(a, kernel=kernel) if a.sms else a for a in schedule.assignments)
    return replace(schedule, assignments=assigned)


@EITHER
def test_kernels_write_where_their_results_belong(monkeypatch: pytest.MonkeyPatch, capture: bool) -> None:
    """One result, several, or none; SMs, scratch and keyword arguments are handed over."""
    told: list[tuple[object, ...]] = []
    module = types.ModuleType("own_kernels")

    def one(x: torch.Tensor, *, out: torch.Tensor, scratch: torch.Tensor, sms: int, times: int) -> None:
        told.append((sms, scratch.shape, scratch.dtype))
        half = scratch[: x.nbytes].view(x.dtype).view(x.shape)
        half.copy_(x)
        out.copy_(times * half)

    def two(x: torch.Tensor, *, out: tuple[torch.Tensor, ...], scratch: torch.Tensor, sms: int) -> None:
        out[0].copy_(x + 1)
        out[1].copy_(x.sum(0))

    def none(total: torch.Tensor, x: torch.Tensor, *, out: None, scratch: torch.Tensor, sms: int) -> None:
        total += x

    module.__dict__.update(one=one, two=two, none=none)
    monkeypatch.setitem(sys.modules, "own_kernels", module)

    def op(function: Callable[..., Any], kernel: str, **more: Any) -> nr.Op:
        return nr.op(demand=WORK, name=kernel, kernels={"own": f"own_kernels:{kernel}"}, **more)(function)

    graph = nr.Graph("kernels")
    x, total = graph.input("x", (2, 3), torch.float32), graph.state("total", (3,), torch.float32)
    scaled = op(scale, "one", scratch=lambda x, out, times: 10 * out.nbytes)(x, times=3)
    more, summed = op(lambda x: (x + 1, x.sum(0)), "two", scratch=100)(scaled)
    op(add_to, "none", writes=("total",))(total, summed)
    graph.output(more=more, total=double(total))
    schedule = with_kernels(random_dags.schedule(graph, STREAMS, [0, 1, 1, 0]), "own")
    schedule = replace(
        schedule, assignments=(*schedule.assignments[:3], replace(schedule.assignments[3], kernel="reference"))
    )
    given = torch.arange(6.0).view(2, 3)
    with gpu(FakeDriver(seed=4)) as fake, executor(schedule, {"total": torch.zeros(3)}, capture=capture) as run:
        for number in range(1, 5):
            out = run(x=given)
            fake.settle(0)
            assert torch.equal(out["more"], 3 * given + 1)
            assert torch.equal(out["total"], 2 * number * 3 * given.sum(0))
    assert set(told) == {(64, (240,), torch.uint8)}


class Own:
    """A kernel of contiguous tensors which makes its call once, and counts how often it does, and is run."""

    prepared_calls = 0
    runs = 0

    def refuses(self, x: torch.Tensor, *, times: int) -> str:
        assert x.is_meta
        return "" if x.is_contiguous() else f"takes contiguous tensors, not strides {x.stride()}"

    def scratch_bytes(self, x: torch.Tensor, *, sms: int, times: int) -> int:
        return sms + times

    def prepared(
        self, x: torch.Tensor, *, out: torch.Tensor, scratch: torch.Tensor, sms: int, times: int
    ) -> Callable[[], None]:
        self.prepared_calls += 1
        assert scratch.shape == (sms + times,)

        def queue() -> None:
            self.runs += 1
            torch.mul(x, times, out=out)

        return queue


def with_own_kernel(monkeypatch: pytest.MonkeyPatch, *, part: bool) -> tuple[Own, Schedule]:
    module, own = types.ModuleType("own_kernels"), Own()
    module.__dict__["own"] = own
    monkeypatch.setitem(sys.modules, "own_kernels", module)
    scaled = nr.op(demand=WORK, axes="whole", kernels={"own": "own_kernels:own"})(scale)
    graph = nr.Graph("own")
    x = graph.input("x", (2, 3), torch.float32)
    graph.output(y=scaled(x[:, 1:] if part else x, times=3))
    return own, with_kernels(random_dags.schedule(graph, STREAMS, [0] * len(graph.nodes)), "own")


@EITHER
def test_kernel_that_is_a_plan_makes_its_call_once(monkeypatch: pytest.MonkeyPatch, capture: bool) -> None:
    own, schedule = with_own_kernel(monkeypatch, part=False)
    given = torch.arange(6.0).view(2, 3)
    with gpu(FakeDriver(seed=4)) as fake, executor(schedule, {}, capture=capture, strict=True) as run:
        for _ in range(4):
            out = run(x=given)
            fake.settle(0)
            assert torch.equal(out["y"], 3 * given)
    assert (own.prepared_calls, own.runs) == (2, 4), "a call for each slot of the outputs"


def test_kernel_that_refuses_leaves_the_reference_to_run_and_the_log_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own, schedule = with_own_kernel(monkeypatch, part=True)
    given = torch.arange(6.0).view(2, 3)
    with gpu(FakeDriver()) as fake, executor(schedule, {}) as run:
        out = run(x=given)
        fake.settle(0)
        assert torch.equal(out["y"], 3 * given[:, 1:])
    assert own.prepared_calls == 0
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("nanort", "WARNING")
    assert record.getMessage() == (
        "program own: the kernel 'own' of scale takes contiguous tensors, not strides (3, 1): node scale and its like "
        "run the reference"
    )


def test_strict_makes_a_refusal_an_error_that_names_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    _, schedule = with_own_kernel(monkeypatch, part=True)
    wanted = r"node scale \(.*test_cuda\.py:\d+\): the kernel 'own' of scale takes contiguous tensors.*strict=False"
    with gpu(FakeDriver()), pytest.raises(BackendError, match=wanted) as error:
        executor(schedule, {}, strict=True)
    assert error.value.node == "scale"


def test_kernels_leave_values_of_the_host_to_references(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = types.ModuleType("own_kernels")
    module.__dict__["own"] = None  # never called
    monkeypatch.setitem(sys.modules, "own_kernels", module)
    graph = nr.Graph("host")
    op = nr.op(demand=WORK, name="op", axes="whole", kernels={"own": "own_kernels:own"})(lambda x: x + 1)
    graph.output(y=op(graph.input("x", (2,), torch.float32, device="host")))
    schedule = with_kernels(random_dags.schedule(graph, STREAMS, [0]), "own")
    with gpu(FakeDriver()) as fake, executor(schedule, {}) as run:
        out = run(x=torch.zeros(2))
        fake.settle(0)
        assert torch.equal(out["y"], torch.ones(2))
    assert "takes no values of the host" in caplog.text


def test_without_triton_references_run(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    graph = nr.Graph("bare")
    op = nr.op(demand=WORK, name="op", kernels={"triton": "a_kernel_of_triton:f"})(lambda x: x + 1)
    graph.output(y=op(graph.input("x", (2,), torch.float32)))
    schedule = with_kernels(random_dags.schedule(graph, STREAMS, [0]), "triton")

    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'triton'", name="triton")

    monkeypatch.setattr(kernels, "import_module", missing)
    with gpu(FakeDriver()) as fake, executor(schedule, {}) as run:
        out = run(x=torch.zeros(2))
        fake.settle(0)
        assert torch.equal(out["y"], torch.ones(2))
    assert "needs triton, which is not installed: pip install 'nanort[cuda]'" in caplog.text
    with gpu(FakeDriver()), pytest.raises(BackendError, match="needs triton"):
        executor(schedule, {}, strict=True)


def scale(x: torch.Tensor, *, times: int) -> torch.Tensor:
    return times * x


def add_to(total: torch.Tensor, x: torch.Tensor) -> None:
    total += x


def test_kernel_that_is_not_there_is_named() -> None:
    graph = nr.Graph("missing")
    op = nr.op(demand=WORK, name="op", kernels={"triton": "no_such_module:f"})(lambda x: x + 1)
    graph.output(y=op(graph.input("x", (2,), torch.float32)))
    for kernel, path in (("triton", "no_such_module:f"), ("cutlass", "")):
        schedule = with_kernels(random_dags.schedule(graph, STREAMS, [0]), kernel)
        with (
            gpu(FakeDriver()),
            pytest.raises(BackendError, match=f"kernel '{kernel}' of op, '{path}', .*'triton'") as error,
        ):
            executor(schedule, {})
        assert error.value.node == "op"


def test_large_copies_go_in_chunks_and_strided_ones_by_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "CHUNK_BYTES", 1000)
    graph = nr.Graph("chunks")
    x = graph.input("x", (100, 9), torch.float32, device="host")
    y = graph.input("y", (6, 4), torch.float32)
    graph.output(x=ops.to_device(x), y=ops.to_host(y[1:4, :2]))
    schedule = random_dags.schedule(graph, STREAMS, [2, 3])
    given = {"x": torch.randn(100, 9), "y": torch.randn(6, 4)}
    with gpu(FakeDriver(seed=1)) as fake, executor(schedule, {}) as run:
        out = run(**given)
    assert torch.equal(out["x"], given["x"])
    assert torch.equal(out["y"], given["y"][1:4, :2])
    copies = [call[2:] for call in fake.calls if call[0] == "copy"]
    assert copies == [(96, "d2d"), *[(1000, "h2d")] * 3, (600, "h2d"), *[(8, "d2h")] * 3]


def test_reference_cannot_change_what_is_on_the_host() -> None:
    """It would do so when it is queued, not when its turn comes."""
    graph = nr.Graph("tier")
    accumulate(
        graph.state("tier", (2, 3), torch.float32, device="host"),
        graph.input("x", (2, 3), torch.float32),
        graph.constant("weight", (2, 3), torch.float32),
    )
    schedule = random_dags.schedule(graph, STREAMS, [0])
    tensors = {"tier": torch.zeros(2, 3), "weight": torch.zeros(2, 3)}
    with (
        gpu(FakeDriver()),
        pytest.warns(RuntimeWarning, match="not pinned"),
        pytest.raises(BackendError, match=r"accumulate .* changes 'tier' in place.*on the host"),
    ):
        executor(schedule, tensors)


# Timelines.


@EITHER
@pytest.mark.parametrize("seed", range(5))
def test_timeline_says_what_ran_when(seed: int, capture: bool) -> None:
    rng = random.Random(seed)
    graph, tensors = random_dags.synthetic(seed)
    schedule = random_dags.placed(graph, rng)
    with gpu(FakeDriver(seed=seed)), executor(schedule, tensors, capture=capture) as run:
        assert np.isnan(run.timeline.start).all()
        for number in range(4):
            run(**inputs(graph, tensors, number))
            timeline = run.timeline
            assert (timeline.kind, timeline.device, timeline.foreign) == ("measured", "h200", False)
            last: dict[str, float] = {}
            for event in timeline:
                assert event.start >= last.get(event.activity.stream, 0.0)
                assert event.end >= event.start + 0.9e-6  # what a launch takes on the fake
                assert all(timeline.end[on] <= event.start for on, _ in event.activity.waits)
                last[event.activity.stream] = event.end
    assert run.timeline is timeline  # what happened can still be read


@EITHER
def test_untraced_timeline_is_empty(capture: bool) -> None:
    schedule, tensors = sums()
    with gpu(FakeDriver(seed=1)) as fake, executor(schedule, tensors, capture=capture, trace=False) as run:
        for _ in range(3):
            run(x=tensors["x"])
        assert len(run.timeline) == 2
        assert np.isnan(run.timeline.start).all()
        assert np.isnan(run.timeline.end).all()
    assert ("create_event", True) not in fake.calls


# What a GPU refuses, and what happens then.


def test_no_driver_is_told_in_a_line_and_auto_takes_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def current() -> Driver:
        raise BackendError("there is no GPU")

    schedule, tensors = sums()
    monkeypatch.setattr(driver, "current", current)
    with pytest.raises(BackendError, match="there is no GPU"):
        executor(schedule, tensors)
    with executor(schedule, tensors, backend="auto") as run:
        run(x=tensors["x"])
        assert run.timeline.device == "cpu"
        assert run.memory_bytes == 0


def test_auto_takes_the_gpu_where_there_is_one_and_the_plan_is_for_it() -> None:
    schedule, tensors = sums()
    with gpu(FakeDriver()) as fake:
        assert resolve("auto", H200) == ("cuda", fake.device)
        assert resolve("auto", nr.device("cpu")) == ("cpu", "cpu")
        assert resolve("cpu", H200) == ("cpu", "cpu")
        assert resolve("sim", H200) == ("sim", "cpu")
        with executor(schedule, tensors, backend="auto") as run:
            run(x=tensors["x"])
            assert run.timeline.device == "h200"


FOREIGN = [
    (FakeDriver(sms=114), "planned for h200, 132 SMs .* plan again"),
    (FakeDriver(minimum=4, alignment=4), "planned for h200, .* groups of 8, .* in groups of 4: plan again"),
    (FakeDriver(grants=(8,) * 3 + (6,) * 13), "group 'g0' is planned for 64 SMs, .* grants it 54: plan again"),
]


@pytest.mark.parametrize(("fake", "message"), FOREIGN, ids=["sms", "granularity", "granted"])
def test_plan_that_does_not_fit_the_gpu_is_refused(
    monkeypatch: pytest.MonkeyPatch, fake: FakeDriver, message: str
) -> None:
    schedule, tensors = sums()
    with gpu(fake):
        with pytest.raises(BackendError, match=message):
            executor(schedule, tensors)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        with pytest.warns(RuntimeWarning, match=f"running on the cpu, not on the GPU: {message}"):
            run = executor(schedule, tensors, backend="auto")
        with run:
            run(x=tensors["x"])
            assert run.timeline.device == "cpu"


def test_plan_for_no_gpu_is_refused() -> None:
    graph = nr.Graph("cpu")
    graph.output(y=double(graph.input("x", (2,), torch.float32)))
    with gpu(FakeDriver()), pytest.raises(BackendError, match="planned for cpu, which is no GPU: plan again"):
        executor(nr.co_schedule(graph, nr.device("cpu")), {})


def test_without_green_contexts_plain_streams_run_it() -> None:
    schedule, tensors = sums()
    with gpu(FakeDriver(green=False)):
        with pytest.warns(RuntimeWarning, match="program sums runs on plain streams"):
            run = executor(schedule, tensors)
        with run:
            assert run(x=tensors["x"])["twice"].unique().tolist() == [4.0]


def test_tensors_on_another_device_are_refused() -> None:
    schedule, tensors = sums()
    with gpu(FakeDriver()) as fake:
        with pytest.raises(InputDeviceError, match=r"weight.* must be on cpu, its tensor is on meta"):
            executor(schedule, tensors | {"weight": torch.zeros(2, 3, device="meta")})
        with executor(schedule, tensors) as run:
            before = len(fake.calls)
            with pytest.raises(InputDeviceError):
                run(x=torch.zeros(2, 3, device="meta"))
            assert len(fake.calls) == before


@pytest.mark.parametrize("timeout", [0.0, -1.0, math.nan])
def test_timeout_that_cannot_be_is_refused(timeout: float) -> None:
    schedule, tensors = sums()
    with gpu(FakeDriver()), pytest.raises(BackendError, match="give more than zero seconds"):
        executor(schedule, tensors, timeout=timeout)
