"""examples/llm_layer.py on the GPU: four layers of LLaMA-3-8B, decode and prefill rows mixed, in four schedules."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gpu.layers import Sizes, layers, tensors
from benchmarks.gpu.races import race
from benchmarks.measure import Row
from nanort.driver import Driver


def measure(driver: Driver, scale: float) -> Iterator[Row]:
    """See :func:`race`."""
    graph = layers(Sizes.llama(scale, layers=4, decode=670, context=1280, prefill=1340))
    yield from race(driver, scale, graph, tensors(driver, graph), cuts=(1, 2))
