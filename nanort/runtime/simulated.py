"""The sim backend: the fluid simulator plays a program; deterministic, and no tensor is touched."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from nanort.programs.program import Copy, Launch, Program
from nanort.simulation.fluid import Jobs, Modes, replay
from nanort.timeline.events import Timeline


class SimulatedBackend:
    """Predicts a run of the program on its device."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._timeline: Timeline | None = None

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """No outputs: inputs are ignored, the timeline is the result."""
        self._timeline = simulate_program(self.program)
        return {}

    @property
    def timeline(self) -> Timeline:
        """The predicted run."""
        if self._timeline is None:
            self._timeline = simulate_program(self.program)
        return self._timeline

    @property
    def record(self) -> None:
        """Nothing really happened."""

    def close(self) -> None:
        """Nothing is held."""


def simulate_program(program: Program) -> Timeline:
    """What the fluid model says of ``program``: each stream in its order, waits kept, bandwidth and SMs shared."""
    device, costs = program.device, program.costs
    steps = [step for step in program.instructions if isinstance(step, (Launch, Copy))]
    nodes = [program.graph.nodes[step.node] for step in steps]
    index = {stream.name: k for k, stream in enumerate(program.streams)}
    sms = [step.sms if isinstance(step, Launch) else 0 for step in steps]
    alone = [costs.solo(node, held) for node, held in zip(nodes, sms, strict=True)]
    jobs = Jobs(
        stream=[index[step.stream] for step in steps],
        modes=Modes(
            seconds=[cost.seconds for cost in alone],
            sms=sms,
            shares=tuple([getattr(cost, link) for cost in alone] for link in ("hbm", "h2d", "d2h", "net")),
        ),
        operators=[node.op.name for node in nodes],
        seconds_on=lambda job, held: costs.solo(nodes[job], held).seconds if nodes[job].span[0] <= held else math.inf,
    )
    waits = [[on for on, _ in activity.waits] for activity in program.activities]
    pairs = costs.profile.slowdowns if costs.profile else None
    start, end = replay(jobs, program.streams, waits, pairs, device.event_seconds)
    return program.plan.with_times(start, end, kind="simulated")
