"""Bandwidth between host and device: each way, both at once, pinned and pageable, over sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch

from benchmarks.gpu.places import D2H, H2D, device_of, on, streams
from benchmarks.gpu.timing import Work, beside, device_seconds, interleave, rate, repeat, sized
from benchmarks.measure import Row, Samples
from nanort.driver import Driver

KIB, MIB = 1 << 10, 1 << 20
SIZES = (256 * MIB, 32 * MIB, MIB, 64 * KIB)
MOVED, MOST = 256 * MIB, 100
"""Bytes of a sample, in copies of one size queued one after another; that many of them at most."""


def measure(driver: Driver, scale: float) -> Iterator[Row]:
    """Every size, pageable memory beside pinned, both ways at once beside one after the other."""
    whole = on(device := device_of(driver), device.sms)
    sizes = [sized(size, scale, 64) for size in SIZES]
    here = [torch.empty(sizes[0], dtype=torch.uint8, device=driver.device) for _ in range(2)]
    pinned, pageable = ([_bytes(driver, kind, sizes[0]) for _ in range(2)] for kind in (True, False))
    with streams(driver, whole, H2D, D2H) as (main, down, up):
        for size in sizes:
            times = min(MOST, sized(MOVED, scale, size) // size)
            variants: dict[str, Callable[[], float]] = {}
            for kind, (source, target) in (("pinned", pinned), ("pageable", pageable)):
                h2d = partial(driver.copy, down, here[0][:size], source[:size])
                d2h = partial(driver.copy, up, target[:size], here[1][:size])
                variants[f"H2D, {kind}"] = partial(device_seconds, driver, down, h2d, times)
                variants[f"D2H, {kind}"] = partial(device_seconds, driver, up, d2h, times)
                if kind == "pinned":
                    both = {down: partial(repeat, h2d, times), up: partial(repeat, d2h, times)}
                    variants["both at once"] = partial(_longer, driver, main, both, times)
            yield from _rows(interleave(variants, scale), size)


def _longer(driver: Driver, main: int, works: Mapping[int, Work], times: int) -> float:
    """Seconds until both directions are done, for each of their copies."""
    return max(beside(driver, main, works)) / times


def _rows(found: dict[str, Samples], size: int) -> Iterator[Row]:
    of = f"of {size / KIB:,} KiB"
    for way in ("H2D", "D2H"):
        pinned, pageable = found[f"{way}, pinned"], found[f"{way}, pageable"]
        yield rate(f"{way} {of}, pinned", 1e-9 * size, "GB/s", pinned)
        yield rate(f"{way} {of}, pageable", 1e-9 * size, "GB/s", pageable, "pinned", pinned)
    turns = found["H2D, pinned"] + found["D2H, pinned"]
    yield rate(f"both ways {of}, pinned", 2e-9 * size, "GB/s", found["both at once"], "one after the other", turns)


def _bytes(driver: Driver, pinned: bool, size: int) -> torch.Tensor:
    """Random bytes of the host."""
    made = driver.allocate(size, host=True) if pinned else torch.empty(size, dtype=torch.uint8)
    return made.random_(0, 256)
