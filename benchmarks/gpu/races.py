"""Schedules of one graph beside each other: planned in a given way, run interleaved, their outputs compared."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

import nanort as nr
from benchmarks.gpu.places import device_of
from benchmarks.gpu.timing import device_seconds, finish, interleave, sized
from benchmarks.measure import Row, Spread, compared
from nanort.compare import Row as Plan
from nanort.driver import Driver
from nanort.runtime.report import measure
from nanort.scheduling.list_schedule import ListPolicy
from nanort.scheduling.structures import ISOLATED, Structure
from nanort.scheduling.workload import Workload
from nanort.timeline.units import duration

Tensors = Mapping[str, torch.Tensor]
Run = Callable[[], dict[str, torch.Tensor]]

CALLER = 0
"""The stream of torch code, which a run waits for and which waits for the run."""
QUEUED = 4
"""Runs of one sample, so that the device does not wait for the host between them."""
UNTIMED = 4
"""First runs: one eager, one that captures for each of the two slots, one replayed."""
SERIAL, PLAIN, PARTITIONED, PICK = "serial", "plain two streams", "partitioned", "co_schedule's pick"
PROFILED = 15.0
"""Seconds for which calls are measured before plans are made."""
CLOSE = 5e-2
"""How far outputs may be apart, as a share of their size: rows of a cut product round otherwise."""


@dataclass(frozen=True, slots=True)
class Fixed(ListPolicy):
    """List scheduling on groups of these sizes, the first for what memory binds; with none, on two plain streams."""

    sizes: tuple[int, ...] = ()

    def structures(self, work: Workload) -> list[Structure]:
        """The one there is."""
        return [work.isolated(*self.sizes) if self.sizes else work.coresident()]


def fixed(
    graph: nr.Graph,
    device: nr.Device,
    sizes: tuple[int, ...] = (),
    *,
    profile: nr.Profile | None = None,
    nano_batches: Sequence[int] = (1,),
) -> nr.Schedule:
    """A schedule on just those streams, whether that is a good idea or not."""
    policy = Fixed(sizes=sizes)
    return nr.co_schedule(graph, device, policy=policy, nano_batches=nano_batches, guard=False, profile=profile)


def race(
    driver: Driver, scale: float, graph: nr.Graph, tensors: Tensors, *, cuts: Sequence[int] = (1,)
) -> Iterator[Row]:
    """The serial schedule, the best plans of two mechanisms, and what co_schedule picks: captured, interleaved.

    All are planned from what the graph's calls were measured to take. ``cuts`` are the nano-batches to try, the last of
    them on two plain streams.
    """
    device, profile = profiled(driver, scale, [nr.nano_batch(graph, count) for count in cuts], tensors)
    inputs, constants, states = by_kind(graph, tensors)
    stopwatch = nr.Stopwatch(inputs=inputs, constants=constants, states=states, backend="cuda", capture=True)
    plans = {
        SERIAL: nr.co_schedule(graph, device, policy="serial", nano_batches=(1,), profile=profile),
        PLAIN: fixed(graph, device, profile=profile, nano_batches=cuts[-1:]),
        PICK: nr.co_schedule(graph, device, nano_batches=cuts, profile=profile, measure=stopwatch),
    }
    if partitioned := Plan.only(graph, device, ISOLATED, nano_batches=cuts, profile=profile):
        plans[PARTITIONED] = partitioned.schedule
    with running(plans, tensors) as runs:
        refuse_unlike(driver, plans, runs)
        found = interleave({name: timed(driver, run, scale) for name, run in runs.items()}, scale)
    told = {
        name: f"{graph.name}, {name}: {plan.mechanism}, {'cut' if plan.split else 'uncut'}"
        for name, plan in plans.items()
    }
    yield Row(told.pop(SERIAL), "s", Spread.of(found[SERIAL]))
    for name, text in told.items():
        yield compared(text, found[name], SERIAL, found[SERIAL], unit="s")
    for name, plan in plans.items():
        error = Spread.of(100 * np.abs(plan.makespan / found[name] - 1))
        yield Row(f"{graph.name}, {name}: error of its predicted {duration(plan.makespan)}", "%", error)
    best = min((name for name in plans if name != PICK), key=lambda name: float(np.median(found[name])))
    picked = f"{graph.name}, {PICK} beside the best of the others"
    yield compared(picked, found[PICK], best, found[best], unit="s", goal=(">=", 0.98))


def profiled(
    driver: Driver, scale: float, graphs: Sequence[nr.Graph], tensors: Tensors
) -> tuple[nr.Device, nr.Profile]:
    """The device with figures fitted to the calls of ``graphs``, and what these take, measured for some seconds."""
    asked = [(graph, by_kind(graph, tensors)[0]) for graph in graphs]
    with tempfile.TemporaryDirectory() as folder:
        report = measure(
            asked, device_of(driver), Path(folder) / "measurements", PROFILED * min(1.0, scale), driver=driver
        )
    return report.device, report.profile


def by_kind(graph: nr.Graph, tensors: Tensors) -> tuple[dict[str, torch.Tensor], ...]:
    """The inputs, constants and states among ``tensors``, rows of inputs in the order of ``graph``, a cut one."""
    kinds: dict[str, dict[str, torch.Tensor]] = {"input": {}, "constant": {}, "state": {}}
    for root in graph.roots:
        if root.kind in kinds:
            ragged = graph.layout if root.batch is not None else None
            kinds[root.kind][root.name] = ragged.pack(tensors[root.name]) if ragged else tensors[root.name]
    return tuple(kinds.values())


@contextmanager
def running(plans: Mapping[str, nr.Schedule], tensors: Tensors) -> Iterator[dict[str, Run]]:
    """What runs each plan, captured and warmed up; they share the tensors, states included."""
    with ExitStack() as stack:
        runs: dict[str, Run] = {}
        for name, plan in plans.items():
            inputs, constants, states = by_kind(plan.graph, tensors)
            run = nr.Executor(plan, constants=constants, states=states, backend="cuda", capture=True, trace=False)
            runs[name] = partial(stack.enter_context(run), **inputs)
            for _ in range(UNTIMED):
                runs[name]()
        yield runs


def timed(driver: Driver, run: Run, scale: float) -> Callable[[], float]:
    """What tells the device's seconds of a run."""
    return partial(device_seconds, driver, CALLER, run, sized(QUEUED, scale))


def refuse_unlike(driver: Driver, plans: Mapping[str, nr.Schedule], runs: Mapping[str, Run]) -> None:
    """Raises where a plan does not compute what the first one does."""
    wanted: dict[str, torch.Tensor] = {}
    for name, run in runs.items():
        found = run()
        finish(driver, CALLER)
        layout = plans[name].graph.layout
        for output, value in found.items():
            rows = layout.unpack(value) if layout is not None and len(value) == layout.rows else value
            right = wanted.setdefault(output, rows.float().clone())
            if not (rows.float() - right).norm() <= CLOSE * right.norm():
                raise AssertionError(f"{name} computes another {output} than {next(iter(runs))}")
