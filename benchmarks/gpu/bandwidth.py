"""Bandwidth of device memory against the number of SMs, and how many of them saturate it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import numpy as np
import torch

from benchmarks.gpu.places import device_of, on, sm_counts, streams
from benchmarks.gpu.timing import device_seconds, interleave, random_tensor, rate, sized
from benchmarks.measure import Row, Spread
from nanort.driver import Driver

WHOLE = "all SMs"
SATURATED = 0.95
"""The share of all SMs' bandwidth from which on a group saturates memory."""


def measure(driver: Driver, scale: float) -> Iterator[Row]:
    """An elementwise kernel, which reads and writes, and a sum of rows, which reads; 1 GiB each, no reuse in L2."""
    device = device_of(driver)
    x = random_tensor(driver, sized(1 << 15, scale), sized(1 << 13, scale, 64), dtype=torch.float32)
    y, sums = torch.empty_like(x), torch.empty(len(x), device=driver.device)
    kernels = {
        # Not y.copy_(x): that is left to the driver, which may use no SM of the stream's.
        "negation": (2 * x.nbytes, lambda: torch.neg(x, out=y)),
        "sum of rows": (x.nbytes + sums.nbytes, lambda: torch.sum(x, dim=1, out=sums)),
    }
    counts = sm_counts(device, scale)
    with ExitStack() as stack:
        handles = {sms: stack.enter_context(streams(driver, on(device, sms)))[0] for sms in counts}
        for name, (moved, call) in kernels.items():
            found = interleave(
                {
                    str(sms): partial(device_seconds, driver, handle, partial(driver.launch, handle, call), 3)
                    for sms, handle in handles.items()
                },
                scale,
            )
            whole = found[str(device.sms)]
            for sms in counts[:-1]:
                yield rate(f"{name} on {sms} SMs", 1e-9 * moved, "GB/s", found[str(sms)], WHOLE, whole)
            yield rate(f"{name} on all {device.sms} SMs", 1e-9 * moved, "GB/s", whole)
            seconds = np.array([found[str(sms)] for sms in counts])
            enough = seconds.min(axis=0) >= SATURATED * seconds  # the last count of the best is enough in every round
            points = [counts[first] for first in enough.argmax(axis=0)]
            yield Row(f"{name}: SMs that reach {SATURATED:.0%} of the best bandwidth", "SMs", Spread.of(points))
