"""Scattered pages to the host and back: gathered, copied and scattered, beside copies of as many contiguous bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial

import torch

from benchmarks.gpu.calls import Calls, turns
from benchmarks.gpu.contests import Arena, arena, until
from benchmarks.gpu.places import device_of, on, streams
from benchmarks.gpu.timing import DTYPE, Work, captured, device_seconds, finish, interleave, rate, sized
from benchmarks.measure import Row
from nanort import ops
from nanort.driver import Driver

SECONDS = 6
LEAST_OF_COPY = 0.85
PAGES = 2048
"""Of 64 KiB each: keys and values of 16 tokens in one layer of LLaMA-3-8B."""
DOWN, UP = "as many contiguous bytes to the host", "as many contiguous bytes from the host"
KERNEL = "triton"
FEW = (32, 8)
"""SMs that gathers and scatters may hold too, since they run beside a model's own kernels."""


def calls_of(driver: Driver, scale: float) -> tuple[Calls, Calls]:
    """Half of a pool's pages gathered, and others scattered over it."""
    count, shape = sized(PAGES, scale, 2), (2, 16, sized(8, scale), sized(128, scale, 16))
    dtype, device = DTYPE, driver.device
    gathered, scattered = list[tuple[torch.Tensor, ...]](), list[tuple[torch.Tensor, ...]]()
    for _ in turns(4 * count * torch.Size(shape).numel() * dtype.itemsize, scale):
        pool = torch.randn(2 * count, *shape, dtype=dtype, device=device)
        order = torch.randperm(2 * count, device=device)
        gathered.append((pool, order[:count]))
        scattered.append((pool, order[count:], torch.randn(count, *shape, dtype=dtype, device=device)))
    return Calls(ops.page_gather, gathered), Calls(ops.page_scatter, scattered)


def measure(driver: Driver, scale: float) -> Iterator[Row]:
    """The way to the host and back, then each kernel alone beside torch's indexing."""
    both = calls_of(driver, scale)
    with arena(driver, scale) as here:
        yield from here.roofs()
        for calls in both:
            yield from here.errors(calls)
        yield from _swapped(driver, scale, *both)
        yield from until(SECONDS, scale, both, partial(_alone, here))


def _alone(here: Arena, calls: Calls) -> Iterator[Row]:
    found = here.contest(
        f"{calls.op.name} of {len(calls.sets[0][1])} pages", calls, {"torch": calls.of(calls.op.reference)}
    )
    yield from found.rows()


def _swapped(driver: Driver, scale: float, gather: Calls, scatter: Calls) -> Iterator[Row]:
    """Each way on one stream: nothing overlaps, so that what gathering and scattering add is seen whole."""
    device, staging = device_of(driver), scatter.sets[0][2]
    leaving, entering = (driver.allocate(staging.nbytes, host=True).view(staging.dtype) for _ in range(2))
    for host in (leaving, entering):
        host.copy_(staging.view(-1))
    counts = [device.sms, *(sms for sms in FEW if sms <= device.partitionable_sms)]
    with ExitStack() as stack:
        handles = stack.enter_context(streams(driver, *(on(device, sms) for sms in counts)))
        finish(driver, 0)
        variants: dict[str, Callable[[], float]] = {}
        for sms, handle in zip(counts, handles, strict=True):
            take, put = (calls.bound(KERNEL, calls.sets[0], sms) for calls in (gather, scatter))
            down = partial(driver.copy, handle, leaving, take.out[0].view(-1))
            up = partial(driver.copy, handle, staging.view(-1), entering)
            works: dict[str, list[Work]] = {
                f"gathered and copied to the host, {sms} SMs": [partial(driver.launch, handle, take.call), down],
                f"copied from the host and scattered, {sms} SMs": [up, partial(driver.launch, handle, put.call)],
            }
            if sms == device.sms:
                works |= {DOWN: [down], UP: [up]}
            for name, steps in works.items():
                for step in steps:
                    step()  # compiles and loads, which no capture can
                finish(driver, handle)
                graph = stack.enter_context(captured(driver, handle, partial(_in_turn, steps)))
                variants[name] = partial(device_seconds, driver, handle, graph, 2)
        found = interleave(variants, scale)
    for name, seconds in found.items():
        peer = DOWN if "to the host" in name else UP
        goal = (">=", LEAST_OF_COPY) if name.endswith(f" {device.sms} SMs") else None
        against = ("", None) if name == peer else (peer, found[peer])
        yield rate(f"{len(staging)} pages, {name}", 1e-9 * staging.nbytes, "GB/s", seconds, *against, goal)


def _in_turn(steps: Sequence[Work]) -> None:
    for step in steps:
        step()
