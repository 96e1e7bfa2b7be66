"""Streams side by side on two cores and a copy engine: matrix products, matrix-vector products and reads of a file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

import nanort as nr
from benchmarks.measure import Row, Spread, compared, interleave, run

CORE, CORES = (nr.device("cpu").with_(sms=cores, hbm_saturation_sms=(cores, cores)) for cores in (1, 2))
COMPUTE, MEMORY, FILE = "compute", "memory", "file read"
ONE, BOTH = "serial, one core an operator", "serial, both cores an operator"
BLOCKS, PAGE = 64, 4096


@nr.op(demand=lambda x, weight, out: nr.Demand(flops=2 * x.shape[0] * weight.numel(), hbm_bytes=3 * out.nbytes))
def multiply(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The product of two matrices, bound by arithmetic."""
    return x @ weight


@nr.op(demand=lambda weight, x, out: nr.Demand(flops=2 * weight.numel(), hbm_bytes=weight.nbytes))
def apply(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The product of a matrix and a vector, bound by memory."""
    return weight @ x


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
        if (found := os.preadv(file, [block.numpy()], offset)) != size:
            raise OSError(f"{path} gave {found} of {size} bytes at {offset}")
    finally:
        os.close(file)
    return block


class Workload:
    """Three kinds of operators, their tensors, and how many of each make a stream of about the same length.

    Args:
        order: rows of the square matrices that are multiplied; those applied to a vector have four times as many.
        block_bytes: what one operator reads of the file.
        seconds: how long each stream is to run alone on one core.
        path: the file, which has ``BLOCKS`` blocks.
    """

    def __init__(self, order: int, block_bytes: int, seconds: float, path: Path) -> None:
        generator = torch.Generator().manual_seed(0)
        large = 4 * order
        self.tensors = {
            "x": torch.randn(order, order, generator=generator),
            "weight": torch.randn(order, order, generator=generator) / order**0.5,
            "v": torch.randn(large, generator=generator),
            "matrix": torch.randn(large, large, generator=generator) / large**0.5,
        }
        self.block_bytes = block_bytes
        self.path = path
        path.write_bytes(os.urandom(block_bytes) * BLOCKS)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        self.flags = _direct(path)
        self.alone = {kind: _alone(partial(self.once, kind)) for kind in (COMPUTE, MEMORY, FILE)}
        self.counts = {kind: max(1, round(seconds / alone)) for kind, alone in self.alone.items()}

    def once(self, kind: str) -> torch.Tensor:
        """One operator of a kind."""
        x, weight, v, matrix = self.tensors.values()
        if kind == FILE:
            return read(path=str(self.path), flags=self.flags, offset=0, size=self.block_bytes)
        return multiply(x, weight) if kind == COMPUTE else apply(matrix, v)

    def graph(self, kinds: Sequence[str], streams: Mapping[str, str]) -> nr.Graph:
        """A chain of every kind, the reads beside each other, each pinned to the stream that ``streams`` names."""
        graph = nr.Graph(" beside ".join(kinds))
        x, weight, v, matrix = (graph.input(name, tuple(t.shape), t.dtype) for name, t in self.tensors.items())
        for kind in kinds:
            pin = streams.get(kind)
            for k in range(self.counts[kind]):
                if kind == COMPUTE:
                    x = graph.call(multiply, x, weight, stream=pin)
                elif kind == MEMORY:
                    v = graph.call(apply, matrix, v, stream=pin)
                else:
                    size = self.block_bytes
                    at = k % BLOCKS * size
                    last = graph.call(read, path=str(self.path), flags=self.flags, offset=at, size=size, stream=pin)
        graph.output(x=x, v=v, **({"last": last} if FILE in kinds else {}))
        return graph

    def rows(self) -> list[Row]:
        """How fast each kind is alone on one core."""
        work = {
            COMPUTE: (2 * self.tensors["x"].shape[0] ** 3, "GFLOP/s"),
            MEMORY: (self.tensors["matrix"].nbytes, "GB/s"),
            FILE: (self.block_bytes, "GB/s"),
        }
        ...
