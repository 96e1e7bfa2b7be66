"""What a green context costs to make, and a stream on it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from time import perf_counter

from benchmarks.gpu.timing import interleave
from benchmarks.measure import Row, Spread, compared
from nanort.driver import Driver
from nanort.runtime.partitions import partitions

PLAIN = "a stream on the whole device"


def measure(driver: Driver, scale: float) -> Iterator[Row]:
    """The split of the device, once; contexts on the smallest group, on half of them and on all."""
    began = perf_counter()
    granted = partitions(driver).units
    split = Spread.of([perf_counter() - began])
    yield Row(f"{sum(granted)} of {driver.facts().sms} SMs split into {len(granted)} groups, once", "s", split)
    groups = {count: f"{sum(granted[:count])} SMs" for count in (1, len(granted) // 2, len(granted))}
    variants = {name: lambda count=count: _made(driver, count) for count, name in groups.items()}
    found = interleave({**variants, PLAIN: lambda: _plain(driver)}, scale, rounds=50)
    yield Row(PLAIN, "s", Spread.of(found[PLAIN]))
    for name in groups.values():
        context, stream, destroyed = found[name].T
        yield compared(f"a green context on {name}", context, PLAIN, found[PLAIN], unit="s")
        yield compared(f"a stream on it, {name}", stream, PLAIN, found[PLAIN], unit="s")
        yield compared(f"both destroyed, {name}", destroyed, PLAIN, found[PLAIN], unit="s")


def _made(driver: Driver, groups: int) -> list[float]:
    times = [perf_counter()]
    context = driver.create_context(range(groups))
    times.append(perf_counter())
    stream = driver.create_stream(context)
    times.append(perf_counter())
    driver.destroy_stream(stream)
    driver.destroy_context(context)
    times.append(perf_counter())
    return [after - before for before, after in pairwise(times)]


def _plain(driver: Driver) -> float:
    began = perf_counter()
    stream = driver.create_stream()
    seconds = perf_counter() - began
    driver.destroy_stream(stream)
    return seconds
