from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest
import torch

import nanort as nr
import random_dags
from failing import WHERE, Broken, double, failing
from fake_driver import FakeDriver
from fake_runs import executor, gpu
from nanort import driver, ops, partition
from nanort.errors import DeviceMemoryError, DriverError, ExecutionError, HangError, PoisonedError
from nanort.programs.program import Program
from nanort.runtime import cuda, faults
from nanort.runtime.partitions import partitions
from nanort.scheduling.schedule import Schedule
from random_dags import WORK

STREAMS = partition.streams(partition.split(nr.device("h200"), [8, 8, 8, 8]), partition.ENGINES)
EITHER = pytest.mark.parametrize("capture", [False, True], ids=["eager", "captured"])


# Nodes that fail when they are queued.


def broken() -> Schedule:
    graph, lane = failing()
    return random_dags.schedule(graph, STREAMS, lane)


def test_failure_names_the_node_and_its_line_and_the_next_run_works() -> None:
    good, bad = torch.ones(2, 2), -torch.ones(2, 2)
    with gpu(FakeDriver()) as fake, executor(broken(), {}) as run:
        live = {kind: set(handles) for kind, handles in fake.live.items()}
        for _ in range(3):
            with pytest.raises(ExecutionError, match=rf"node bad \({WHERE}\) failed: it is negative") as caught:
                run(x=bad)
            assert (caught.value.node, caught.value.where) == ("bad", WHERE)
            assert isinstance(caught.value.__cause__, Broken)
            timeline = run.timeline
            assert timeline.failure == str(caught.value)
            assert {e.activity.name: (bool(e.start >= 0), bool(e.end >= 0)) for e in timeline} == {
                "a": (True, True), "bad": (True, False), "c": (False, False), "d": (False, False), "e": (False, False)
            }  # fmt: skip  # side by side
            assert torch.equal(run(x=good)["e"], torch.full((2, 2), 6.0))
            assert run.timeline.failure == ""
            assert (run.timeline.end >= 0).all()
        assert fake.live == live


def test_failure_leaves_the_outputs_of_the_run_before() -> None:
    with gpu(FakeDriver()), executor(broken(), {}) as run:
        kept = run(x=torch.ones(2, 2))["e"]
        for _ in range(3):
            with pytest.raises(ExecutionError):
                run(x=-torch.ones(2, 2))
        assert torch.equal(kept, torch.full((2, 2), 6.0))


def test_node_that_cannot_be_captured_is_named_once_and_runs_anyway() -> None:
    with gpu(FakeDriver(seed=1)) as fake, executor(broken(), {}, capture=True) as run:
        run(x=torch.ones(2, 2))
        fake.fail_at("launch", fake.count("launch") + 2, RuntimeError("not permitted when a stream is capturing"))
        with pytest.warns(RuntimeWarning, match=rf"failing is not captured.*node bad \({WHERE}\) .*not permitted"):
            out = run(x=torch.ones(2, 2))
        assert not fake.live["graph"]
        for number in range(2, 5):
            fake.settle(0)
            assert torch.equal(out["e"], torch.full((2, 2), 6.0 * (number - 1)))
            out = run(x=torch.full((2, 2), float(number)))
        assert "launch_graph" not in {call[0] for call in fake.calls}


def test_node_that_fails_when_captured_and_when_not_is_the_failure_of_the_run() -> None:
    with gpu(FakeDriver(seed=1)) as fake, executor(broken(), {}, capture=True) as run:
        run(x=torch.ones(2, 2))
        for nth in (2, 4):  # bad in the capture, then bad by itself
            fake.fail_at("launch", fake.count("launch") + nth, Broken("it is negative"))
        with (
            pytest.warns(RuntimeWarning, match="failing is not captured"),
            pytest.raises(ExecutionError, match=rf"node bad \({WHERE}\) failed: it is negative"),
        ):
            run(x=torch.ones(2, 2))
        out = run(x=torch.ones(2, 2))
        fake.settle(0)
        assert torch.equal(out["e"], torch.full((2, 2), 6.0))


# No memory.


def test_node_without_memory_is_named_with_its_sizes_and_the_next_run_works() -> None:
    with gpu(FakeDriver(seed=1)) as fake, executor(broken(), {}) as run:
        fake.fail_at("launch", 5, DeviceMemoryError("tried to allocate 2 GiB"))
        with pytest.raises(DeviceMemoryError, match=r"node e \(.*reads 32 bytes, writes 16, .*2 GiB") as caught:
            run(x=torch.ones(2, 2))
        assert caught.value.node == "e"
        out = run(x=torch.ones(2, 2))
        fake.settle(0)
        assert torch.equal(out["e"], torch.full((2, 2), 6.0))


def test_program_that_does_not_fit_names_its_size_and_the_largest_value() -> None:
    graph = nr.Graph("large")
    x = graph.input("x", (1000,), torch.float32)
    graph.output(y=graph.call(lambda x: x.repeat(3), x, demand=WORK, name="wide"))
    with (
        gpu(FakeDriver(memory=10_000)),
        pytest.raises(DeviceMemoryError, match=r"large takes 2\d,\d{3} bytes of the device, .* wide 12,000,") as caught,
    ):
        executor(random_dags.schedule(graph, STREAMS, [0]), {})
    assert caught.value.node == "wide"


# Failures at every call of the driver.


@cache
def busy() -> Program:
    """Copies both ways, several streams, an input of each kind and outputs on both sides."""
    graph = nr.Graph("busy")
    x, host = graph.input("x", (4, 2), torch.float32), graph.input("host", (4, 2), torch.float32, device="host")
    a = graph.call(double, x, name="a")
    b = graph.call(torch.add, a, ops.to_device(host), demand=WORK, name="b")
    c = graph.call(double, a, name="c")
    graph.output(b=b, c=ops.to_host(c))
    return nr.lower(random_dags.schedule(graph, STREAMS, [0, 4, 1, 2, 5]))


def use(fake: FakeDriver, **options: object) -> tuple[list[BaseException], list[str], int]:
    """What goes wrong while an executor is made, run, read and closed; what it warns of; how often it ran well."""
    wrong, well = list[BaseException](), 0
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            with executor(busy(), {}, **options) as run:
                for number in range(4):
                    given = torch.full((4, 2), float(number))
                    try:
                        out = run(x=given, host=10 * given)
                        assert (run.timeline.end.max() > 0) == options.get("trace", True)
                    except (DriverError, PoisonedError, KeyboardInterrupt) as error:
                        wrong.append(error)
                        continue
                    assert out["c"].unique().tolist() == [4.0 * number]
                    fake.settle(0)
                    assert out["b"].unique().tolist() == [12.0 * number]
                    well += 1
        except (DriverError, PoisonedError, KeyboardInterrupt) as error:
            wrong.append(error)
    return wrong, [str(warning.message) for warning in told], well


def every_call(
    error: Callable[[], BaseException | None], **options: object
) -> Iterator[tuple[object, list[BaseException], list[str], int]]:
    """Uses an executor with a failure at the first call of the driver, then at the second, and so on to the last."""
    nth = 0
    while True:
        nth += 1
        fake = FakeDriver(seed=nth)
        fake.fail_at("", nth, error())  # type: ignore[arg-type]  # an interrupt, too
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(driver, "current", lambda fake=fake: fake)
            wrong, told, well = use(fake, **options)
        try:
            partitions(fake).close()
        except (DriverError, KeyboardInterrupt) as late:
            wrong = wrong or [late]
        assert not any(fake.live.values()), f"call {nth}, {fake.calls[nth - 1]}, left {fake.live}"
        if fake.count() < nth:
            assert not wrong
            break
        yield fake.calls[nth - 1][0], wrong, told, well
    assert nth > 100


@pytest.mark.parametrize("options", [{"trace": False}, {"capture": True}, {"trace": False, "timeout": 60.0}])
def test_whatever_fails_is_named_and_nothing_leaks(options: dict[str, object]) -> None:
    for failed, wrong, told, well in every_call(lambda: None, **options):
        if wrong:
            (error,) = wrong
            assert isinstance(error, DriverError)
            assert error.call == failed
            assert f"{failed} failed, as the test asked" in str(error)
            assert well in (0, 3, 4)
        else:
            (warning,) = told
            assert "is not captured" in warning
            assert f"{failed} failed, as the test asked" in warning
            assert well == 4


@EITHER
def test_interrupt_at_any_call_leaves_the_executor_working(capture: bool) -> None:
    for _, wrong, told, well in every_call(KeyboardInterrupt, capture=capture):
        assert [type(error) for error in wrong] == [KeyboardInterrupt]
        assert not told
        assert well in (0, 3, 4)


@EITHER
def test_fault_at_any_call_poisons_the_device_and_nothing_leaks(capture: bool) -> None:
    for _, wrong, told, well in every_call(lambda: DriverError("illegal address", sticky=True), capture=capture):
        assert not told
        assert isinstance(wrong[0], (DriverError, PoisonedError))
        assert "illegal address" in str(wrong[0])
        assert well + len(wrong) in (1, 4, 5)
        assert all(isinstance(error, PoisonedError) for error in wrong[1:])


# Faults of the device, found late.


def steps(count: int, lanes: int) -> tuple[Schedule, torch.Tensor]:
    """A chain n0, n1, ... that goes from stream to stream."""
    graph = nr.Graph("steps")
    y = graph.input("x", (2,), torch.float32)
    for index in range(count):
        y = graph.call(double, y, name=f"n{index}")
    graph.output(y=y)
    return random_dags.schedule(graph, STREAMS, [index % lanes for index in range(count)]), torch.ones(2)


def number(name: str) -> int:
    return int(name.removeprefix("n"))


def test_fault_that_is_found_when_a_node_is_queued() -> None:
    """It may be that node's or any before: a device that failed tells nothing any more."""
    schedule, x = steps(6, 2)
    with gpu(FakeDriver()) as fake, executor(schedule, {}) as run:
        run(x=x)
        fake.fault(4, "an illegal memory access was encountered")
        with pytest.raises(PoisonedError, match=r"node n3 \(.*: .*illegal memory access") as caught:
            run(x=x)
        assert "Known to have ended: 0 of 6 nodes; suspected: n0 (" in str(caught.value)
        assert "or what follows, or a node of the 1 run before; with timeout=" in str(caught.value)
        assert caught.value.node == "n0"
        assert "illegal memory access" in run.timeline.failure


@EITHER
@pytest.mark.parametrize("lanes", [1, 3])
def test_fault_that_is_found_late_names_the_first_node_that_is_not_known_to_have_ended(
    lanes: int, capture: bool
) -> None:
    """Between two looks at the events several nodes may end: then the suspect is the first of them."""
    (schedule, x), suspects = steps(8, lanes), list[int]()
    for seed in range(20):
        with gpu(FakeDriver(seed=seed)) as fake, executor(schedule, {}, capture=capture, timeout=60.0) as run:
            run(x=x)
            fake.fault(6, "an illegal memory access was encountered")  # n5
            with pytest.raises(PoisonedError, match="illegal memory access") as caught:
                run(x=x)
            suspects.append(number(caught.value.node))
            assert f"Known to have ended: {suspects[-1]} of 8 nodes" in str(caught.value)
            with pytest.raises(PoisonedError, match=r"failed before .*illegal memory access.*start the process again"):
                run(x=x)
    assert set(suspects) <= set(range(6))
    assert 5 in suspects


def test_fault_of_an_unwatched_run_says_how_to_learn_more() -> None:
    schedule, x = steps(4, 2)
    with gpu(FakeDriver(seed=1)) as fake, executor(schedule, {}, trace=False) as run:
        run(x=x)
        fake.fault(2)
        run(x=x)
        run(x=x)
        with pytest.raises(PoisonedError) as caught:
            run.close()
        assert "suspected: n0 (" in str(caught.value)
        assert "or a node of the 2 runs before; with timeout= the host looks on and can tell more" in str(caught.value)


def test_fault_found_by_the_timeline() -> None:
    schedule, x = steps(4, 2)
    with gpu(FakeDriver(seed=1)) as fake, executor(schedule, {}) as run:
        fake.fault(2, "an illegal memory access was encountered")
        run(x=x)
        with pytest.raises(PoisonedError, match="illegal memory access"):
            _ = run.timeline
        assert np.isnan(run.timeline.start).all()
        assert "illegal memory access" in run.timeline.failure
        assert not fake.live["event"]


def test_nothing_else_runs_on_a_poisoned_device() -> None:
    schedule, x = steps(4, 2)
    with gpu(FakeDriver()) as fake, executor(schedule, {}) as run, executor(schedule, {}) as other:
        out = other(x=x)["y"]
        fake.fault(2)
        with pytest.raises(PoisonedError):
            run(x=x)
        with pytest.raises(PoisonedError, match="start the process again"):
            other(x=x)
        for backend in ("cuda", "auto"):
            with pytest.raises(PoisonedError, match="start the process again"):
                executor(schedule, {}, backend=backend)
        assert out.tolist() == [16.0, 16.0]


# Nodes that never end.


@pytest.fixture
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host looks a tenth as often, to save time."""
    monkeypatch.setattr(faults, "POLL_SECONDS", 10 * faults.POLL_SECONDS)


@pytest.mark.usefixtures("_clock")
@EITHER
@pytest.mark.parametrize("trace", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_node_that_never_ends_is_named(seed: int, trace: bool, capture: bool) -> None:
    schedule, x = steps(8, 3)
    options = {"capture": capture, "trace": trace, "timeout": 0.1}
    with gpu(FakeDriver(seed=seed)) as fake, executor(schedule, {}, **options) as run:
        kept = run(x=x)["y"]
        fake.hang(6)
        for _ in range(2):
            told = r"n5 \(.* did not end within 100 ms. Known to have ended: 5 of 8 nodes, last n4\. .* timeout="
            with pytest.raises(HangError, match=told) as caught:
                run(x=3 * x)
            assert (caught.value.node, caught.value.where) == ("n5", schedule.graph.nodes[5].where)
        assert [bool(end >= 0) for end in run.timeline.end] == [trace] * 5 + [False] * 3
        assert kept.tolist() == [256.0, 256.0]
        fake.unhang()
        for factor in (2, 3, 4):
            assert run(x=factor * x)["y"].tolist() == [256.0 * factor] * 2


@pytest.mark.usefixtures("_clock")
def test_only_nodes_that_wait_for_nothing_are_suspected() -> None:
    graph = nr.Graph("fork")
    a = graph.call(double, graph.input("x", (2,), torch.float32), name="a")
    slow, quick = graph.call(double, a, name="slow"), graph.call(double, a, name="quick")
    graph.output(y=graph.call(torch.add, slow, quick, demand=WORK, name="last"))
    schedule = random_dags.schedule(graph, STREAMS, [0, 1, 2, 0])
    with gpu(FakeDriver(seed=1)) as fake, executor(schedule, {}, timeout=0.1) as run:
        fake.hang(2)
        with pytest.raises(HangError, match=r"^slow \([^,]* did not end .* 2 of 4 nodes, last quick"):
            run(x=torch.ones(2))
        fake.unhang()


@pytest.mark.usefixtures("_clock")
def test_events_of_an_earlier_replay_do_not_count() -> None:
    """They stay as they were until the graph comes to them, and here it never begins."""
    schedule, x = steps(4, 2)
    with gpu(FakeDriver(seed=1)) as fake, executor(schedule, {}, capture=True, timeout=0.1) as run:
        for _ in range(5):
            run(x=x)
        fake.hang()
        fake.launch(0, lambda: None)  # the caller's own
        with pytest.raises(HangError, match=r"n0 \(.* 0 of 4 nodes"):
            run(x=x)
        fake.unhang()
        assert run(x=x)["y"].tolist() == [16.0, 16.0]


@pytest.mark.usefixtures("_clock")
def test_close_beside_a_node_that_never_ends_keeps_what_it_may_still_touch() -> None:
    schedule, x = steps(4, 2)
    with gpu(FakeDriver(seed=1)) as fake:
        before = fake.memory
        with executor(schedule, {}, timeout=0.1) as run:
            fake.hang(2)
            with pytest.raises(HangError):
                run(x=x)
        del run
        assert fake.live["event"]
        assert fake.memory < before
        held, _ = cuda._HUNG.pop()
        held.close()
