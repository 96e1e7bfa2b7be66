"""What it adds to a decode step that 10 % of its KV cache leaves for the host beside it, and as much comes back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import nanort as nr
from benchmarks.gpu.layers import Sizes, layers, tensors
from benchmarks.gpu.places import device_of
from benchmarks.gpu.races import running, timed
from benchmarks.gpu.timing import interleave
from benchmarks.measure import Row, Spread, compared
from nanort.driver import Driver

SWAPPED = 0.1
"""Of the pages that the step's requests hold, in each direction."""
ALONE, IN_TURN, BESIDE = "without", "with the copies in turn", "with the copies where co_schedule puts them"


def measure(driver: Driver, scale: float) -> Iterator[Row]:
    """A step bound by its weights, whose pages fit through PCIe while it runs: 16 requests of 512 tokens each."""
    device = device_of(driver)
    sizes = Sizes.llama(scale, layers=8, decode=16, context=512)
    sizes = replace(sizes, swap=max(1, round(SWAPPED * sizes.pages)))
    graph, without = layers(sizes), layers(replace(sizes, swap=0))
    plans = {
        ALONE: nr.co_schedule(without, device, nano_batches=(1,)),
        IN_TURN: nr.co_schedule(graph, device, policy="serial", nano_batches=(1,)),
        BESIDE: nr.co_schedule(graph, device, nano_batches=(1,)),
    }
    with running(plans, tensors(driver, graph)) as runs:
        found = interleave({name: timed(driver, run, scale) for name, run in runs.items()}, scale)
    what = f"a step of {sizes.layers} layers, {sizes.swap} of the {sizes.pages} pages of each swapped both ways"
    yield Row(f"{what}: {ALONE}", "s", Spread.of(found[ALONE]))
    yield compared(f"{what}: {IN_TURN}", found[IN_TURN], ALONE, found[ALONE], unit="s")
    yield compared(f"{what}: {BESIDE}", found[BESIDE], ALONE, found[ALONE], unit="s", goal=(">=", 1 / 1.03))
