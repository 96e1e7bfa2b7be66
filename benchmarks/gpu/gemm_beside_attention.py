"""Matrix products beside decode attention at several splits of the SMs: measured, and as the model predicts it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

import nanort as nr
from benchmarks.gpu import attention
from benchmarks.gpu.layers import DIM, SHARED, tensors
from benchmarks.gpu.places import device_of
from benchmarks.gpu.races import fixed, running, timed
from benchmarks.gpu.timing import DTYPE, ROUNDS, interleave, sized
from benchmarks.measure import Row, Spread
from nanort import ops
from nanort.costs.neighbours import profile_of
from nanort.driver import Driver
from nanort.runtime.meter import GpuMeter
from nanort.runtime.operands import Operands
from nanort.runtime.sweeps import Part

HEADS, ORDER, REQUESTS, CONTEXT = 32, 4096, 256, 1024
PRODUCTS, ATTENTIONS = 12, 6
MEMORY, COMPUTE = "g0", "g1"
MODEL, SOLO = "predicted from the database's figures", "predicted from what each takes alone"
SPLITS = 8
KNOTS = 6
"""Parts of the device; at their ends both operators are measured alone, and the splits lie between."""


def pair(scale: float, products: int, attentions: int, *, pinned: bool = True) -> nr.Graph:
    """A chain of products on one group of SMs and a chain of attentions on the other, which wait for nothing else."""
    order, requests, context = sized(ORDER, scale, 64), sized(REQUESTS, scale, 2), sized(CONTEXT, scale, 16)
    g = nr.Graph(f"{products} products, {attentions} attentions", nr.Layout(requests, kv_tokens=requests * context))
    x, weight = g.constant("x", (order, order), DTYPE), g.constant("weight", (order, order), DTYPE)
    q = g.constant("q", (requests, HEADS, DIM), DTYPE)
    kv = g.state("kv", (requests, 2, HEADS // SHARED, context, DIM), DTYPE)
    for _ in range(products):
        x = g.call(ops.linear, x, weight, stream=COMPUTE if pinned else None)
    for _ in range(attentions):
        q = g.call(attention.decode_attention, q, kv, stream=MEMORY if pinned else None)
    g.output(x=x, q=q)
    return g


def measure(driver: Driver, scale: float) -> Iterator[Row]:
    """Alone at some SM counts; then side by side at eight splits, beside the prediction from these and without them."""
    device, graph = device_of(driver), pair(scale, PRODUCTS, ATTENTIONS)
    grain, usable = device.sm_granularity, device.partitionable_sms
    groups, parts = usable // grain, sized(KNOTS, scale, 2)
    knots = sorted({grain * round(groups * k / parts) for k in range(1, parts)} | {grain, usable - grain})
    alone, profile = _alone(driver, scale, device, knots)
    yield from alone
    splits = [grain * at for at in np.linspace(2, groups - 3, SPLITS).round().astype(int).tolist()]
    plans = {
        how: {str(sms): fixed(graph, device, (sms, usable - sms), profile=known) for sms in splits}
        for how, known in ((MODEL, None), (SOLO, profile))
    }
    with running(plans[SOLO], tensors(driver, graph)) as runs:
        found = interleave({sms: timed(driver, run, scale) for sms, run in runs.items()}, scale)
    for how, made in plans.items():
        for sms, plan in made.items():
            name = f"attention on {sms} SMs, products on {usable - int(sms)}"
            yield Row(name, "s", Spread.of(found[sms]), how, Spread.of(plan.makespan / found[sms]))
        errors = np.array([np.abs(plan.makespan / found[sms] - 1) for sms, plan in made.items()]).mean(axis=0)
        goal = ("<=", 10.0) if how == SOLO else None
        yield Row(f"mean error over {len(splits)} splits, {how}", "%", Spread.of(100 * errors), goal=goal)


def _alone(driver: Driver, scale: float, device: nr.Device, knots: Sequence[int]) -> tuple[list[Row], nr.Profile]:
    """Rows and a profile of both operators alone on so many SMs."""
    meter = GpuMeter(driver, device, repeats=sized(ROUNDS, scale, 2))
    bench = Operands(pair(scale, 1, 1, pinned=False), device, {})
    samples = [meter((Part(bench, step, step.kernel, sms),))[0] for step in bench.launches for sms in knots]
    rows = [
        Row(f"{s.call.operator} alone on {s.call.sms} SMs", "s", Spread(s.low, s.seconds, s.high, s.low, s.runs))
        for s in samples
    ]
    return rows, profile_of(meter.place, samples)
