from __future__ import annotations

import _thread
import random
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

import nanort as nr
import random_dags
from failing import WHERE, Broken, double, failing
from nanort import partition
from nanort.errors import ExecutionError
from nanort.partition import Stream
from nanort.runtime import cpu
from nanort.runtime.executor import Executor
from nanort.timeline.events import Timeline
from random_dags import WORK

H200 = nr.device("h200")
STREAMS = partition.streams(partition.split(H200, [8, 8, 8, 8]))


def executor(
    graph: nr.Graph,
    lane: Sequence[int],
    streams: Sequence[Stream] = STREAMS,
    trace: bool = True,
    **states: torch.Tensor,
) -> Executor:
    """Runs the nodes of ``graph`` as written, each on its lane of ``streams``."""
    return Executor(random_dags.schedule(graph, streams, lane), states=states, trace=trace)


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("nanort ")]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    assert not workers()
    yield
    assert not workers()


@pytest.fixture
def _switching() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


# Outputs.


@pytest.mark.usefixtures("_switching")
@pytest.mark.parametrize("make", random_dags.FAMILIES)
@pytest.mark.parametrize("seed", range(20))
def test_random_placement_is_bit_for_bit_eager(make: random_dags.Family, seed: int) -> None:
    rng = random.Random(seed)
    graph, tensors = make(seed)
    schedule = random_dags.placed(random_dags.cut(graph, rng), rng)
    schedule.check()
    random_dags.compare_with_eager(schedule, random_dags.packed(schedule.graph, tensors), rng)


def test_layouts_of_results_and_inputs_do_not_matter() -> None:
    """Results that are not row-major are read through views; inputs come as slices of something larger."""
    graph = nr.Graph("strides")
    x = graph.input("x", (6, 4), torch.float32)
    a = graph.call(torch.t, x, demand=WORK)
    b = graph.call(torch.add, a[1:3, ::1], a.reshape(6, 4)[:2, :].reshape(2, 4)[:, :1], demand=WORK)
    c = graph.call(lambda x: (x.t(), x[:, 1]), b, demand=WORK)
    joined = graph.join(c[0], graph.call(lambda x: torch.zeros(5, 2).t().new_ones(2, 6).t(), x, demand=WORK)[:, :2])
    graph.output(b=b, joined=joined, column=c[1], part=joined[3:8], flat=a.reshape(24), x=x[2:, 1:], row=x.reshape(24))
    big = torch.randn(20, 9)
    with executor(graph, [0, 1, 0, 1, *[0] * (len(graph.nodes) - 4)]) as run:
        for given in (big[3:9, 2:6], big[:4, :6].t(), big.flatten()[7:31].view(6, 4)):
            expected, found = graph.eager(x=given), run(x=given)
            assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_calls_with_literals_static_arguments_and_several_or_no_results() -> None:
    @nr.op(demand=WORK, writes=("total",))
    def tally(total: torch.Tensor, x: torch.Tensor, *, times: int) -> None:
        total += times * x.sum()

    graph = nr.Graph("calls")
    x = graph.input("x", (4, 3), torch.float64)
    total = graph.state("total", (1,), torch.float64)
    values, indices = graph.call(lambda x, dim: x.sort(dim), x, 1, demand=WORK)
    tally(total, values, times=2)
    tally(total, graph.call(torch.full, (2,), 0.5, demand=WORK, name="made", dtype=torch.float64), times=10)
    graph.output(values=values, indices=indices, total=graph.call(torch.clone, total, demand=WORK))
    given, count = torch.randn(4, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    with executor(graph, [0, 1, 2, 1, 0], total=count) as run:
        for runs in (1, 2):
            found = run(x=given)
            assert torch.equal(found["values"], given.sort(1).values)
            assert torch.equal(found["indices"], given.sort(1).indices)
            assert found["total"].item() == pytest.approx(runs * (2 * given.sum().item() + 10))
    assert count.item() == found["total"].item()


def test_outputs_of_a_run_outlive_the_next() -> None:
    graph = nr.Graph("kept")
    x = graph.input("x", (4, 3), torch.float32)
    a, b = double(x), double(x)
    joined = graph.join(a, b)
    graph.output(a=a, b=b, joined=joined, doubled=double(joined))
    with executor(graph, [0, 1, 2]) as run:
        first = run(x=torch.ones(4, 3))
        second = run(x=torch.full((4, 3), 5.0))
    assert {name: set(tensor.flatten().tolist()) for name, tensor in first.items()} == {
        "a": {2.0}, "b": {2.0}, "joined": {2.0}, "doubled": {4.0}
    }  # fmt: skip  # side by side
    assert set(second["doubled"].flatten().tolist()) == {20.0}


def test_graph_without_nodes_gives_its_inputs_back() -> None:
    graph = nr.Graph("empty")
    x = graph.input("x", (4, 3), torch.float32, batch=0)
    graph.output(x=x, none=graph.empty((0, 3), torch.int64))
    given = torch.randn(4, 3)
    with executor(graph, []) as run:
        found = run(x=given)
        assert len(run.timeline) == 0
    assert torch.equal(found["x"], given)
    assert (found["none"].shape, found["none"].dtype) == ((0, 3), torch.int64)


# Memory.


@pytest.mark.parametrize("lanes", [1, 3])
def test_results_are_freed_once_they_were_read(lanes: int) -> None:
    results, alive = list[weakref.ref[torch.Tensor]](), list[int]()

    def watched(x: torch.Tensor) -> torch.Tensor:
        alive.append(sum(result() is not None for result in results))
        results.append(weakref.ref(y := x + 1))
        return y

    graph = nr.Graph("chain")
    y = graph.input("x", (4, 3), torch.float32)
    for _ in range(30):
        y = graph.call(watched, y, demand=WORK)
        graph.call(torch.neg, y, demand=WORK, name=f"unread{len(graph.nodes)}")
    graph.output(y=y)
    results.clear()  # of meta tensors
    alive.clear()
    with executor(graph, [(k // 2) % lanes for k in range(60)]) as run:
        out = run(x=torch.zeros(4, 3))
        assert max(alive) <= lanes  # what it reads, and what another stream is about to let go
        assert [result() is not None for result in results] == [False] * 29 + [True]
    assert out["y"][0, 0] == 30


def test_results_that_nobody_reads_are_freed() -> None:
    results = list[weakref.ref[torch.Tensor]]()

    def watched(x: torch.Tensor) -> torch.Tensor:
        results.append(weakref.ref(y := x + 1))
        return y

    graph = nr.Graph("unread")
    x = graph.input("x", (4, 3), torch.float32)
    graph.call(watched, x, demand=WORK)
    graph.output(gone=graph.call(lambda x: torch.tensor([results[-1]() is None]), x, demand=WORK))
    with executor(graph, [0, 0]) as run:
        assert run(x=torch.zeros(4, 3))["gone"].item()


def test_joined_buffer_is_freed_once_it_was_read() -> None:
    buffers = list[weakref.ref[torch.Tensor]]()

    def read(x: torch.Tensor) -> torch.Tensor:
        buffers.append(weakref.ref(x if x._base is None else x._base))
        return x.clone()

    graph = nr.Graph("joined")
    x = graph.input("x", (4, 3), torch.float32)
    joined = graph.join(double(x), double(x))
    a = graph.call(read, joined, demand=WORK, name="a")
    b = graph.call(read, joined[2:6], demand=WORK, name="b")
    last = graph.call(
        lambda a, b: torch.tensor([len({ref() for ref in buffers[-2:]}) == 1, buffers[-1]() is None]), a, b, demand=WORK
    )
    graph.output(last=last)
    buffers.clear()
    with executor(graph, [0, 1, 0, 1, 0]) as run:
        assert run(x=torch.zeros(4, 3))["last"].tolist() == [True, True]


# Threads.


def identify(x: torch.Tensor) -> torch.Tensor:
    return x + torch.tensor([threading.get_ident(), torch.get_num_threads()], device=x.device)


def identities(lane: Sequence[int], streams: Sequence[Stream] = STREAMS, device: nr.Device = H200) -> list[list[int]]:
    """The thread that each node runs in, and the threads that it may use."""
    graph = nr.Graph("who")
    x = graph.input("x", (2,), torch.int64)
    graph.output(**{f"y{k}": graph.call(identify, x, demand=WORK) for k in range(len(lane))})
    with Executor(random_dags.schedule(graph, streams, lane, device=device)) as run:
        assert len(workers()) == (len(set(lane)) if len(set(lane)) > 1 else 0)
        return [run(x=torch.zeros(2, dtype=torch.int64))[f"y{k}"].tolist() for k in range(len(lane))]


def test_one_stream_runs_in_the_calling_thread() -> None:
    """On the thread of a foreign device's stream, one core; the caller's own number of threads is left alone."""
    torch.set_num_threads(2)
    try:
        assert identities([2, 2, 2]) == [[threading.get_ident(), 1]] * 3
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_every_stream_has_one_thread_of_its_own() -> None:
    torch.set_num_threads(2)
    try:
        found = identities([0, 1, 3, 0, 1, 3])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert found[:3] == found[3:]
    assert len({thread for thread, _ in found}) == 3
    assert threading.get_ident() not in {thread for thread, _ in found}
    assert {threads for _, threads in found} == {1}


def test_threads_that_start_later_are_left_alone() -> None:
    """PyTorch gives a new thread the number that was last set anywhere."""
    found = list[int]()
    torch.set_num_threads(2)
    try:
        identities([0, 1])
        later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        later.start()
        later.join()
    finally:
        torch.set_num_threads(1)
    assert found == [2]


def test_a_group_of_cores_runs_on_as_many_threads() -> None:
    device = replace(nr.device("cpu"), sms=4)
    streams = partition.streams(partition.split(device, [3, 1]))
    assert [threads for _, threads in identities([0, 1], streams, device)] == [3, 1]
    assert [threads for _, threads in identities([0, 0], streams, device)] == [3, 3]


# Timelines.


def test_timeline_says_what_ran_where_and_when() -> None:
    graph, tensors = random_dags.ragged(3)
    schedule = random_dags.placed(graph, random.Random(1))
    inputs, constants, states = random_dags.by_kind(graph, tensors)
    with Executor(schedule, constants=constants, states=states) as run:
        assert np.isnan(run.timeline.start).all()
        run(**inputs)
        timeline = run.timeline
    assert isinstance(timeline, Timeline)
    assert (timeline.kind, timeline.device, timeline.foreign, timeline.failure) == ("measured", "cpu", True, "")
    assert timeline.activities == schedule.timeline().activities
    assert (timeline.start >= 0).all()
    assert (timeline.end >= timeline.start).all()
    last: dict[str, float] = {}
    for event in timeline:
        assert event.start >= last.get(event.activity.stream, 0.0)
        last[event.activity.stream] = event.end
        assert all(timeline.end[on] <= event.start for on, _ in event.activity.waits)


def test_untraced_run_gives_the_same_outputs_and_no_times() -> None:
    graph = nr.Graph("untraced")
    x = graph.input("x", (4, 3), torch.float32)
    graph.output(y=double(double(x)))
    with executor(graph, [0, 1], trace=False) as run:
        assert torch.equal(run(x=torch.ones(4, 3))["y"], torch.full((4, 3), 4.0))
        assert len(run.timeline) == 2
        assert np.isnan(run.timeline.start).all()
        assert np.isnan(run.timeline.end).all()
        assert run.timeline.failure == ""


# Failures.


@pytest.mark.parametrize("spread", [True, False])
def test_failure_names_the_node_and_its_line_and_the_next_run_works(spread: bool) -> None:
    graph, lane = failing()
    good, bad = torch.ones(2, 2), -torch.ones(2, 2)
    with executor(graph, lane if spread else [0] * 5) as run:
        threads = workers()
        for _ in range(3):
            with pytest.raises(ExecutionError, match=rf"node bad \({WHERE}\) failed: it is negative") as caught:
                run(x=bad)
            assert (caught.value.node, caught.value.where) == ("bad", WHERE)
            assert isinstance(caught.value.__cause__, Broken)
            timeline = run.timeline
            times = {e.activity.name: (bool(e.start >= 0), bool(e.end >= 0)) for e in timeline}
            assert timeline.failure == "bad: it is negative"
            assert times.pop("d") in ((True, True), (False, False))  # it may have come first
            assert times == {"a": (True, True), "bad": (True, False), "c": (False, False), "e": (False, False)}
            assert workers() == threads
            assert torch.equal(run(x=good)["e"], torch.full((2, 2), 6.0))
            assert run.timeline.failure == ""


class MuteError(Exception):
    def __str__(self) -> str:
        raise Broken("it cannot be told")


@pytest.mark.parametrize("error", [MuteError, AssertionError])
def test_failure_that_says_nothing_is_told_by_its_kind(error: type[Exception]) -> None:
    def fail(x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "meta":
            raise error
        return x.clone()

    graph = nr.Graph("mute")
    graph.output(y=graph.call(fail, graph.input("x", (2, 2), torch.float32), demand=WORK, name="bad"))
    with executor(graph, [0]) as run:
        with pytest.raises(ExecutionError, match=rf"node bad \(.*\) failed: {error.__name__}$"):
            run(x=torch.ones(2, 2))
        assert run.timeline.failure == f"bad: {error.__name__}"
    with pytest.raises(ExecutionError, match=rf"failed: {error.__name__}$"):
        graph.eager(x=torch.ones(2, 2))


@pytest.mark.usefixtures("_switching")
def test_of_two_failures_at_once_one_is_told_whole() -> None:
    def named(x: torch.Tensor, name: str) -> torch.Tensor:
        if x.device.type != "meta":
            raise Broken(name)
        return x.clone()

    graph = nr.Graph("both")
    x = graph.input("x", (2, 2), torch.float32)
    names = ["left", "right", "third", "fourth"]
    graph.output(**{name: graph.call(named, x, name, demand=WORK, name=name) for name in names})
    with executor(graph, range(4)) as run:
        for _ in range(200):
            with pytest.raises(ExecutionError) as caught:
                run(x=torch.zeros(2, 2))
            assert caught.value.node == str(caught.value.__cause__)


def test_result_that_is_no_tensor_is_the_failure_of_its_node() -> None:
    @nr.op(demand=WORK, shape=lambda x: torch.empty_like(x))
    def forgetful(x: torch.Tensor) -> torch.Tensor:
        return None  # the mistake that is tried

    graph = nr.Graph("forgetful")
    graph.output(y=double(forgetful(graph.input("x", (2, 2), torch.float32))))
    with executor(graph, [0, 1]) as run, pytest.raises(ExecutionError, match=r"node forgetful \("):
        run(x=torch.zeros(2, 2))


@contextmanager
def interrupted(interrupt: Callable[[], None], lane: Sequence[int]) -> Iterator[Executor]:
    """A run in which the first of three nodes interrupts it, once; the others wait for it."""
    left = [interrupt]

    def pull(x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "meta" and left:
            left.pop()()
        return x.clone()

    graph = nr.Graph("interrupted")
    x = graph.input("x", (2, 2), torch.float32)
    graph.output(y=double(double(graph.call(pull, x, demand=WORK, name="pull"))))
    with executor(graph, lane) as run:
        threads = workers()
        yield run
        assert workers() == threads
        assert torch.equal(run(x=torch.ones(2, 2))["y"], torch.full((2, 2), 4.0))


def interrupt_main() -> None:
    _thread.interrupt_main()
    time.sleep(0.05)  # it comes while this node runs


def test_interrupt_of_the_waiting_caller_ends_the_run_and_leaves_nobody_stuck() -> None:
    with interrupted(interrupt_main, [0, 1, 2]) as run:
        with pytest.raises(KeyboardInterrupt):
            run(x=torch.ones(2, 2))
        assert run.timeline.failure == "KeyboardInterrupt"


def test_interrupt_of_a_serial_run() -> None:
    with interrupted(lambda: signal.raise_signal(signal.SIGINT), [0, 0, 0]) as run:
        with pytest.raises(KeyboardInterrupt):
            run(x=torch.ones(2, 2))
        assert run.timeline.failure.endswith(": KeyboardInterrupt")


def leave() -> None:
    raise SystemExit(3)


@pytest.mark.parametrize("lane", [[0, 1, 2], [0, 0, 0]])
def test_node_that_wants_the_process_to_end(lane: list[int]) -> None:
    with interrupted(leave, lane) as run, pytest.raises(SystemExit):
        run(x=torch.ones(2, 2))


@pytest.mark.parametrize("lane", [[0, 1, 2] * 2, [0] * 6])
def test_interrupt_at_any_moment_leaves_the_executor_working(lane: list[int]) -> None:
    """The caller is struck at every step of the backend in turn: while it wakes its workers, waits, collects."""
    graph = nr.Graph("struck")
    values = [graph.input("x", (2, 2), torch.float32)] * 3
    values = [double(double(value)) for value in values]
    graph.output(**{f"y{k}": value for k, value in enumerate(values)})
    given = torch.ones(2, 2)

    def strike(left: int) -> Callable[..., Any]:
        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal left
            if frame.f_code.co_filename != cpu.__file__ or frame.f_lineno is None:  # a generator that ends unseen
                return None
            frame.f_trace_opcodes = True
            left -= event in ("line", "opcode")  # Python 3.12 may tell of lines only
            if not left:
                raise KeyboardInterrupt
            return trace

        return trace

    with executor(graph, lane) as run:
        threads, struck = workers(), 0
        while True:
            sys.settrace(strike(struck + 1))
            try:
                run(x=given)
                break
            except KeyboardInterrupt:
                struck += 1
            finally:
                sys.settrace(None)
            assert all(value[0, 0] == 4 for value in run(x=given).values())
            assert workers() == threads
    torch.set_num_threads(1)  # a serial run that is struck while it gives back what it took keeps it
    torch.set_grad_enabled(True)
    assert struck > 30
