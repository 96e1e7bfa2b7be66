"""Seconds of one core to build, plan, check, lower and simulate a graph, and how they grow with its nodes."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from time import process_time
from typing import TypeVar

import numpy as np

import nanort as nr
from benchmarks.measure import Row, Samples, Spread, run
from nanort.graphs import synthetic

STAGES = ("build", "plan", "check", "lower", "simulate")
DEVICE = nr.device("h200")
T = TypeVar("T")
Seconds = tuple[float, float]  # in all, and of them in Python's collector


def stages(nodes: int) -> list[Seconds]:
    """What each stage takes for one graph, in this thread."""
    build, graph = timed(lambda: synthetic.layered(nodes))
    plan, schedule = timed(lambda: nr.co_schedule(graph, DEVICE, policy="list", nano_batches=(1,)))
    check, _ = timed(schedule.check)
    lower, program = timed(lambda: nr.lower(schedule))
    with nr.Executor(program, backend="sim") as simulated:
        simulate, _ = timed(simulated)
    return [build, plan, check, lower, simulate]


def timed(stage: Callable[[], T]) -> tuple[Seconds, T]:
    """Seconds of the processor, which other processes do not lengthen by taking turns, and those of Python's collector.

    What was left behind before is collected first.
    """
    gc.collect()
    ends: list[float] = []  # of the collector's runs, start and stop in turn
    gc.callbacks.append(lambda phase, info: ends.append(process_time()))
    began = process_time()
    made = stage()
    seconds = process_time() - began
    gc.callbacks.pop()
    return (seconds, sum(ends[1::2]) - sum(ends[::2])), made


def measure(quick: bool) -> list[Row]:
    """Every size in every round, so that growth compares neighbours in time.

    A graph of some size sets off a full collection, which visits all that is alive. What importing torch made is frozen
    beforehand: it would look like growth, however small the graph. What a collection of that costs is a row of its own.
    """
    sizes, rounds = ((50, 100), 2) if quick else ((1_000, 10_000, 100_000), 7)
    stages(sizes[0])  # what is loaded and inferred once
    loaded = [timed(gc.collect)[0][0] for _ in range(rounds)]
    gc.freeze()
    try:
        samples = np.array([[stages(nodes) for nodes in sizes] for _ in range(rounds)])
    finally:
        gc.unfreeze()
    whole, collector = samples.transpose(3, 2, 1, 0)  # each by stage, size, round
    return [
        *_seconds(whole, sizes),
        *_growth(whole, sizes, "", ("<=", 1.15)),
        *_growth(whole - collector, sizes, ", collector left out", None),
        Row(
            f"build, plan and check, {sizes[1]:,} nodes", "CPU s", Spread.of(whole[:3, 1].sum(axis=0)), goal=("<=", 5.0)
        ),
        Row("a full collection of what Python and torch have loaded", "CPU s", Spread.of(loaded)),
    ]


def _seconds(samples: Samples, sizes: Sequence[int]) -> Iterator[Row]:
    for stage, by_size in zip(STAGES, samples, strict=True):
        for nodes, found in zip(sizes, by_size, strict=True):
            yield Row(f"{stage}, {nodes:,} nodes", "CPU s", Spread.of(found))


def _growth(samples: Samples, sizes: Sequence[int], how: str, goal: tuple[str, float] | None) -> Iterator[Row]:
    for stage, by_size in zip(STAGES, samples, strict=True):
        for (small, large), (before, after) in zip(pairwise(sizes), pairwise(by_size), strict=True):
            exponent = np.log(after / before) / math.log(large / small)
            name = f"growth exponent of {stage}, {small:,} to {large:,} nodes{how}"
            yield Row(name, "", Spread.of(exponent), goal=goal if stage != "lower" else None)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Prints the table; see benchmarks/__init__.py for the options."""
    return run("bench_core", measure, argv)


if __name__ == "__main__":
    main()
