"""linear beside cuBLAS on the products of LLaMA-3-8B: on all SMs, and on parts of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

from benchmarks.gpu.calls import Calls, turns
from benchmarks.gpu.contests import arena, until
from benchmarks.gpu.timing import DTYPE, random_tensor, sized
from benchmarks.measure import Row
from nanort import ops
from nanort.driver import Driver

SECONDS = 30
CUBLAS, TRITON = "F.linear (cuBLAS)", "linear.triton"
LEAST_OF_CUBLAS, LEAST_OF_SHARE = 0.85, 0.95
NEVER_BELOW = 0.99
"""One hundredth less than cuBLAS is what the same code differs by from itself."""
PROPORTIONAL = (96, 64)


class Sizes(NamedTuple):
    """x (m, k) times weight (n, k), and whether that is measured on partitions too."""

    m: int
    n: int
    k: int
    parts: bool = False

    def __str__(self) -> str:
        return f"{self.m} x {self.n} x {self.k}"

    def shrunk(self, scale: float) -> Sizes:
        """At a small scale."""
        m, n, k, parts = self
        return Sizes(sized(m, scale, 16), sized(n, scale, 64), sized(k, scale, 64), parts)


WEIGHTS = ((14336, 4096), (4096, 14336), (4096, 4096), (1024, 4096))
"""n and k of gate and up, down, query and output, key and value."""
CASES = [
    *(Sizes(2048, n, k, parts=True) for n, k in WEIGHTS),
    *(Sizes(m, n, k) for m in (4096, 128, 512, 1024, 256) for n, k in WEIGHTS),
]


def calls_of(driver: Driver, scale: float, sizes: Sizes) -> Calls:
    """Products of random matrices; results are as large as what is multiplied."""
    m, n, k, _ = sizes
    dtype = DTYPE
    nbytes = dtype.itemsize * (m * k + n * k + m * n)
    sets = [
        (torch.randn(m, k, dtype=dtype, device=driver.device), random_tensor(driver, n, k, dtype=dtype))
        for _ in turns(nbytes, scale)
    ]
    return Calls(ops.linear, sets)


def measure(driver: Driver, scale: float) -> Iterator[Row]:
    """Every kernel of the operator beside cuBLAS as torch calls it, which does not know how many SMs it has."""
    cases = [sizes.shrunk(scale) for sizes in CASES]
    with arena(driver, scale) as here:

        def rows(sizes: Sizes) -> Iterator[Row]:
            calls = calls_of(driver, scale, sizes)
            counts = here.counts if sizes.parts else here.counts[:1]
            found = here.contest(str(sizes), calls, {CUBLAS: calls.of(F.linear)}, counts)
            for sms in counts:
                yield from found.against_peers(found.kernels, sms, NEVER_BELOW)
            yield from found.against_peers((TRITON,), here.sms, LEAST_OF_CUBLAS)
            for sms in PROPORTIONAL:
                yield from found.against_itself((TRITON,), sms, LEAST_OF_SHARE, share=sms / here.sms)
            yield from found.rows()

        yield from here.roofs()
        yield from here.errors(calls_of(driver, scale, cases[0]))
        yield from until(SECONDS, scale, cases, rows)
