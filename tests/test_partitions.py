from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

import nanort as nr
from fake_driver import FakeDriver
from nanort.errors import BackendError, DriverError, PoisonedError
from nanort.partition import Group, Stream, split, streams, whole
from nanort.runtime.partitions import Partitions, partitions

H200 = nr.device("h200")
MEMORY, COMPUTE = split(H200, (88, 40))


def on(group: Group) -> Stream:
    return Stream(group.name, group)


def named(driver: FakeDriver, *methods: str) -> list[tuple[object, ...]]:
    return [call for call in driver.calls if call[0] in methods]


@pytest.fixture
def driver() -> Iterator[FakeDriver]:
    made = FakeDriver()
    yield made
    assert not any(made.live.values())


@pytest.mark.parametrize("seed", [None, 3])
def test_blocks_of_a_stream_run_on_the_sms_of_its_group(seed: int | None) -> None:
    parts = Partitions(FakeDriver(seed=seed))
    seen = [parts.smids(parts.stream(stream)) for stream in streams((MEMORY, COMPUTE), ("h2d",))]
    assert [len(sms) for sms in seen] == [88, 40, 132]
    assert seen[0] & seen[1] == set()
    assert (seen[0] | seen[1]) < seen[2]
    assert parts.granted == {MEMORY: 88, COMPUTE: 40}


def test_the_probe_waits_for_the_callers_stream_whose_memory_it_may_have_got(driver: FakeDriver) -> None:
    parts = Partitions(driver)
    handle = parts.stream(on(MEMORY))
    parts.smids(handle)
    ((_, event),) = named(driver, "destroy_event")
    assert named(driver, "record", "wait", "probe", "synchronize") == [
        ("record", event, 0, False), ("wait", handle, event), ("probe", handle, 4 * 132),
        ("record", event, handle, False), ("synchronize", event),
    ]  # fmt: skip
    parts.close()


def test_the_device_is_split_once_into_smallest_groups_and_contexts_stand_on_ranges_of_them(driver: FakeDriver) -> None:
    parts = Partitions(driver)
    for stream in streams((MEMORY, COMPUTE, MEMORY, whole(H200)), ("h2d", "d2h")):
        parts.stream(stream)
    assert named(driver, "split") == [("split", 8)]
    made = named(driver, "create_context", "create_stream")
    first, second = sorted(driver.live["context"])
    assert made == [
        ("create_context", tuple(range(11))), ("create_stream", first),
        ("create_context", tuple(range(11, 16))), ("create_stream", second),
        ("create_stream", first), ("create_stream", 0), ("create_stream", 0), ("create_stream", 0),
    ]  # fmt: skip
    parts.close()


def test_a_minimum_above_the_alignment_makes_the_groups_larger() -> None:
    driver = FakeDriver(sms=108, minimum=5, alignment=2)
    assert Partitions(driver).units == (6,) * 18


def test_streams_are_lent_to_one_owner_at_a_time_and_reused_on_the_same_sms_only(driver: FakeDriver) -> None:
    parts = Partitions(driver)
    first, second, other = parts.stream(on(MEMORY)), parts.stream(on(MEMORY)), parts.stream(on(COMPUTE))
    assert len({first, second, other}) == 3
    parts.release([second, other])
    renamed = Group("another name", MEMORY.sms, MEMORY.units)
    assert parts.stream(on(renamed)) == second
    assert parts.stream(on(renamed)) not in {first, second, other}
    assert parts.stream(Stream("h2d", None, "h2d")) != other
    assert len(named(driver, "create_context")) == 2
    parts.close()


def test_groups_of_different_schedules_may_overlap() -> None:
    parts = Partitions(FakeDriver())
    ours = parts.smids(parts.stream(on(MEMORY)))
    theirs = [parts.smids(parts.stream(on(group))) for group in split(H200, (64, 64))]
    assert [len(ours & sms) for sms in theirs] == [64, 24]


@pytest.mark.parametrize(
    ("device", "says"),
    [
        (nr.device("a100-80g"), r"a100-80g, 108 SMs in groups of \d, but this GPU has 132 in groups of 8"),
        (H200.with_(sm_granularity=2), "h200, 132 SMs in groups of 2, but"),
    ],
)
def test_a_schedule_for_another_gpu_is_refused_with_the_way_out(
    driver: FakeDriver, device: nr.Device, says: str
) -> None:
    with pytest.raises(BackendError, match=says) as refused:
        partitions(driver, device)
    assert "nr.Device.current()" in str(refused.value)
    assert partitions(driver, H200).units == (8,) * 16


@pytest.mark.parametrize(
    ("grants", "granted"), [((8,) * 10, 80), ((8,) * 10 + (6,) * 6, 86)], ids=["fewer groups", "smaller ones"]
)
def test_fewer_sms_than_planned_are_refused_with_the_way_out(grants: tuple[int, ...], granted: int) -> None:
    driver = FakeDriver(grants=grants)
    parts = Partitions(driver)
    with pytest.raises(BackendError, match=f"'g0' is planned for 88 SMs, but .* it {granted}: plan") as refused:
        parts.stream(on(MEMORY))
    assert "nr.Device.current()" in str(refused.value)
    assert not named(driver, "create_context")
    assert len(parts.smids(parts.stream(on(whole(H200))))) == 132


def test_what_a_context_has_is_read_back(driver: FakeDriver) -> None:
    driver.granted = lambda context: 82  # type: ignore[method-assign]
    parts = Partitions(driver)
    for _ in range(2):
        with pytest.raises(BackendError, match="planned for 88 SMs, but the driver grants it 82"):
            parts.stream(on(MEMORY))
    assert parts.granted == {MEMORY: 82}
    assert len(driver.live["context"]) == 1
    assert not driver.live["stream"]
    parts.close()


def test_without_green_contexts_streams_are_plain_and_one_line_says_so() -> None:
    driver = FakeDriver(green=False)
    parts = Partitions(driver)
    handles = [parts.stream(stream) for stream in streams((MEMORY, COMPUTE), ("h2d",))]
    assert len(set(handles)) == 3
    assert all(len(parts.smids(handle)) == 132 for handle in handles)
    assert parts.fallback.startswith("plain streams, each on all SMs: ")
    assert "green contexts" in parts.fallback
    assert "\n" not in parts.fallback
    assert (parts.granted, parts.units) == ({}, ())
    parts.check(H200.with_(sm_granularity=4))
    with pytest.raises(BackendError, match="108 SMs"):
        parts.check(nr.device("a100-80g"))
    assert Partitions(FakeDriver()).fallback == ""


@pytest.mark.parametrize("error", [DriverError("no", call="resource"), PoisonedError("dead")], ids=["failed", "dead"])
@pytest.mark.parametrize("method", ["resource", "split"])
def test_a_failure_is_no_reason_to_fall_back(method: str, error: BackendError) -> None:
    driver = FakeDriver()
    driver.fail_at(method, 1, error)
    with pytest.raises(type(error)) as raised:
        Partitions(driver).stream(on(MEMORY))
    assert raised.value is error


def use(parts: Partitions) -> None:
    """Everything that partitions do but closing."""
    handles = [parts.stream(stream) for stream in streams((MEMORY, COMPUTE, whole(H200, 2)), ("h2d", "d2h"))]
    for handle in handles[:2]:
        parts.smids(handle)
    parts.release(handles)
    parts.stream(on(COMPUTE))


def life(driver: FakeDriver) -> None:
    with closing(partitions(driver)) as parts:
        use(parts)


def counted() -> list[tuple[str, int]]:
    """Every call of every method, by its number, of one life."""
    driver = FakeDriver()
    life(driver)
    methods = dict.fromkeys(str(call[0]) for call in driver.calls)
    return [(method, nth) for method in methods for nth in range(1, driver.count(method) + 1)]


@pytest.mark.parametrize("sticky", [False, True], ids=["once", "sticky"])
@pytest.mark.parametrize(("method", "nth"), counted())
def test_whatever_call_fails_nothing_leaks_and_the_error_names_it(method: str, nth: int, sticky: bool) -> None:
    driver = FakeDriver()
    driver.fail_at(method, nth, DriverError(f"{method} failed", call=method, sticky=sticky))
    with pytest.raises(DriverError, match=f"{method} failed") as raised:
        life(driver)
    assert (raised.value.call, raised.value.__context__) == (method, None)
    assert not any(driver.live.values())
    if not sticky:
        life(driver)
        assert not any(driver.live.values())


@pytest.mark.parametrize("method", ["create_context", "granted", "create_stream"])
def test_asking_again_after_a_failure_goes_on_from_there(driver: FakeDriver, method: str) -> None:
    parts = Partitions(driver)
    driver.fail_at(method, 1)
    with pytest.raises(DriverError, match=method):
        parts.stream(on(MEMORY))
    assert len(parts.smids(parts.stream(on(MEMORY)))) == 88
    assert [len(driver.live[kind]) for kind in ("context", "stream")] == [1, 1]
    parts.close()


def test_the_faults_above_cover_every_call() -> None:
    assert {"resource", "split", "create_context", "granted", "create_stream", "allocate", "create_event", "record"} | {
        "wait", "probe", "synchronize", "destroy_event", "destroy_stream", "destroy_context"
    } == {method for method, _ in counted()}  # fmt: skip


def test_close_destroys_streams_before_their_contexts_and_what_is_lent(driver: FakeDriver) -> None:
    parts = Partitions(driver)
    use(parts)
    made = len(driver.calls)
    contexts, ours = set(driver.live["context"]), set(driver.live["stream"])
    parts.close()
    parts.close()
    destroyed = [handle for _, handle in driver.calls[made:]]
    assert len(destroyed) == len(contexts) + len(ours)
    assert set(destroyed) == contexts | ours
    assert not any(driver.live.values())


def test_a_failure_to_destroy_keeps_nothing_else_from_it() -> None:
    driver = FakeDriver()
    parts = Partitions(driver)
    use(parts)
    driver.fail_at("destroy_stream")
    driver.fail_at("destroy_context")
    with pytest.raises(DriverError, match="destroy"):
        parts.close()
    assert not any(driver.live.values())


def test_after_close_all_is_made_anew_but_the_split(driver: FakeDriver) -> None:
    parts = Partitions(driver)
    lent = parts.stream(on(MEMORY))
    parts.close()
    parts.release([lent])
    assert parts.granted == {}
    assert len(parts.smids(parts.stream(on(MEMORY)))) == 88
    assert len(named(driver, "split")) == 1
    parts.close()


def test_executors_of_a_driver_share_its_partitions(driver: FakeDriver) -> None:
    other = FakeDriver()
    assert partitions(driver) is partitions(driver, H200)
    assert partitions(other) is not partitions(driver)


def test_a_failure_to_split_leaves_the_whole_device_and_may_be_overcome(driver: FakeDriver) -> None:
    driver.fail_at("split", 1)
    parts = Partitions(driver)
    parts.check(H200)
    assert len(parts.smids(parts.stream(on(whole(H200))))) == 132
    with pytest.raises(DriverError, match="split"):
        parts.stream(on(MEMORY))
    assert len(parts.smids(parts.stream(on(MEMORY)))) == 88
    parts.close()
