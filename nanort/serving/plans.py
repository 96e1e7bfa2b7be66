"""Plans: the bank of schedules and executors, one for every bucket of steps that has come along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from nanort.graph import Graph
from nanort.layout import Layout
from nanort.runtime.executor import Executor
from nanort.scheduling.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Plan:
    """A schedule for every step that fits in ``bucket`` and has at most ``requests`` requests, and its executor."""

    bucket: Layout
    requests: int
    schedule: Schedule
    run: Executor

    @property
    def layout(self) -> Layout:
        """The bucket with its rows packed as the schedule's pieces hold them."""
        layout = self.schedule.graph.layout
        assert layout is not None
        return layout

    def suits(self, step: Layout, requests: int) -> bool:
        """Whether the step fits without padding by more than a half, its KV reads within 2x of those planned for."""
        if not self.bucket.fits(step) or requests + (self.bucket.rows > step.rows) > self.requests:
            return False
        near = self.bucket.kv_tokens <= 2 * step.kv_tokens and step.kv_tokens <= 2 * self.bucket.kv_tokens
        return near and 2 * self.bucket.rows <= 3 * step.rows + 4


class PlanBank:
    """Makes plans on demand and keeps them; ``close`` ends their executors.

    Args:
        build: the graph of a bucket with so many requests.
        plan: its schedule.
        constants, states: tensors that every executor shares.
    """

    def __init__(
        self,
        build: Callable[[Layout, int], Graph],
        plan: Callable[[Graph], Schedule],
        constants: Mapping[str, torch.Tensor],
        states: Mapping[str, torch.Tensor],
    ) -> None:
        self.plans: list[Plan] = []
        self._build, self._plan = build, plan
        self._constants, self._states = constants, states

    def find(self, step: Layout, requests: int) -> Plan:
        """The smallest plan that suits the step, made now if there is none."""
        suited = [plan for plan in self.plans if plan.suits(step, requests)]
        if suited:
            return min(suited, key=lambda plan: (plan.bucket.rows, plan.requests))
        bucket = step.bucket()
        room = requests + (bucket.rows > step.rows)
        schedule = self._plan(self._build(bucket, room))
        plan = Plan(bucket, room, schedule, Executor(schedule, constants=self._constants, states=self._states))
        self.plans.append(plan)
        return plan

    def close(self) -> None:
        """Ends the executors of all plans."""
        while self.plans:
            self.plans.pop().run.close()
