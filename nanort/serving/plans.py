"""PlanBank: the executors used of late, one for every plan of a step that has come along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch

from nanort.layout import Layout
from nanort.runtime.bank import Bank
from nanort.runtime.executor import Executor
from nanort.scheduling.schedule import Schedule
from nanort.serving.planner import Planned, Planner
from nanort.serving.shapes import Shape

WORKSPACE = 32 << 20
"""Bytes that libraries of matrix products take for each stream which they are called on."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The schedule of every step that ``shape`` suits, and its executor."""

    shape: Shape
    schedule: Schedule
    run: Executor

    @property
    def bucket(self) -> Layout:
        """The rows that it has room for."""
        return self.shape.layout

    @property
    def layout(self) -> Layout:
        """These rows, packed as the schedule's pieces hold them."""
        layout = self.schedule.graph.layout
        assert layout is not None
        return layout

    @property
    def memory_bytes(self) -> int:
        """Device bytes that its executor holds beside constants and states, and libraries for each of its streams."""
        held = self.run.memory_bytes
        return held and held + WORKSPACE * sum(not stream.engine for stream in self.schedule.streams)

    def close(self) -> None:
        """Ends the executor."""
        self.run.close()


class PlanBank:
    """Makes executors on demand and keeps those used last; ``close`` ends them. Use it from one thread.

    Args:
        planner: finds schedules.
        constants, states: tensors that every executor shares, those that its graph knows.
        capacity: how many executors are kept.
        budget: device bytes that they may hold; None for any.
        trace: whether runs are timed.
        backend: what runs them.
        timeout: of a GPU: seconds in which some node of a run has to end.
        debug: whether runs are recorded and judged, see Executor.

    Raises:
        CapacityError: no plan could be kept.
    """

    def __init__(
        self,
        planner: Planner,
        constants: Mapping[str, torch.Tensor],
        states: Mapping[str, torch.Tensor],
        *,
        capacity: int = 128,
        budget: int | None = None,
        trace: bool = True,
        backend: str = "auto",
        timeout: float | None = None,
        debug: bool = False,
    ) -> None:
        self.planner = planner
        self._bank: Bank[Planned, Plan] = Bank(capacity=capacity, budget=budget)
        self._constants, self._states, self._trace = constants, states, trace
        self._backend, self._timeout = backend, timeout
        self._debug = debug

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plans that it keeps, the one used last at the end."""
        return tuple(plan for _, plan in self._bank.items)

    @property
    def memory_bytes(self) -> int:
        """Device bytes that their executors hold."""
        return self._bank.memory_bytes

    def find(self, step: Shape) -> Plan:
        """The plan of the step, its executor made now if there is none; those used least lately may be closed.

        Raises:
            CapacityError: the plan alone takes more than the budget.
        """
        planned = self.planner.find(step)
        return self._bank.get(planned, partial(self._made, planned))

    def close(self) -> None:
        """Ends the executors of all plans."""
        self._bank.close()

    def _made(self, planned: Planned) -> Plan:
        bound = {
            kind: {root.name: given[root.name] for root in planned.schedule.source.roots if root.kind == kind}
            for kind, given in (("constant", self._constants), ("state", self._states))
        }
        run = Executor(
            planned.schedule, constants=bound["constant"], states=bound["state"], capture=True, trace=self._trace,
            wait=False, backend=self._backend, timeout=self._timeout, debug=self._debug,
        )  # fmt: skip  # what is said by its name
        return Plan(planned.shape, planned.schedule, run)
