"""Seconds on a driver: of the device between two events, of the host while it queues, of variants interleaved."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from time import perf_counter

import numpy as np
import torch

from benchmarks.measure import Row, Samples, Spread
from nanort.driver import Driver

Work = Callable[[], object]
"""Queues something."""

ROUNDS, WARMUP = 15, 2

DTYPE = torch.float32 if os.environ.get("TRITON_INTERPRET") == "1" else torch.bfloat16
"""What is computed in; Triton's interpreter, which stands in for a GPU, gets bfloat16 wrong."""


def interleave(
    variants: Mapping[str, Callable[[], float | list[float]]], scale: float, rounds: int = ROUNDS
) -> dict[str, Samples]:
    """What each variant tells in every round, (rounds,) or (rounds, figures); each round in an order of its own."""
    rng, order = random.Random(0), list(variants)
    found: dict[str, list[float | list[float]]] = {name: [] for name in variants}
    for this_round in range(-sized(WARMUP, scale), sized(rounds, scale, 2)):
        rng.shuffle(order)
        for name in order:
            told = variants[name]()
            if this_round >= 0:
                found[name].append(told)
    return {name: np.array(told) for name, told in found.items()}


def sized(full: int, scale: float, multiple: int = 1) -> int:
    """``full`` shrunk to ``scale``, a multiple of ``multiple`` and at least that."""
    return max(1, round(full * min(1.0, scale) / multiple)) * multiple


@contextmanager
def events(driver: Driver, count: int, *, timed: bool = False) -> Iterator[list[int]]:
    """So many events, destroyed at the end."""
    made = [driver.create_event(timed=timed) for _ in range(count)]
    try:
        yield made
    finally:
        for event in made:
            driver.destroy_event(event)


def finish(driver: Driver, stream: int) -> None:
    """Waits for all that is queued on a stream."""
    with events(driver, 1) as (event,):
        driver.record(event, stream)
        driver.synchronize(event)


def device_seconds(driver: Driver, stream: int, work: Work, times: int = 1) -> float:
    """What ``work``, queued ``times`` times on ``stream``, takes each time from start to end."""
    with events(driver, 2, timed=True) as (start, end):
        driver.record(start, stream)
        repeat(work, times)
        driver.record(end, stream)
        driver.synchronize(end)
        return driver.seconds(start, end) / times


def host_seconds(driver: Driver, stream: int, work: Work, times: int = 1) -> float:
    """What queueing ``work`` costs the host each time; afterwards it waits for the device."""
    began = perf_counter()
    repeat(work, times)
    seconds = perf_counter() - began
    finish(driver, stream)
    return seconds / times


def beside(driver: Driver, main: int, works: Mapping[int, Work]) -> list[float]:
    """Seconds from the common start, which follows ``main``, to the end of what each stream is given."""
    with events(driver, 1 + len(works), timed=True) as (start, *ends):
        driver.record(start, main)
        for (stream, work), end in zip(works.items(), ends, strict=True):
            driver.wait(stream, start)
            work()
            driver.record(end, stream)
            driver.wait(main, end)
        finish(driver, main)
        return [driver.seconds(start, end) for end in ends]


@contextmanager
def captured(driver: Driver, stream: int, work: Work) -> Iterator[Work]:
    """What replays ``work`` as one graph on ``stream``; it may use other streams that it forks and joins."""
    driver.begin_capture(stream)
    try:
        work()
    finally:
        graph = driver.end_capture(stream)
    try:
        yield partial(driver.launch_graph, graph, stream)
    finally:
        finish(driver, stream)
        driver.destroy_graph(graph)


def repeat(work: Work, times: int) -> None:
    """Queues ``work`` again and again."""
    for _ in range(times):
        work()


def times_for(seconds: float, alone: float) -> int:
    """How often something that takes ``alone`` is done in ``seconds``."""
    return max(1, round(seconds / alone))


def random_tensor(driver: Driver, *shape: int, dtype: torch.dtype = DTYPE) -> torch.Tensor:
    """Normal numbers on the device that keep the size of what they multiply; zeros would run faster than real data."""
    return torch.randn(shape, dtype=dtype, device=driver.device).div_(shape[-1] ** 0.5)


def rate(
    name: str,
    amount: float,
    unit: str,
    seconds: Samples,
    baseline: str = "",
    against: Samples | None = None,
    goal: tuple[str, float] | None = None,
) -> Row:
    """A row of ``amount`` a second, and how many times faster that is than the baseline's seconds ``against``."""
    ratio = None if against is None else Spread.of(against / seconds)
    return Row(name, unit, Spread.of(amount / seconds), baseline, ratio, goal)
