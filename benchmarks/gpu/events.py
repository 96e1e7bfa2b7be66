"""What an event recorded and waited for costs, the host and the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.gpu.places import device_of, on, streams
from benchmarks.gpu.timing import captured, device_seconds, events, finish, host_seconds, interleave, sized
from benchmarks.measure import Row, Spread, compared
from nanort.driver import Driver

PLAIN, LAUNCH = "record, untimed", "launch of a small kernel"


def measure(driver: Driver, scale: float) -> Iterator[Row]:
    """The host's calls, then a chain of small kernels that changes streams at every one of them."""
    whole = on(device := device_of(driver), device.sms)
    count = sized(200, scale, 4)
    with streams(driver, whole, whole) as (here, there), events(driver, 1) as (plain,):
        with events(driver, 1, timed=True) as (timed,):
            calls: dict[str, Callable[[], None]] = {
                PLAIN: partial(driver.record, plain, here),
                "record, timed": partial(driver.record, timed, here),
                "wait": partial(driver.wait, there, plain),
                LAUNCH: partial(driver.launch, here, _kernel(driver)),
            }
            variants = {name: partial(host_seconds, driver, here, call, count) for name, call in calls.items()}
            found = interleave(variants, scale)
            finish(driver, there)
        yield Row(f"host: {LAUNCH}", "s", Spread.of(found[LAUNCH]))
        for name in list(calls)[:-1]:
            yield compared(f"host: {name}", found[name], LAUNCH, found[LAUNCH], unit="s")
        yield from _hops(driver, scale, (here, there), count)


def _hops(driver: Driver, scale: float, pair: tuple[int, int], count: int) -> Iterator[Row]:
    """Seconds of the device a kernel, on one stream and on two in turn, captured as one graph."""
    call = _kernel(driver)

    def stay() -> None:
        for _ in range(count):
            driver.launch(pair[0], call)

    def hop() -> None:
        for at in range(count):
            driver.launch(pair[at % 2], call)
            driver.record(passed[at], pair[at % 2])
            driver.wait(pair[(at + 1) % 2], passed[at])

    with events(driver, count) as passed, captured(driver, pair[0], stay) as one, captured(driver, pair[0], hop) as two:
        graphs = {"one stream": one, "two streams in turn": two}
        eager = {f"{name}, eager": work for name, work in zip(graphs, (stay, hop), strict=True)}
        variants = {
            name: partial(device_seconds, driver, pair[0], work, times)
            for works, times in ((graphs, 3), (eager, 1))
            for name, work in works.items()
        }
        found = interleave(variants, scale)
    for how in ("", ", eager"):
        base, other = (f"{name}{how}" for name in graphs)
        yield Row(f"device: a small kernel in a chain, {base}", "s", Spread.of(found[base] / count))
        yield compared(
            f"device: a small kernel in a chain, {other}", found[other] / count, base, found[base] / count, unit="s"
        )


def _kernel(driver: Driver) -> Callable[[], object]:
    x = torch.ones(32, device=driver.device)
    return lambda: x.add_(1)
