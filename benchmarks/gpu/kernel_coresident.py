"""Products beside decode attention on the same SMs: against both in turn, and against the best partition of the SMs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np

from benchmarks.gpu import kernel_decode, kernel_linear
from benchmarks.gpu.calls import Calls
from benchmarks.gpu.contests import Found, arena, few
from benchmarks.gpu.paged import Cache, Heads
from benchmarks.gpu.places import device_of, on, streams
from benchmarks.gpu.timing import Work, beside, captured, device_seconds, finish, interleave, sized, times_for
from benchmarks.measure import Row, Samples, Spread, compared
from nanort.driver import Driver

PRODUCT = kernel_linear.Sizes(2048, 14336, 4096)
ATTENTION = kernel_decode.Sizes(670, 1280)
SPLITS = (48, 64, 32, 80, 24, 40)
"""SMs of attention; the others of the partition are left to products."""
SECONDS, MOST = 6e-3, 100
"""What each side takes alone, and the calls that it makes in that time at most."""
IN_TURN = "in turn"


def measure(driver: Driver, scale: float) -> Iterator[Row]:
    """Each side alone, then as many calls of both as take equally long, in turn and side by side."""
    sizes = ATTENTION.shrunk(scale)
    cache = Cache(driver, Heads.llama(scale), sum(sizes.lengths))
    sides = (
        kernel_linear.calls_of(driver, scale, PRODUCT.shrunk(scale)),
        kernel_decode.calls_of(driver, scale, cache, sizes),
    )
    with arena(driver, scale) as here:
        alone = [here.contest("alone", calls, {}, here.counts[:1]) for calls in sides]
    for found in alone:
        yield from found.rows()
    if all(found.seconds for found in alone):
        yield from _together(driver, scale, sides, alone)


def _together(driver: Driver, scale: float, sides: Sequence[Calls], alone: Sequence[Found]) -> Iterator[Row]:
    """Every pair of kernels on all SMs at once; on partitions the pair that is fastest alone."""
    device = device_of(driver)
    whole, grain, usable = on(device, device.sms), device.sm_granularity, device.partitionable_sms
    splits = few([sms for sms in SPLITS if sms < usable], scale)
    groups = [stream for sms in splits for stream in (on(device, sms), on(device, usable - sms, sms // grain))]
    product, attention = (found.best(found.kernels, device.sms) for found in alone)
    everyone = {**sides[0].kernels, **sides[1].kernels}
    n, m = (
        min(sized(MOST, scale), times_for(SECONDS, float(np.median(found.seconds[name, device.sms]))))
        for found, name in zip(alone, (product, attention), strict=True)
    )
    with ExitStack() as stack:
        main, dense, memory, *handles = stack.enter_context(streams(driver, *[whole] * 3, *groups))
        graph = partial(_graph, driver, stack)

        def both(one: tuple[str, int, int], other: tuple[str, int, int]) -> Callable[[], float]:
            """Seconds until products and attention are done: which kernel, on which stream, on how many SMs."""
            works = {
                handle: graph(handle, everyone[name](sms), times)
                for (name, handle, sms), times in ((other, m), (one, n))
            }
            return lambda: max(beside(driver, main, works))

        turns = [graph(main, everyone[name](device.sms), times) for name, times in ((product, n), (attention, m))]
        same = {
            f"{one} beside {other}": both((one, dense, device.sms), (other, memory, device.sms))
            for one, _ in alone[0].seconds
            for other, _ in alone[1].seconds
        }
        apart = {
            f"{product} on {usable - sms} SMs, {attention} on {sms}": both(
                (product, there, usable - sms), (attention, here, sms)
            )
            for sms, here, there in zip(splits, handles[::2], handles[1::2], strict=True)
        }
        in_turn = partial(device_seconds, driver, main, lambda: [work() for work in turns])
        found = interleave({IN_TURN: in_turn, **same, **apart}, scale)
    yield Row(f"{n} x {product}, {m} x {attention}, {IN_TURN}", "us", Spread.of(1e6 * found[IN_TURN]))
    for name in (*same, *apart):
        yield compared(name, 1e6 * found[name], IN_TURN, 1e6 * found[IN_TURN], unit="us")
    best, partition = _fastest(found, same), _fastest(found, apart)
    told = f"the best on the same SMs, {best}"
    yield compared(told, 1e6 * found[best], f"the best partition, {partition}", 1e6 * found[partition], unit="us")


def _fastest(found: Mapping[str, Samples], names: Iterable[str]) -> str:
    return min(names, key=lambda name: float(np.median(found[name])))


def _graph(driver: Driver, stack: ExitStack, handle: int, calls: Sequence[Work], times: int) -> Work:
    """So many calls as one graph, on tensors that are used in turn."""

    def work() -> None:
        for at in range(times):
            driver.launch(handle, calls[at % len(calls)])

    finish(driver, 0)  # tensors were filled there
    for call in calls:
        driver.launch(handle, call)  # compiles and loads, which no capture can
    finish(driver, handle)
    return stack.enter_context(captured(driver, handle, work))
