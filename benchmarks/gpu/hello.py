"""examples/hello_overlap.py on the GPU: a matrix product, decode attention and an upload, in four schedules."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import nanort as nr
from benchmarks.gpu import attention
from benchmarks.gpu.layers import DIM, SHARED, tensors
from benchmarks.gpu.races import race
from benchmarks.gpu.timing import DTYPE, sized
from benchmarks.measure import Row
from nanort import ops
from nanort.driver import Driver

HEADS = 32


def hello(scale: float) -> nr.Graph:
    """The example's graph at its sizes; nothing is an input, which every run would copy."""
    rows, width = sized(4096, scale, 64), sized(8192, scale, 64)
    requests, context = sized(256, scale, 2), sized(1024, scale, 16)
    g = nr.Graph("hello", layout=nr.Layout(decode=requests, kv_tokens=requests * context))
    x, weight = g.constant("x", (rows, width), DTYPE), g.constant("weight", (width, width), DTYPE)
    q = g.constant("q", (requests, HEADS, DIM), DTYPE)
    kv = g.state("kv", (requests, 2, HEADS // SHARED, context, DIM), DTYPE)
    block = g.state("block", (sized(1 << 23, scale),), torch.float32, device="host")
    g.output(dense=ops.linear(x, weight), attention=attention.decode_attention(q, kv), block=ops.to_device(block))
    return g


def measure(driver: Driver, scale: float) -> Iterator[Row]:
    """See :func:`race`."""
    graph = hello(scale)
    yield from race(driver, scale, graph, tensors(driver, graph))
