"""The steady step of LLaMA-3-8B served at its largest batch: in order, in nano-batches, overlapped, with offload."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

import nanort as nr
from benchmarks.gpu.places import device_of
from benchmarks.gpu.races import CALLER, Run, by_kind, fixed, profiled, running, timed
from benchmarks.gpu.serving_steps import Step, llama, random_tensors
from benchmarks.gpu.timing import DTYPE, finish, interleave
from benchmarks.measure import Row, Spread, compared
from nanort.bench.optimal import Optimal, product_seconds
from nanort.compare import Row as Plan
from nanort.costs.roofline import Costs
from nanort.driver import Driver
from nanort.graphs import DecoderConfig
from nanort.scheduling.structures import ISOLATED

WORKLOADS = ((1024, 512), (512, 512))
"""Tokens of prompts and of replies."""
CUTS = (1, 2)
SERIAL, NANO, PARTITIONED, CORESIDENT = "serial", "nano-batches only", "partitioned", "co-resident"
PICK, OFFLOAD = "co_schedule's pick", "co_schedule's pick with offload"
OPTIMAL = {PARTITIONED: 70.0, CORESIDENT: 80.0}
"""Percent of optimal that is aimed at; NanoFlow has 78.5 on an A100."""
GAINS = {PARTITIONED: (SERIAL, 1.15), OFFLOAD: (PICK, 1 / 1.03)}
"""What is aimed at, and beside which baseline; for the others that is serial, and no goal."""
APART = 10.0
"""Percent by which logits may differ after all layers: rows of a cut product round otherwise."""


@dataclass(frozen=True, slots=True)
class Case:
    """A step, its graphs without and with offload, and all tensors but those that depend on how a graph is cut."""

    step: Step
    config: DecoderConfig
    graph: nr.Graph
    moving: nr.Graph
    lasting: Mapping[str, torch.Tensor]

    def tensors(self, driver: Driver, graph: nr.Graph) -> dict[str, torch.Tensor]:
        """All that ``graph`` takes, one of these two or what it is cut into; rows in canonical order."""
        return {**self.lasting, **self.step.inputs(driver, graph, self.config.vocab)}

    def stopwatch(self, driver: Driver, graph: nr.Graph) -> nr.Stopwatch:
        """What runs plans of ``graph`` side by side."""
        inputs, constants, states = by_kind(graph, self.tensors(driver, graph))
        return nr.Stopwatch(inputs=inputs, constants=constants, states=states, backend="cuda", capture=True)


def measure(driver: Driver, scale: float) -> Iterator[Row]:
    """Both workloads, over the same weights and cache."""
    config, memory = llama(scale), device_of(driver).memory_bytes
    steps = [Step.largest(memory, *lengths, scale) for lengths in WORKLOADS]
    pages = max(step.pages for step in steps)
    lasting = random_tensors(driver, steps[0].graph(config, pages), {"constant", "state"})
    for (prompt, reply), step in zip(WORKLOADS, steps, strict=True):
        graph, moving = (step.graph(config, pages, moving=moves) for moves in (False, True))
        case = Case(step, config, graph, moving, {**lasting, **random_tensors(driver, moving, {"input"})})
        what = f"{prompt} / {reply}, {step.decode} decode rows, {sum(step.prompts)} of prompts"
        yield from _rows(driver, scale, what, case)


def _rows(driver: Driver, scale: float, what: str, case: Case) -> Iterator[Row]:
    costs, plans = planned(driver, scale, case)
    with _running(driver, case, plans) as runs:
        apart = _apart(driver, runs)
        found = interleave({name: timed(driver, run, scale) for name, run in runs.items()}, scale)
    rows = case.step.decode + sum(case.step.prompts)
    products = product_seconds(case.graph, costs)
    arithmetic = Optimal(case.config, costs.device, DTYPE, costs.profile).tokens_per_second
    for name, plan in plans.items():
        seconds, told = found[name], f"{what}, {name}: {plan.mechanism}, {'cut' if plan.split else 'uncut'}"
        yield Row(f"{told}: processed", "tokens/s", Spread.of(rows / seconds))
        goal = (">=", OPTIMAL[name]) if name in OPTIMAL else None
        yield Row(f"{told}: of its products by {costs.profile}", "%", Spread.of(100 * products / seconds), goal=goal)
        yield Row(f"{told}: of 2 operations a parameter", "%", Spread.of(100 * rows / seconds / arithmetic))
        baseline, gain = GAINS.get(name, (SERIAL, None))
        if name != baseline:
            yield compared(
                told, seconds, baseline, found[baseline], unit="s", goal=None if gain is None else (">=", gain)
            )
        if name in apart:
            yield Row(f"{told}: logits apart from serial's", "%", Spread.of([apart[name]]), goal=("<=", APART))


def planned(driver: Driver, scale: float, case: Case) -> tuple[Costs, dict[str, nr.Schedule]]:
    """What the calls of the step were measured to take, and the plans that are made from it."""
    graph, cuts = case.graph, [nr.nano_batch(case.graph, count) for count in CUTS]
    device, profile = profiled(driver, scale, cuts, case.tensors(driver, graph))
    plans = {
        SERIAL: nr.co_schedule(graph, device, policy="serial", nano_batches=CUTS[:1], profile=profile),
        NANO: nr.co_schedule(graph, device, policy="serial", nano_batches=CUTS[1:], profile=profile),
        CORESIDENT: fixed(graph, device, profile=profile, nano_batches=CUTS[1:]),
    }
    if isolated := Plan.only(graph, device, ISOLATED, nano_batches=CUTS, profile=profile):
        plans[PARTITIONED] = isolated.schedule
    for name, one in ((PICK, graph), (OFFLOAD, case.moving)):
        watch = case.stopwatch(driver, one)
        plans[name] = nr.co_schedule(one, device, nano_batches=CUTS, profile=profile, measure=watch)
    return Costs(device, profile), plans


@contextmanager
def _running(driver: Driver, case: Case, plans: Mapping[str, nr.Schedule]) -> Iterator[dict[str, Run]]:
    """What runs each plan; where a request's last row stands depends on how its graph is cut."""
    with ExitStack() as stack:
        runs = dict[str, Run]()
        for name, plan in plans.items():
            runs |= stack.enter_context(running({name: plan}, case.tensors(driver, plan.graph)))
        yield runs


def _apart(driver: Driver, runs: Mapping[str, Run]) -> dict[str, float]:
    """How far the logits of each are from those of the first, in percent of their size."""
    logits = {}
    for name, run in runs.items():
        logits[name] = run()["logits"]
        finish(driver, CALLER)
        logits[name] = logits[name].float().clone()
    _, right = next(iter(logits.items()))
    return {name: float(100 * (one - right).norm() / right.norm()) for name, one in logits.items() if one is not right}
