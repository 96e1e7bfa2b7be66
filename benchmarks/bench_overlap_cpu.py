"""Streams side by side on two cores and a copy engine: matrix products, reads of memory, reads of a file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nanort as nr
from benchmarks.measure import Rounds, Row, Spread, compared, interleave, run

CORE, CORES = (nr.device("cpu").with_(sms=cores, hbm_saturation_sms=(cores, cores)) for cores in (1, 2))
BLOCKS, PAGE = 64, 4096  # of the file, in its own blocks; of memory, in bytes
CALLS = 8  # of a kind alone, one after another, to see how fast it is
ONE, BOTH = "in turn, one core an operator", "in turn, both cores an operator"
BESIDE, ENGINE = "side by side, one core an operator", "only reads beside the rest, both cores an operator"


@nr.op(demand=lambda x, weight, out: nr.Demand(flops=2 * x.shape[0] * weight.numel(), hbm_bytes=3 * out.nbytes))
def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The product of two matrices, bound by arithmetic."""
    return x @ weight


@nr.op(demand=lambda x, weight, out: nr.Demand(flops=2 * weight.numel(), hbm_bytes=weight.nbytes))
def gemv(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The product of a matrix and a vector, bound by memory; torch computes it on one core whatever its threads."""
    return weight @ x


@nr.op(demand=lambda x, weight, out: nr.Demand(flops=weight.numel(), hbm_bytes=weight.nbytes))
def sums(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The vector and the sum of every row of a matrix, bound by memory; torch computes it on all its threads."""
    return weight.sum(dim=1) + x


@nr.op(
    demand=lambda *, out, **_: nr.Demand(h2d_bytes=out.nbytes, sms=(0, 0)),
    shape=lambda *, size, **_: torch.empty(size, dtype=torch.uint8, device="meta"),
)
def read(*, path: str, flags: int, offset: int, size: int) -> torch.Tensor:
    """The bytes of a file from ``offset`` on, in fresh memory that begins at a page, as O_DIRECT asks."""
    memory = torch.empty(size + PAGE, dtype=torch.uint8)
    block = memory[-memory.data_ptr() % PAGE :][:size]
    file = os.open(path, os.O_RDONLY | flags)
    try:
        if (found := os.preadv(file, [block.numpy().data], offset)) != size:
            raise OSError(f"{path} gave {found} of {size} bytes at {offset}")
    finally:
        os.close(file)
    return block


@dataclass(frozen=True, slots=True)
class Work:
    """A stream of one kind: an operator called again and again, its result the next call's first argument.

    Attributes:
        stream: where it runs beside the others; None for the copy engine.
        tensors: its arguments by name; none for a read, whose calls do not depend on each other.
        static: the keyword arguments of the k-th call.
        amount, unit: what one call does, for the rate.
    """

    name: str
    op: nr.Op
    stream: str | None
    tensors: Mapping[str, torch.Tensor]
    static: Callable[[int], dict[str, Any]]
    amount: float
    unit: str

    def run(self) -> None:
        """``CALLS`` calls, in this thread."""
        for k in range(CALLS):
            self.op(*self.tensors.values(), **self.static(k))

    def add(self, graph: nr.Graph, calls: int, stream: str | None) -> None:
        """Adds the stream to a graph."""
        values = [graph.input(name, tuple(tensor.shape), tensor.dtype) for name, tensor in self.tensors.items()]
        for k in range(calls):
            out = graph.call(self.op, *values, stream=stream, **self.static(k))
            values[:1] = [out] if values else []
        graph.output(**{self.name: out})


def works(order: int, block_bytes: int, folder: Path) -> tuple[Work, Work, Work, Work]:
    """A stream bound by arithmetic, two bound by memory, and one that reads a file which it writes into ``folder``."""
    generator = torch.Generator().manual_seed(0)
    small, large = (torch.randn(n, n, generator=generator) / n**0.5 for n in (order, 4 * order))
    path = folder / "blocks"
    path.write_bytes(os.urandom(block_bytes) * BLOCKS)
    static = {"path": str(path), "flags": _flags(path), "size": block_bytes}
    reads = "reads" if static["flags"] else "cached reads"

    def none(k: int) -> dict[str, Any]:
        return {}

    def block(k: int) -> dict[str, Any]:
        return {**static, "offset": k % BLOCKS * block_bytes}

    return (
        Work("products", product, "g1", {"x": small.clone(), "weight": small}, none, 2e-9 * order**3, "GFLOP/s"),
        Work("gemv", gemv, "g0", {"v": large[0].clone(), "matrix": large}, none, large.nbytes / 1e9, "GB/s"),
        Work("sums", sums, "g0", {"v": large[0].clone(), "matrix": large}, none, large.nbytes / 1e9, "GB/s"),
        Work(reads, read, None, {}, block, block_bytes / 1e9, "GB/s"),
    )


def _flags(path: Path) -> int:
    """O_DIRECT, which reads past the page cache so that no core copies, where the file system has it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    flag = getattr(os, "O_DIRECT", 0)
    try:
        os.close(os.open(path, os.O_RDONLY | flag))
    except OSError:  # a file system in memory has none
        return 0
    return flag


def measure(quick: bool) -> list[Row]:
    """Each mix in turn; within it, side by side and one after another in every round."""
    order, block_bytes, seconds, rounds = (64, 1 << 16, 0.001, 2) if quick else (1024, 1 << 22, 0.1, 31)
    with tempfile.TemporaryDirectory() as folder:
        compute, vectors, summed, file = made = works(order, block_bytes, Path(folder))
        alone = interleave({work.name: work.run for work in made}, rounds, tries=15).seconds
        calls = {name: max(1, round(seconds * CALLS / float(np.median(found)))) for name, found in alone.items()}
        rows = [Row(f"{w.name} alone, one core", w.unit, Spread.of(w.amount * CALLS / alone[w.name])) for w in made]
        for mix, goal in (
            ((compute, vectors), None),
            ((compute, summed), None),
            ((compute, file), 1.5),
            ((compute, vectors, file), None),
        ):
            rows += mixed(mix, calls, rounds, goal)
        return rows


def mixed(mix: Sequence[Work], calls: Mapping[str, int], rounds: int, goal: float | None) -> list[Row]:
    """The rows of one mix: each kind on a core or engine of its own, against all in turn on one core and on both."""

    def graph(stream: Callable[[Work], str | None]) -> nr.Graph:
        made = nr.Graph(" beside ".join(work.name for work in mix))
        for work in mix:
            work.add(made, calls[work.name], stream(work))
        return made

    inputs = {name: tensor for work in mix for name, tensor in work.tensors.items()}
    plans = {
        ONE: nr.co_schedule(graph(lambda work: None), CORE, policy="serial"),
        BOTH: nr.co_schedule(graph(lambda work: None), CORES, policy="serial"),
        BESIDE: nr.co_schedule(graph(lambda work: work.stream), CORES, policy="list", nano_batches=(1,)),
    }
    if any(work.stream is None for work in mix):
        whole = graph(lambda work: work.stream and "whole")
        plans[ENGINE] = nr.co_schedule(whole, CORES, policy="list", nano_batches=(1,))
    with ExitStack() as stack:
        runs = {
            name: partial(stack.enter_context(nr.Executor(plan, backend="cpu", trace=False)), **inputs)
            for name, plan in plans.items()
        }
        wanted, given = runs[ONE](), runs[BESIDE]()
        if not all(torch.equal(given[name], tensor) for name, tensor in wanted.items()):
            raise AssertionError("side by side computes something else than in turn")
        found = interleave(runs, rounds, tries=15)
    return _rows(" + ".join(work.name for work in mix), found, goal)


def _rows(mix: str, rounds: Rounds, goal: float | None) -> list[Row]:
    found, target = rounds.seconds, None if goal is None else (">=", goal)

    def row(name: str, baseline: str, goal: tuple[str, float] | None = None) -> Row:
        return compared(f"{mix}: {name}", found[name], baseline, found[baseline], unit="s", goal=goal)

    return [
        Row(f"{mix}: {ONE}", "s", Spread.of(found[ONE])),
        row(BESIDE, ONE, target),
        row(BOTH, ONE),
        row(BESIDE, BOTH),
        *([row(ENGINE, BOTH)] if ENGINE in found else []),
        Row(f"{mix}: other processes' share of the cores", "%", Spread.of(100 * rounds.others)),
    ]


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Prints the table; see benchmarks/__init__.py for the options."""
    return run("bench_overlap_cpu", measure, argv)


if __name__ == "__main__":
    main()
