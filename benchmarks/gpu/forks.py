"""What it costs to fork work to several streams and to join them again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial

import torch

from benchmarks.gpu.places import device_of, on, streams
from benchmarks.gpu.timing import captured, device_seconds, events, host_seconds, interleave
from benchmarks.measure import Row, compared
from nanort.driver import Driver

WIDTHS = (2, 4, 8, 16)


def measure(driver: Driver, scale: float) -> Iterator[Row]:
    """A small kernel on each of 2 to 16 streams beside as many on one stream: host, device eager, device captured."""
    whole = on(device := device_of(driver), device.sms)
    x = torch.ones(max(WIDTHS), 32, device=driver.device)
    kernels = [partial(x[lane].add_, 1) for lane in range(max(WIDTHS))]
    with ExitStack() as stack:
        main, *lanes = stack.enter_context(streams(driver, *[whole] * (1 + max(WIDTHS))))
        start, *ends = stack.enter_context(events(driver, 1 + max(WIDTHS)))
        for width in WIDTHS:
            works = {
                "one stream": partial(_chain, driver, main, kernels[:width]),
                "forked": partial(_forked, driver, main, lanes, kernels[:width], start, ends),
            }
            graphs = {name: stack.enter_context(captured(driver, main, work)) for name, work in works.items()}
            variants: dict[str, Callable[[], float]] = {}
            for name, work in works.items():
                variants[f"{name}, host"] = partial(host_seconds, driver, main, work, 5)
                variants[f"{name}, device eager"] = partial(device_seconds, driver, main, work, 5)
                variants[f"{name}, device captured"] = partial(device_seconds, driver, main, graphs[name], 5)
            found = interleave(variants, scale)
            for how in ("host", "device eager", "device captured"):
                samples, against = found[f"forked, {how}"], found[f"one stream, {how}"]
                yield compared(f"fork to {width} streams and join, {how}", samples, "one stream", against, unit="s")


def _chain(driver: Driver, main: int, kernels: Sequence[Callable[[], object]]) -> None:
    for kernel in kernels:
        driver.launch(main, kernel)


def _forked(
    driver: Driver,
    main: int,
    lanes: Sequence[int],
    kernels: Sequence[Callable[[], object]],
    start: int,
    ends: Sequence[int],
) -> None:
    driver.record(start, main)
    for lane, kernel, end in zip(lanes, kernels, ends, strict=False):
        driver.wait(lane, start)
        driver.launch(lane, kernel)
        driver.record(end, lane)
        driver.wait(main, end)
