"""Bandwidth between host and device: each way, both at once, pinned and pageable, over sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.gpu.places import D2H, H2D, device_of, on, streams
from benchmarks.gpu.timing import beside, device_seconds, interleave, rate, repeat, sized
from benchmarks.measure import Row, Spread
from nanort.driver import Driver

KIB, MIB = 1 << 10, 1 << 20
SIZES = (64 * KIB, MIB, 32 * MIB, 256 * MIB)
MOVED = 256 * MIB
"""Bytes of one sample at least, in copies that are queued one after another, 100 at most."""


def measure(driver: Driver, scale: float) -> Iterator[Row]:
    """Every size, largest first: it is the baseline of the others."""
    whole = on(device := device_of(driver), device.sms)
    sizes = [sized(size, scale, 64) for size in sorted(SIZES, reverse=True)]
    with streams(driver, whole, H2D, D2H) as (main, down, up):
        host = {kind: [_bytes(driver, kind, sizes[0]) for _ in range(2)] for kind in ("pinned", "pageable")}
        there = [torch.empty(sizes[0], dtype=torch.uint8, device=driver.device) for _ in range(2)]
        largest: dict[str, float] = {}
        for size in sizes:
            times = min(100, max(1, sized(MOVED, scale) // size))
            variants: dict[str, Callable[[], float]] = {}
            for kind, (source, target) in host.items():
                h2d = partial(driver.copy, down, there[0][:size], source[:size])
                d2h = partial(driver.copy, up, target[:size], there[1][:size])
                variants[f"H2D, {kind}"] = partial(device_seconds, driver, down, h2d, times)
                variants[f"D2H, {kind}"] = partial(device_seconds, driver, up, d2h, times)
                if kind == "pinned":
                    both = {down: partial(repeat, h2d, times), up: partial(repeat, d2h, times)}
                    variants["both at once, pinned"] = lambda both=both, n=times: max(beside(driver, main, both)) / n
            found = interleave(variants, scale)
            for name, seconds in found.items():
                bytes_, way = size, name.partition(",")[0]
                told = f"{name}, {size // KIB:,} KiB a copy"
                if name.startswith("both"):
                    turns = found["H2D, pinned"] + found["D2H, pinned"]
                    yield rate(told, 2e-9 * size, "GB/s", seconds, "one after the other", turns)
                elif name.endswith("pageable"):
                    yield rate(told, 1e-9 * bytes_, "GB/s", seconds, "pinned", found[f"{way}, pinned"])
                else:
                    rates = 1e-9 * size / seconds
                    best = largest.setdefault(name, Spread.of(rates).p50)
                    yield Row(told, "GB/s", Spread.of(rates), "the largest size", Spread.of(rates / best))


def _bytes(driver: Driver, kind: str, size: int) -> torch.Tensor:
    """Random bytes of the host."""
    made = driver.allocate(size, host=True) if kind == "pinned" else torch.empty(size, dtype=torch.uint8)
    return made.random_(0, 256)
