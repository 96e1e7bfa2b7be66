"""Seconds to build, plan, check, lower and simulate a graph, and how they grow with its nodes."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from time import perf_counter

import numpy as np
import torch

import nanort as nr
from benchmarks.measure import Row, Samples, Spread, run
from nanort.graphs import synthetic

STAGES = ("build", "plan", "check", "lower", "simulate")
DEVICE = nr.device("h200")


def stages(nodes: int) -> list[float]:
    """Seconds of each stage for one graph, in this thread; what the stage before left behind is collected first."""
    seconds = []

    def timed(stage: Callable[[], object]) -> object:
        gc.collect()
        began = perf_counter()
        made = stage()
        seconds.append(perf_counter() - began)
        return made

    graph = timed(lambda: synthetic.layered(nodes))
    assert isinstance(graph, nr.Graph)
    schedule = timed(lambda: nr.co_schedule(graph, DEVICE, policy="list", nano_batches=(1,)))
    assert isinstance(schedule, nr.Schedule)
    timed(schedule.check)
    program = timed(lambda: nr.lower(schedule))
    assert isinstance(program, nr.Program)
    with nr.Executor(program, backend="sim") as simulated:
        timed(lambda: simulated())
    return seconds


def measure(quick: bool) -> list[Row]:
    """Every size in every round, so that growth compares neighbours in time."""
    sizes, rounds = ((50, 100), 2) if quick else ((1_000, 10_000, 100_000), 5)
    torch.set_num_threads(1)
    stages(sizes[0])  # what is loaded and inferred once
    samples = np.array([[stages(nodes) for nodes in sizes] for _ in range(rounds)])  # by round, size, stage
    rows = [
        Row(f"{stage}, {nodes:,} nodes", "s", Spread.of(samples[:, k, s]))
        for s, stage in enumerate(STAGES)
        for k, nodes in enumerate(sizes)
    ]
    for s, stage in enumerate(STAGES):
        for k, (small, large) in enumerate(pairwise(sizes)):
            exponent: Samples = np.log(samples[:, k + 1, s] / samples[:, k, s]) / math.log(large / small)
            rows.append(
                Row(f"growth exponent of {stage}, {small:,} to {large:,}", "", Spread.of(exponent), goal=("<=", 1.15))
            )
    together = samples[:, 1, :3].sum(axis=1)
    return [*rows, Row(f"built, planned and checked, {sizes[1]:,} nodes", "s", Spread.of(together), goal=("<=", 5.0))]


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Prints the table; see benchmarks/__init__.py for the options."""
    return run("bench_core", measure, argv)


if __name__ == "__main__":
    main()
