"""Plans: the bank of schedules and executors, one for every bucket of steps that has come along of late."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import log2

import torch

from nanort.costs.profile import Profile
from nanort.devices import Device
from nanort.errors import ScheduleError, SplitError
from nanort.graph import Graph
from nanort.layout import Layout
from nanort.runtime.bank import Bank
from nanort.runtime.executor import Executor
from nanort.scheduling.replan import replan
from nanort.scheduling.schedule import Schedule
from nanort.scheduling.structures import SERIAL
from nanort.timeline.units import counted

NEAR = 2.0
"""Octaves, of all sizes together, up to which the plan of one bucket may start that of another."""

KEPT = 0.95
"""What a plan that was carried over has to gain, of what it gained before; otherwise a search finds a better one."""


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

    @property
    def memory_bytes(self) -> int:
        """Device bytes that its executor holds beside constants and states."""
        return self.run.memory_bytes

    def close(self) -> None:
        """Ends the executor."""
        self.run.close()

    def suits(self, step: Layout, requests: int) -> bool:
        """Whether the step fits without padding by more than a half, its KV reads within 2x of those planned for."""
        if not self.bucket.fits(step) or requests + (self.bucket.rows > step.rows) > self.requests:
            return False
        near = self.bucket.kv_tokens <= 2 * step.kv_tokens and step.kv_tokens <= 2 * self.bucket.kv_tokens
        return near and 2 * self.bucket.rows <= 3 * step.rows + 4


@dataclass(frozen=True, slots=True)
class _Key:
    """What a plan is made for."""

    bucket: Layout
    requests: int
    device: Device
    profile: str

    def __str__(self) -> str:
        return f"the plan of {self.bucket} for {counted(self.requests, 'request')} on {self.device.name}"


class PlanBank:
    """Makes plans on demand and keeps those used last; ``close`` ends their executors.

    Args:
        build: the graph of a bucket with so many requests.
        plan: its schedule on a device, by what was measured there, and given that of the nearest bucket if one is near.
        constants, states: tensors that every executor shares.
        capacity: how many plans are kept.
        budget: device bytes that their executors may hold; None for any.

    Raises:
        CapacityError: no plan could be kept.
    """

    def __init__(
        self,
        build: Callable[[Layout, int], Graph],
        plan: Callable[[Graph, Device, Profile | None, Schedule | None], Schedule],
        constants: Mapping[str, torch.Tensor],
        states: Mapping[str, torch.Tensor],
        capacity: int = 64,
        budget: int | None = None,
    ) -> None:
        self._bank: Bank[_Key, Plan] = Bank(capacity=capacity, budget=budget)
        self._build, self._plan = build, plan
        self._constants, self._states = constants, states

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plans that it keeps, the one used last at the end."""
        return tuple(plan for _, plan in self._bank.items)

    def find(self, step: Layout, requests: int, device: Device, profile: Profile | None = None) -> Plan:
        """The smallest plan that suits the step, made now if there is none; those used least lately may be closed.

        Raises:
            CapacityError: the plan alone takes more than the budget.
        """
        bucket = step.bucket()
        asked = _Key(bucket, requests + (bucket.rows > step.rows), device, profile.identity if profile else "")
        alike = {k: plan for k, plan in self._bank.items if (k.device, k.profile) == (device, asked.profile)}
        suited = [key for key, plan in alike.items() if plan.suits(step, requests)]
        key = min(suited, key=lambda key: (key.bucket.rows, key.requests), default=asked)
        return self._bank.get(key, partial(self._made, asked, profile, list(alike.values())))

    def close(self) -> None:
        """Ends the executors of all plans."""
        self._bank.close()

    def _made(self, asked: _Key, profile: Profile | None, alike: Sequence[Plan]) -> Plan:
        """A new plan, which starts from the nearest of those that are alike."""
        near = min(alike, key=lambda plan: octaves(plan.bucket, asked.bucket), default=None)
        start = near.schedule if near is not None and octaves(near.bucket, asked.bucket) <= NEAR else None
        schedule = self._plan(self._build(asked.bucket, asked.requests), asked.device, profile, start)
        run = Executor(schedule, constants=self._constants, states=self._states, capture=True)
        return Plan(asked.bucket, asked.requests, schedule, run)


def octaves(one: Layout, other: Layout) -> float:
    """How far two buckets are from each other: the sum, over what sizes a step has, of how often one doubles.

    >>> octaves(Layout(decode=3, kv_tokens=127), Layout(decode=7, kv_tokens=511))
    3.0
    """
    sizes = [(b.decode, b.kv_tokens, b.prefill_rows, b.prefill_kv_tokens) for b in (one, other)]
    return sum(abs(log2((size + 1) / (beside + 1))) for size, beside in zip(*sizes, strict=True))


def carried(near: Schedule, graph: Graph, guard: bool) -> Schedule | None:
    """The plan of a near bucket carried over; None where it is serial, does not fit, or does not gain as much."""
    with suppress(ScheduleError, SplitError):
        found = replan(near, graph, guard=guard)
        if found.mechanism != SERIAL and found.outlooks[0].gain >= KEPT * near.outlooks[0].gain:
            return found
    return None
