"""Stopwatch: what tells the seconds of a schedule by running it, for the guard of co_schedule."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

import torch

from nanort.errors import CostError
from nanort.runtime.executor import Executor
from nanort.scheduling.schedule import Schedule


class Stopwatch:
    """Runs schedules of one graph on given tensors: ``co_schedule(g, device, measure=Stopwatch(inputs=...))``.

    Args:
        inputs, constants, states: by name; states are changed as a run would, so give a copy.
        backend: of the Executor.
        repeats: runs that are timed, after one that is not.
        budget: seconds after which no further run is begun; a first run that takes them all counts.
    """

    def __init__(
        self,
        *,
        inputs: Mapping[str, torch.Tensor],
        constants: Mapping[str, torch.Tensor] | None = None,
        states: Mapping[str, torch.Tensor] | None = None,
        backend: str = "auto",
        repeats: int = 5,
        budget: float = 1.0,
    ) -> None:
        if repeats < 1 or not budget > 0:
            raise CostError(f"Stopwatch({repeats=}, {budget=}): give at least one run, and more than zero seconds")
        self.inputs = dict(inputs)
        self.constants = dict(constants or {})
        self.states = dict(states or {})
        self.backend = backend
        self.repeats = repeats
        self.budget = budget

    def __call__(self, schedule: Schedule) -> float:
        """Median seconds of a run, by its timeline."""
        with Executor(schedule, constants=self.constants, states=self.states, backend=self.backend) as run:
            times: list[float] = []
            while len(times) <= self.repeats and sum(times) < self.budget:
                run(**self.inputs)
                times.append(run.timeline.makespan)
        return median(times[1:] or times)
