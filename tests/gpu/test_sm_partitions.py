from __future__ import annotations

from collections.abc import Sequence

import pytest
import runs
import torch

import nanort as nr
from nanort.driver import Driver
from nanort.partition import Stream, split, whole
from nanort.runtime.partitions import partitions

BLOCKS_PER_SM = 32


def streams(device: nr.Device, sizes: Sequence[int]) -> list[Stream]:
    return [Stream(group.name, group) for group in split(device, sizes)]


def probed(
    driver: Driver, handles: Sequence[int], seen: Sequence[torch.Tensor], start: int, ends: Sequence[int]
) -> None:
    """A probe on every stream at once, after the first of them and before what comes on it."""
    main, *others = handles
    driver.record(start, main)
    for other in others:
        driver.wait(other, start)
    for handle, found in zip(handles, seen, strict=True):
        driver.probe(handle, found)
    for other, end in zip(others, ends, strict=True):
        driver.record(end, other)
        driver.wait(main, end)


@pytest.mark.parametrize("how", ["eager", "captured"])
@pytest.mark.parametrize("sizes", [(64, 64), (8, 120), (16, 24, 32, 56), (8,) * 16])
def test_partitions_side_by_side_use_sms_of_their_own(
    driver: Driver, device: nr.Device, sizes: tuple[int, ...], how: str
) -> None:
    pool = partitions(driver, device)
    handles = [pool.stream(stream) for stream in streams(device, sizes)]
    seen = [torch.empty(BLOCKS_PER_SM * device.sms, dtype=torch.int32, device=driver.device) for _ in sizes]
    start, *ends = (driver.create_event() for _ in sizes)
    runs.settle(driver)
    probed(driver, handles, seen, start, ends)  # kernels are compiled when they are first used
    graph = 0
    if how == "captured":
        driver.record(start, handles[0])
        driver.synchronize(start)
        for found in seen:
            found.fill_(-1)
        runs.settle(driver)
        driver.begin_capture(handles[0])
        probed(driver, handles, seen, start, ends)
        graph = driver.end_capture(handles[0])
        driver.launch_graph(graph, handles[0])
    driver.record(start, handles[0])
    driver.synchronize(start)
    used = [frozenset(found.tolist()) for found in seen]
    assert all(0 < len(mine) <= size for mine, size in zip(used, sizes, strict=True)), used
    assert sum(map(len, used)) == len(frozenset().union(*used)), used
    assert frozenset().union(*used) <= set(range(device.sms))
    if graph:
        driver.destroy_graph(graph)
    for event in (start, *ends):
        driver.destroy_event(event)
    pool.release(handles)


def test_a_partition_uses_all_of_its_sms_and_the_whole_device_all_there_are(driver: Driver, device: nr.Device) -> None:
    pool = partitions(driver, device)
    small, large = (pool.stream(stream) for stream in streams(device, (8, 64)))
    everything = pool.stream(Stream("whole", whole(device)))
    assert len(pool.smids(small)) == 8
    assert len(pool.smids(large)) == 64
    assert pool.smids(everything) == frozenset(range(device.sms))
    pool.release((small, large, everything))
