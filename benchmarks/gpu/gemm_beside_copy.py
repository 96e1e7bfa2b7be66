"""How a matrix product and a copy slow each other: over PCIe on all SMs, within device memory on SMs of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial

import torch

from benchmarks.gpu.places import D2H, H2D, device_of, on, streams
from benchmarks.gpu.timing import (
    Work,
    beside,
    captured,
    device_seconds,
    interleave,
    random_tensor,
    repeat,
    sized,
    times_for,
)
from benchmarks.measure import Row, compared
from nanort.driver import Driver

ORDER, CHUNK, LARGE = 4096, 32 << 20, 512 << 20
SECONDS = 0.01
"""What each side takes alone, so that one runs beside the other from start to end."""


def measure(driver: Driver, scale: float) -> Iterator[Row]:
    """Each mix in turn; alone and side by side within one round."""
    device = device_of(driver)
    whole = on(device, device.sms)
    order, chunk = sized(ORDER, scale, 64), sized(CHUNK, scale, 64)
    x, weight = random_tensor(driver, order, order), random_tensor(driver, order, order)
    gemm = partial(torch.mm, x, weight, out=torch.empty_like(x))
    here = torch.empty(chunk, dtype=torch.uint8, device=driver.device).random_(0, 256)
    host = driver.allocate(chunk, host=True).random_(0, 256)
    with streams(driver, whole, whole, H2D, D2H) as (main, dense, down, up):
        down_copy, up_copy = partial(driver.copy, down, here, host), partial(driver.copy, up, host, here)
        product = partial(driver.launch, dense, gemm)
        yield from _mixed(driver, scale, main, {"GEMM": (dense, product), "H2D copy": (down, down_copy)})
        yield from _mixed(driver, scale, main, {"GEMM": (dense, product), "D2H copy": (up, up_copy)})
    memory_sms = device.partitionable_sms // 3 // device.sm_granularity * device.sm_granularity
    first = memory_sms // device.sm_granularity
    here = torch.empty(sized(LARGE, scale, 64), dtype=torch.uint8, device=driver.device).random_(0, 256)
    there = torch.empty_like(here)  # both far larger than L2
    groups = on(device, device.partitionable_sms - memory_sms, first), on(device, memory_sms)
    with streams(driver, whole, *groups) as (main, dense, memory):
        move = partial(driver.launch, memory, partial(torch.bitwise_not, here, out=there))
        product = partial(driver.launch, dense, gemm)
        names = f"GEMM on {groups[0].sms} SMs", f"copy kernel on {groups[1].sms} SMs"
        yield from _mixed(driver, scale, main, dict(zip(names, ((dense, product), (memory, move)), strict=True)))


def _mixed(driver: Driver, scale: float, main: int, sides: Mapping[str, tuple[int, Work]]) -> Iterator[Row]:
    works: dict[int, Work] = {}
    variants: dict[str, Callable[[], float | list[float]]] = {}
    with ExitStack() as held:
        for name, (stream, work) in sides.items():
            alone = min(device_seconds(driver, stream, work, 3) for _ in range(3))
            many = partial(repeat, work, times_for(SECONDS * scale, alone))
            # As one graph, so that neither side waits for the host.
            works[stream] = held.enter_context(captured(driver, stream, many))
            variants[name] = partial(device_seconds, driver, stream, works[stream])
        found = interleave({**variants, "both": partial(beside, driver, main, works)}, scale)
    for name, other, seconds in zip(sides, reversed(list(sides)), found["both"].T, strict=True):
        yield compared(f"{name} beside {other}", seconds, "alone on the same SMs", found[name], unit="s")
