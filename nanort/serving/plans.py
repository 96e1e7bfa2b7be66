"""Plans: the bank of schedules and executors, one for every bucket of steps that has come along of late."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import log2

import torch

from nanort.costs.profile import Profile
from nanort.devices import Device
from nanort.errors import RequestError, ScheduleError, SplitError
from nanort.graph import Graph
from nanort.layout import Layout
from nanort.runtime.executor import Executor
from nanort.scheduling.replan import replan
from nanort.scheduling.schedule import Schedule
from nanort.scheduling.structures import SERIAL

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


class PlanBank:
    """Makes plans on demand and keeps those used last; ``close`` ends their executors.

    Args:
        build: the graph of a bucket with so many requests.
        plan: its schedule on a device, by what was measured there, and given that of the nearest bucket if one is near.
        constants, states: tensors that every executor shares.
        capacity: how many plans are kept.

    Raises:
        RequestError: the capacity is less than one.
    """

    def __init__(
        self,
        build: Callable[[Layout, int], Graph],
        plan: Callable[[Graph, Device, Profile | None, Schedule | None], Schedule],
        constants: Mapping[str, torch.Tensor],
        states: Mapping[str, torch.Tensor],
        capacity: int = 64,
    ) -> None:
        if capacity < 1:
            raise RequestError(f"capacity={capacity} holds no plan: give at least 1")
        self._plans: OrderedDict[_Key, Plan] = OrderedDict()  # the one used last comes last
        self._build, self._plan = build, plan
        self._constants, self._states = constants, states
        self._capacity = capacity

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plans that it keeps, the one used last at the end."""
        return tuple(self._plans.values())

    def find(self, step: Layout, requests: int, device: Device, profile: Profile | None = None) -> Plan:
        """The smallest plan that suits the step, made now if there is none; the one used least lately may be closed."""
        bucket = step.bucket()
        asked = _Key(bucket, requests + (bucket.rows > step.rows), device, profile.identity if profile else "")
        alike = [(k, p) for k, p in self._plans.items() if (k.device, k.profile) == (device, asked.profile)]
        suited = [(key, plan) for key, plan in alike if plan.suits(step, requests)]
        if suited:
            key, plan = min(suited, key=lambda item: (item[0].bucket.rows, item[0].requests))
            self._plans.move_to_end(key)
            return plan
        near = min((plan for _, plan in alike), key=lambda plan: octaves(plan.bucket, bucket), default=None)
        start = near.schedule if near is not None and octaves(near.bucket, bucket) <= NEAR else None
        schedule = self._plan(self._build(bucket, asked.requests), device, profile, start)
        while len(self._plans) >= self._capacity:
            self._plans.popitem(last=False)[1].run.close()
        run = Executor(schedule, constants=self._constants, states=self._states)
        self._plans[asked] = Plan(bucket, asked.requests, schedule, run)
        return self._plans[asked]

    def close(self) -> None:
        """Ends the executors of all plans."""
        while self._plans:
            self._plans.popitem()[1].run.close()


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
