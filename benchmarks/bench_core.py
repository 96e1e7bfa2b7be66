"""Seconds of one core to build, plan, check, lower and simulate a graph, and how they grow with its nodes."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from time import process_time
from typing import TypeVar

import numpy as np

import nanort as nr
from benchmarks.measure import Row, Spread, run
from nanort.graphs import synthetic

STAGES = ("build", "plan", "check", "lower", "simulate")
DEVICE = nr.device("h200")
T = TypeVar("T")


def stages(nodes: int) -> list[float]:
    """Seconds of each stage for one graph, in this thread; what the stage before left behind is collected first."""
    build, graph = _seconds(lambda: synthetic.layered(nodes))
    plan, schedule = _seconds(lambda: nr.co_schedule(graph, DEVICE, policy="list", nano_batches=(1,)))
    check, _ = _seconds(schedule.check)
    lower, program = _seconds(lambda: nr.lower(schedule))
    with nr.Executor(program, backend="sim") as simulated:
        simulate, _ = _seconds(simulated)
    return [build, plan, check, lower, simulate]


def _seconds(stage: Callable[[], T]) -> tuple[float, T]:
    """What a stage takes of the processor, which other processes do not lengthen by taking turns."""
    gc.collect()
    began = process_time()
    made = stage()
    return process_time() - began, made


def measure(quick: bool) -> list[Row]:
    """Every size in every round, so that growth compares neighbours in time.

    What Python's collector finds alive beforehand is frozen: a large graph sets off full collections, which would visit
    all that importing torch made, however small the graph, and look like growth. What that costs is a row of its own.
    """
    sizes, rounds = ((50, 100), 2) if quick else ((1_000, 10_000, 100_000), 5)
    stages(sizes[0])  # what is loaded and inferred once
    collections = [_seconds(gc.collect)[0] for _ in range(rounds)]
    gc.freeze()
    try:
        samples = np.array([[stages(nodes) for nodes in sizes] for _ in range(rounds)])  # by round, size, stage
    finally:
        gc.unfreeze()
    together = samples[:, 1, :3].sum(axis=1)
    return [
        *(
            Row(f"{stage}, {nodes:,} nodes", "CPU s", Spread.of(samples[:, k, s]))
            for s, stage in enumerate(STAGES)
            for k, nodes in enumerate(sizes)
        ),
        *(
            Row(f"growth exponent of {stage}, {small:,} to {large:,} nodes", "", Spread.of(found), goal=("<=", 1.15))
            for s, stage in enumerate(STAGES)
            for k, (small, large) in enumerate(pairwise(sizes))
            for found in [np.log(samples[:, k + 1, s] / samples[:, k, s]) / math.log(large / small)]
        ),
        Row(f"build, plan and check together, {sizes[1]:,} nodes", "CPU s", Spread.of(together), goal=("<=", 5.0)),
        Row("a full collection of what Python and torch have loaded", "CPU s", Spread.of(collections)),
    ]


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Prints the table; see benchmarks/__init__.py for the options."""
    return run("bench_core", measure, argv)


if __name__ == "__main__":
    main()
