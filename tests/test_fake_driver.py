"""The fake is as strict as a driver, and as late and as odd as a GPU may be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fake_driver import FakeDriver
from nanort.errors import BackendError, DeviceMemoryError, DriverError


def floats(driver: FakeDriver, number: int = 4, *, host: bool = False) -> torch.Tensor:
    return driver.allocate(4 * number, host=host).view(torch.float32)


def forked(driver: FakeDriver, first: int, second: int, between: Callable[[], object]) -> None:
    """Lets ``second`` do something between two points of ``first``."""
    event = driver.create_event()
    driver.record(event, first)
    driver.wait(second, event)
    driver.launch(second, between)
    driver.record(event, second)
    driver.wait(first, event)


def outcomes(waits: bool) -> set[float]:
    found = set()
    for seed in range(40):
        driver = FakeDriver(seed=seed)
        x, one, two, event = floats(driver), driver.create_stream(), driver.create_stream(), driver.create_event()
        driver.launch(one, lambda x=x: x.fill_(1))
        driver.record(event, one)
        if waits:
            driver.wait(two, event)
        driver.launch(two, lambda x=x: x.mul_(3))
        driver.settle(None)
        found.add(float(x.nan_to_num()[0]))
    return found


def test_missing_wait_shows_as_a_wrong_value() -> None:
    assert outcomes(waits=True) == {3.0}
    assert outcomes(waits=False) == {1.0, 3.0}


def test_buffer_that_is_used_again_too_early_shows_as_a_wrong_value() -> None:
    found = set()
    for seed in range(40):
        driver = FakeDriver(seed=seed)
        x, y, one, two = floats(driver), floats(driver), driver.create_stream(), driver.create_stream()
        x.fill_(1)
        driver.launch(one, lambda x=x, y=y: y.copy_(x))
        driver.launch(two, lambda x=x: x.fill_(2))
        driver.settle(None)
        found.add(float(y[0]))
    assert found == {1.0, 2.0}


def test_work_is_carried_out_only_when_the_host_waits_for_it() -> None:
    driver = FakeDriver(seed=0)
    done: list[str] = []
    one, others, event = driver.create_stream(), [driver.create_stream() for _ in range(20)], driver.create_event()
    for number in range(3):
        driver.launch(one, lambda number=number: done.append(f"one {number}"))
    driver.record(event, one)
    for stream in others * 5:
        driver.launch(stream, lambda: done.append("other"))
    assert done == []
    driver.synchronize(event)
    assert [name for name in done if "one" in name] == ["one 0", "one 1", "one 2"]
    assert len(done) < 13, "what nobody waits for mostly stays queued"
    driver.settle(None)
    assert len(done) == 103


def test_asking_for_an_event_often_enough_makes_it_happen() -> None:
    driver = FakeDriver(seed=1)
    stream, event = driver.create_stream(), driver.create_event()
    assert driver.happened(event), "an event that was never recorded has nothing to wait for"
    for _ in range(10):
        driver.launch(stream, lambda: None)
    driver.record(event, stream)
    assert not driver.happened(event)
    assert any(driver.happened(event) for _ in range(1000))


def test_wait_is_for_the_latest_record_when_it_was_queued() -> None:
    driver = FakeDriver(seed=0)
    one, two, event, done = driver.create_stream(), driver.create_stream(), driver.create_event(), driver.create_event()
    x = floats(driver)
    driver.launch(one, lambda: x.fill_(1))
    driver.record(event, one)
    driver.wait(two, event)
    driver.hang()
    driver.launch(one, lambda: x.fill_(2))
    driver.record(event, one)
    driver.launch(two, lambda: x.mul_(5))
    driver.record(done, two)
    driver.synchronize(done)
    assert float(x[0]) == 5
    with pytest.raises(AssertionError, match="for ever"):
        driver.synchronize(event)


@pytest.mark.parametrize("seed", [None, 0])
def test_what_hangs_goes_on_when_it_is_let(seed: int | None) -> None:
    driver = FakeDriver(seed=seed)
    x, stream, event = floats(driver), driver.create_stream(), driver.create_event()
    driver.hang(2)
    for number in range(3):
        driver.launch(stream, lambda number=number: x.fill_(number))
    driver.record(event, stream)
    assert not any(driver.happened(event) for _ in range(50))
    assert float(x[0]) == 0
    driver.unhang()
    driver.synchronize(event)
    assert float(x[0]) == 2


def test_what_hangs_in_a_graph_hangs_at_each_replay_until_it_is_let() -> None:
    driver, x = FakeDriver(seed=0), torch.zeros(1)
    stream = driver.create_stream()
    driver.begin_capture(stream)
    driver.hang()
    driver.launch(stream, lambda: x.add_(1))
    graph = driver.end_capture(stream)
    for total in (1, 2):
        driver.launch_graph(graph, stream)
        if total == 1:
            with pytest.raises(AssertionError, match="for ever"):
                driver.settle(stream)
            driver.unhang()
        driver.settle(stream)
        assert float(x) == total


def test_streams_overlap_in_time_and_waits_order_them() -> None:
    driver = FakeDriver(seed=3)
    driver.cost = lambda stream, call: 2.0 if stream == one else 3.0
    one, two = driver.create_stream(), driver.create_stream()
    begin, first, second, end = (driver.create_event(timed=True) for _ in range(4))
    driver.record(begin, one)
    driver.wait(two, begin)
    driver.launch(one, lambda: None)
    driver.record(first, one)
    driver.launch(two, lambda: None)
    driver.record(second, two)
    driver.wait(one, second)
    driver.launch(one, lambda: None)
    driver.record(end, one)
    driver.synchronize(end)
    assert [driver.seconds(begin, event) for event in (first, second, end)] == [2.0, 3.0, 5.0]
    assert driver.time.now() == 5.0


def capture(driver: FakeDriver, log: list[str]) -> tuple[int, int]:
    """A graph: a, then b on one stream beside c on another, then d."""
    one, two, event = driver.create_stream(), driver.create_stream(), driver.create_event()
    driver.begin_capture(one)
    driver.launch(one, lambda: log.append("a"))
    driver.record(event, one)
    driver.wait(two, event)
    driver.launch(one, lambda: log.append("b"))
    driver.launch(two, lambda: log.append("c"))
    driver.record(event, two)
    driver.wait(one, event)
    driver.launch(one, lambda: log.append("d"))
    return driver.end_capture(one), one


def test_graph_runs_at_each_replay_in_every_order_that_its_edges_allow() -> None:
    driver, log, orders = FakeDriver(seed=0), [], set()
    graph, stream = capture(driver, log)
    driver.settle(None)
    assert log == []
    for _ in range(20):
        driver.launch_graph(graph, stream)
        driver.launch_graph(graph, stream)
        driver.settle(stream)
        orders |= {"".join(log[:4]), "".join(log[4:])}
        log.clear()
    assert orders == {"abcd", "acbd"}


def test_graph_never_runs_beside_itself() -> None:
    driver, log = FakeDriver(seed=0), []
    graph, one = capture(driver, log)
    other = driver.create_stream()
    for stream in (one, other) * 5:
        driver.launch_graph(graph, stream)
    driver.settle(None)
    assert {"".join(log[at : at + 4]) for at in range(0, 40, 4)} <= {"abcd", "acbd"}


def test_external_event_keeps_its_state_until_a_replay_reaches_it() -> None:
    driver = FakeDriver(seed=0)
    stream, end = driver.create_stream(), driver.create_event()
    first, last = driver.create_event(timed=True), driver.create_event(timed=True)
    driver.begin_capture(stream)
    driver.record(first, stream, external=True)
    driver.launch(stream, lambda: None)
    driver.record(last, stream, external=True)
    graph = driver.end_capture(stream)
    with pytest.raises(DriverError, match="has not happened"):
        driver.seconds(first, last)
    for seconds in (1.0, 1.0):
        driver.launch_graph(graph, stream)
        driver.record(end, stream)
        driver.synchronize(end)
        assert driver.seconds(first, last) == pytest.approx(1e-6)
        driver.time.wait(driver.time.now() + seconds)
    driver.destroy_event(first)
    with pytest.raises(DriverError, match="no event"):
        driver.launch_graph(graph, stream)


@pytest.mark.parametrize("late", [True, False])
def test_kernel_that_fails_poisons_the_device(late: bool) -> None:
    driver = FakeDriver(seed=0 if late else None)
    context = driver.create_context((0,)) if driver.split(8) else 0
    stream, event = driver.create_stream(context), driver.create_event()
    graph, other = capture(driver, [])
    driver.launch_graph(graph, other)
    driver.record(event, stream)
    driver.fault(2, "an illegal memory access")

    def run() -> None:
        driver.launch(stream, lambda: None)
        driver.launch(stream, lambda: None)
        driver.record(event, stream)
        driver.synchronize(event)

    with pytest.raises(DriverError, match="an illegal memory access") as caught:
        run()
    assert caught.value.sticky
    assert caught.value.call == ("synchronize" if late else "launch")
    for call in (lambda: driver.create_event(), lambda: driver.launch(stream, print), lambda: driver.happened(event)):
        with pytest.raises(DriverError, match="an illegal memory access") as caught:
            call()
        assert caught.value.sticky
    driver.destroy_graph(graph)
    for handle in sorted(driver.live["stream"]):
        driver.destroy_stream(handle)
    for handle in sorted(driver.live["event"]):
        driver.destroy_event(handle)
    driver.destroy_context(context)
    assert not any(driver.live.values())


def test_error_of_a_call_is_raised_as_it_is_where_the_real_driver_would_call_it() -> None:
    driver = FakeDriver()
    x, stream = floats(driver), driver.create_stream()
    with pytest.raises(RuntimeError, match="shape") as caught:
        driver.launch(stream, lambda: x.view(3))
    assert not isinstance(caught.value, DriverError)
    driver.launch(stream, lambda: x.fill_(1))
    driver.settle(stream)
    assert float(x[0]) == 1


def test_chosen_call_fails_and_a_destroy_does_so_after_its_work() -> None:
    driver = FakeDriver(fail={"create_event": 2, "destroy_event": 1})
    driver.fail_at("wait", 0, DeviceMemoryError("mine"))
    stream, event = driver.create_stream(), driver.create_event()
    with pytest.raises(DriverError, match="create_event"):
        driver.create_event()
    assert driver.live["event"] == {event}
    for _ in range(2):
        with pytest.raises(DeviceMemoryError, match="mine"):
            driver.wait(stream, event)
    with pytest.raises(DriverError, match="destroy_event"):
        driver.destroy_event(event)
    assert driver.live["event"] == set()
    assert (driver.count("create_event"), driver.count("wait"), driver.count()) == (2, 2, 6)
    assert driver.calls[-2:] == [("wait", stream, event), ("destroy_event", event)]


def test_nth_call_of_any_method_fails() -> None:
    driver = FakeDriver()
    driver.fail_at("", 2, DriverError("lost", sticky=True))
    stream = driver.create_stream()
    with pytest.raises(DriverError, match="lost"):
        driver.create_event()
    with pytest.raises(DriverError, match="lost"):
        driver.create_event()
    driver.destroy_stream(stream)


def refusals() -> dict[str, tuple[str, Callable[[FakeDriver, int, int, int], object]]]:
    """By name: the message, and a call that is refused, of a split driver, a stream on a context, and an event."""

    def doubly(driver: FakeDriver, destroy: str, handle: int) -> None:
        getattr(driver, destroy)(handle)
        getattr(driver, destroy)(handle)

    def begun(driver: FakeDriver, stream: int, *then: Callable[[], object]) -> None:
        driver.begin_capture(stream)
        for call in then:
            call()

    def unjoined(driver: FakeDriver, stream: int, event: int) -> None:
        driver.begin_capture(stream)
        other = driver.create_stream()
        driver.record(event, stream)
        driver.wait(other, event)
        driver.launch(other, lambda: None)
        driver.end_capture(stream)

    def beyond(driver: FakeDriver, stream: int, event: int) -> None:
        driver.begin_capture(stream)
        driver.record(event, stream)
        driver.end_capture(stream)
        driver.wait(driver.create_stream(), event)

    def running(driver: FakeDriver, stream: int) -> None:
        driver.begin_capture(stream)
        driver.launch(stream, lambda: None)
        graph = driver.end_capture(stream)
        driver.launch_graph(graph, stream)
        driver.destroy_graph(graph)

    def broken(driver: FakeDriver, stream: int) -> None:
        driver.begin_capture(stream)
        driver.fail_at("launch")
        with pytest.raises(DriverError):
            driver.launch(stream, lambda: None)
        driver.end_capture(stream)

    x = torch.zeros(4)
    return {
        "second split": ("split already", lambda d, c, s, e: d.split(16)),
        "unknown group": (r"groups \[16\]", lambda d, c, s, e: d.create_context((16,))),
        "no group": (r"groups \[\]", lambda d, c, s, e: d.create_context(())),
        "group twice": ("twice", lambda d, c, s, e: d.create_context((1, 1))),
        "context with streams": ("destroy them first", lambda d, c, s, e: d.destroy_context(c)),
        "stream of no context": ("no context 99", lambda d, c, s, e: d.create_stream(99)),
        "granted of no context": ("no context 99", lambda d, c, s, e: d.granted(99)),
        "stream twice": ("no stream", lambda d, c, s, e: doubly(d, "destroy_stream", s)),
        "event twice": ("no event", lambda d, c, s, e: doubly(d, "destroy_event", e)),
        "default stream": ("no stream 0", lambda d, c, s, e: d.destroy_stream(0)),
        "record of no event": ("no event 99", lambda d, c, s, e: d.record(99, s)),
        "wait of no stream": ("no stream 99", lambda d, c, s, e: d.wait(99, e)),
        "launch on no stream": ("no stream 99", lambda d, c, s, e: d.launch(99, print)),
        "untimed": ("not timed", lambda d, c, s, e: d.seconds(e, e)),
        "external": ("not captured", lambda d, c, s, e: d.record(e, s, external=True)),
        "shapes": ("shape", lambda d, c, s, e: d.copy(s, x, torch.zeros(3))),
        "dtypes": ("dtype", lambda d, c, s, e: d.copy(s, x, x.double())),
        "layouts": ("layout", lambda d, c, s, e: d.copy(s, x.view(2, 2), x.view(2, 2).t())),
        "probe": ("int32", lambda d, c, s, e: d.probe(s, x)),
        "capture of default": ("default stream", lambda d, c, s, e: d.begin_capture(0)),
        "no capture": ("nothing is captured", lambda d, c, s, e: d.end_capture(s)),
        "two captures": ("going on", lambda d, c, s, e: begun(d, s, lambda: d.begin_capture(s))),
        "captured stream": ("end that", lambda d, c, s, e: begun(d, s, lambda: d.destroy_stream(s))),
        "wait for no record": ("not recorded in this", lambda d, c, s, e: begun(d, s, lambda: d.wait(s, e))),
        "host wait": ("host cannot", lambda d, c, s, e: begun(d, s, lambda: d.synchronize(e))),
        "host query": ("host cannot", lambda d, c, s, e: begun(d, s, lambda: d.happened(e))),
        "memory": ("no memory", lambda d, c, s, e: begun(d, s, lambda: d.allocate(8))),
        "default joins": ("default", lambda d, c, s, e: begun(d, s, lambda: d.record(e, s), lambda: d.wait(0, e))),
        "unjoined": ("were not joined", lambda d, c, s, e: unjoined(d, s, e)),
        "other capture": ("another capture", lambda d, c, s, e: beyond(d, s, e)),
        "no graph": ("no graph 99", lambda d, c, s, e: d.launch_graph(99, s)),
        "running graph": ("running", lambda d, c, s, e: running(d, s)),
        "broken capture": ("invalid", lambda d, c, s, e: broken(d, s)),
    }


@pytest.mark.parametrize("name", refusals())
def test_driver_refuses(name: str) -> None:
    message, call = refusals()[name]
    driver = FakeDriver(seed=0)
    driver.split(8)
    context = driver.create_context((0, 3))
    stream, event = driver.create_stream(context), driver.create_event()
    with pytest.raises(DriverError, match=message) as caught:
        call(driver, context, stream, event)
    assert not caught.value.sticky
    assert caught.value.call == driver.calls[-1][0]


@pytest.mark.parametrize("sms", [4, 12, 140])
def test_split_keeps_to_the_granularity(sms: int) -> None:
    with pytest.raises(DriverError, match=f"groups of {sms} SMs"):
        FakeDriver().split(sms)


def test_partitions_are_disjoint_sets_of_sms_and_may_be_granted_smaller() -> None:
    driver = FakeDriver(grants=(8,) * 14 + (6,))
    assert driver.resource() == (132, 8, 8)
    assert driver.split(8) == (8,) * 14 + (6,)
    one, two = driver.create_context((0, 2)), driver.create_context((14,))
    assert (driver.granted(one), driver.granted(two)) == (16, 6)
    seen = driver.allocate(4 * 264).view(torch.int32)
    found = []
    for stream in (driver.create_stream(one), driver.create_stream(two), driver.create_stream()):
        driver.probe(stream, seen)
        driver.settle(stream)
        found.append(set(seen.tolist()))
    assert found == [{*range(8), *range(16, 24)}, set(range(112, 118)), set(range(132))]


def test_device_without_green_contexts_says_so() -> None:
    for call in (FakeDriver(green=False).resource, lambda: FakeDriver(green=False).split(8)):
        with pytest.raises(BackendError, match="green contexts") as caught:
            call()
        assert not isinstance(caught.value, DriverError)


def test_memory_ends_comes_back_and_begins_as_garbage() -> None:
    driver = FakeDriver(memory=100)
    x = driver.allocate(96)
    assert x.view(torch.float32).isnan().all()
    assert x.data_ptr() % 256 == 0
    with pytest.raises(DeviceMemoryError, match=r"8 bytes .* 4 are free"):
        driver.allocate(8)
    assert driver.allocate(1000, host=True).nbytes == 1000
    part = x[8:]
    del x
    assert driver.memory == 4, "a view keeps it"
    del part
    assert driver.allocate(100).nbytes == 100


def test_pinned_memory_that_is_freed_too_early_is_copied_as_garbage() -> None:
    for kept in (True, False):
        driver = FakeDriver(seed=1)
        staging, landed = floats(driver, host=True), floats(driver)
        staging.fill_(3)
        driver.copy(0, landed, staging)
        if not kept:
            del staging
        driver.settle()
        assert landed.isnan().all() != kept


def test_copies_are_told_by_direction() -> None:
    driver = FakeDriver()
    stream, device, host = driver.create_stream(), floats(driver), floats(driver, host=True)
    host.fill_(7)
    driver.copy(stream, device, host)
    driver.copy(stream, host[1:], device[1:])
    driver.copy(stream, device, torch.ones(4))
    assert driver.calls[-3:] == [("copy", stream, 16, "h2d"), ("copy", stream, 12, "d2h"), ("copy", stream, 16, "d2d")]
    assert (device.tolist(), host.tolist()) == ([1.0] * 4, [7.0] * 4)
