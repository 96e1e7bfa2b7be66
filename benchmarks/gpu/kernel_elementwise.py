"""What a decoder does between products and attention, beside torch: call by call, and compiled."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch

import nanort as nr
from benchmarks.gpu.calls import Calls, Maker, turns
from benchmarks.gpu.contests import Arena, arena, until
from benchmarks.gpu.timing import DTYPE, sized
from benchmarks.measure import Row
from nanort import ops
from nanort.driver import Driver

SECONDS = 25
LEAST_OF_ROOF = 0.85
PAGE = 16


class Sizes(NamedTuple):
    """An operator on so many rows, beside torch as it is or compiled."""

    op: nr.Op
    rows: int
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.op.name} of {self.rows} rows"


OPERATORS = (
    ops.add_rms_norm, ops.silu_mul, ops.rope_kv_append, ops.rms_norm, ops.embedding, ops.add, ops.rope, ops.kv_append,
    ops.gated_add,
)  # fmt: skip
CASES = [
    *(Sizes(op, 4096) for op in OPERATORS),
    *(Sizes(op, 4096, compiled=True) for op in OPERATORS),
    *(Sizes(op, 256) for op in OPERATORS),
]


def calls_of(driver: Driver, scale: float, sizes: Sizes) -> Calls:
    """LLaMA-3-8B's widths; as many sets of tensors as L2 cannot hold."""
    rows, device, dtype = sized(sizes.rows, scale, 16), driver.device, DTYPE
    hidden, ffn, vocabulary = sized(4096, scale, 64), sized(14336, scale, 64), sized(128256, scale, 64)
    heads, kv_heads, dim = sized(32, scale, 4), sized(8, scale), sized(128, scale, 16)
    noise = partial(torch.randn, dtype=dtype, device=device)
    positions = torch.randint(8192, (rows,), device=device)
    table = noise(vocabulary if sizes.op is ops.embedding else 1, hidden)  # far larger than L2: one is enough

    def wide(count: int, width: int) -> tuple[torch.Tensor, ...]:
        return tuple(noise(rows, width) for _ in range(count))

    def slots() -> torch.Tensor:
        return torch.randperm(2 * rows, device=device)[:rows]

    def kv() -> torch.Tensor:
        return noise(2 * rows // PAGE, 2, PAGE, kv_heads, dim)

    def keys() -> tuple[torch.Tensor, torch.Tensor]:
        return noise(rows, kv_heads, dim), noise(rows, kv_heads, dim)

    made = {
        "rms_norm": lambda: (*wide(1, hidden), noise(hidden)),
        "add_rms_norm": lambda: (*wide(2, hidden), noise(hidden)),
        "silu_mul": lambda: wide(2, ffn),
        "add": lambda: wide(2, hidden),
        "gated_add": lambda: (*wide(1, hidden), *wide(1, 1), *wide(1, hidden)),
        "rope": lambda: (noise(rows, heads, dim), positions),
        "kv_append": lambda: (kv(), *keys(), slots()),
        "rope_kv_append": lambda: (kv(), noise(rows, heads, dim), *keys(), positions, slots()),
        "embedding": lambda: (torch.randint(vocabulary, (rows,), device=device), table),
    }[sizes.op.name]
    first = Calls(sizes.op, [made()])
    return Calls(sizes.op, [*first.sets, *(made() for _ in list(turns(round(first.demand.hbm_bytes), scale))[1:])])


def measure(driver: Driver, scale: float) -> Iterator[Row]:
    """The references are what torch is asked for; compiled ones come later, since compiling takes seconds."""
    with arena(driver, scale) as here:
        yield from here.roofs()
        for op in OPERATORS:
            yield from here.errors(calls_of(driver, scale, Sizes(op, 64)))
        yield from until(SECONDS, scale, CASES, partial(rows_of, driver, scale, here))


def rows_of(driver: Driver, scale: float, here: Arena, sizes: Sizes) -> Iterator[Row]:
    """The kernels of one operator beside torch."""
    calls, rows = calls_of(driver, scale, sizes), sized(sizes.rows, scale, 16)
    peers: dict[str, Maker] = {"torch": calls.of(sizes.op.reference)}
    if sizes.compiled:
        # Elsewhere than on a GPU it is only traced: making machine code of it needs a compiler of C++.
        backend = "inductor" if driver.device != "cpu" else "eager"
        peers = {"torch.compile": calls.of(torch.compile(sizes.op.reference, backend=backend, dynamic=False))}
    found = here.contest(str(sizes._replace(rows=rows)), calls, peers, here.counts[:2] if sizes.compiled else None)
    if not sizes.compiled and sizes.rows > 256:
        yield from found.against_roof(found.kernels, LEAST_OF_ROOF)
    yield from found.rows()
