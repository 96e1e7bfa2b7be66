"""Where benchmarks run: the device of a driver, sets of its SMs, and streams on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import nanort as nr
from benchmarks.gpu.timing import finish
from nanort import partition
from nanort.driver import Driver
from nanort.runtime.partitions import partitions

H2D, D2H = (partition.Stream(engine, None, engine) for engine in partition.ENGINES)


def device_of(driver: Driver) -> nr.Device:
    """The GPU; an H200 where the driver is a fake, whose values live on the CPU."""
    return nr.device("h200") if driver.device == "cpu" else nr.Device.current()


def on(device: nr.Device, sms: int, first: int = 0) -> partition.Stream:
    """A stream on ``sms`` SMs, the ``first`` groups left out; on all of them where they are as many."""
    if sms == device.sms:
        return partition.Stream(partition.WHOLE, partition.whole(device))
    units = (first, first + sms // device.sm_granularity)
    return partition.Stream(f"{sms} SMs", partition.Group(f"{sms} SMs", sms, units))


def sm_counts(device: nr.Device, scale: float) -> list[int]:
    """The sizes of groups, least to largest, and all SMs; at a small scale only a few of them."""
    groups = range(device.sm_granularity, device.partitionable_sms + 1, device.sm_granularity)
    return [*(groups if scale >= 1 else groups[:: len(groups) // 2]), device.sms]


@contextmanager
def streams(driver: Driver, *wanted: partition.Stream) -> Iterator[list[int]]:
    """Streams of the driver, idle when they are given back."""
    pool, handles = partitions(driver), list[int]()
    try:
        handles += (pool.stream(stream) for stream in wanted)
        yield handles
        for handle in handles:
            finish(driver, handle)
    finally:
        pool.release(handles)
