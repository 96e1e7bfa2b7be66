"""Seconds of matrix products against the number of SMs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import torch

from benchmarks.gpu.places import device_of, on, sm_counts, streams
from benchmarks.gpu.timing import device_seconds, interleave, random_tensor, rate, sized
from benchmarks.measure import Row, Spread
from nanort.driver import Driver

SHAPES = ((8192, 8192, 8192), (2048, 14336, 4096))
"""M, N and K: a large square, and the up projection of LLaMA-3-8B for 2048 rows."""


def measure(driver: Driver, scale: float) -> Iterator[Row]:
    """bfloat16 on random data; beside each count how much of what its share of the SMs promises it keeps."""
    device = device_of(driver)
    counts = sm_counts(device, scale)
    with ExitStack() as stack:
        handles = {sms: stack.enter_context(streams(driver, on(device, sms)))[0] for sms in counts}
        for shape in SHAPES:
            m, n, k = (sized(size, scale, 64) for size in shape)
            x, weight = random_tensor(driver, m, k), random_tensor(driver, n, k)
            call = partial(torch.mm, x, weight.T, out=x.new_empty(m, n))
            found = interleave(
                {
                    str(sms): partial(device_seconds, driver, handle, partial(driver.launch, handle, call), 2)
                    for sms, handle in handles.items()
                },
                scale,
            )
            whole, flops = found[str(device.sms)], 2e-12 * m * n * k
            for sms in counts[:-1]:
                seconds, share = found[str(sms)], whole * device.sms / sms
                name = f"{m} x {n} x {k} on {sms} SMs"
                yield Row(name, "ms", Spread.of(1e3 * seconds), "its share of all SMs", Spread.of(share / seconds))
            yield Row(f"{m} x {n} x {k} on all {device.sms} SMs", "ms", Spread.of(1e3 * whole))
            yield rate(f"{m} x {n} x {k} on all {device.sms} SMs", flops, "TFLOP/s", whole)
