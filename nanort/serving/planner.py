"""Planner: a schedule for every shape of a step, carried over from a near one or searched, at once or meanwhile."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from time import perf_counter

from nanort.devices import Device
from nanort.errors import NanortError, ScheduleError, SplitError
from nanort.graph import Graph
from nanort.scheduling.coschedule import co_schedule
from nanort.scheduling.replan import replan
from nanort.scheduling.schedule import Schedule
from nanort.scheduling.structures import SERIAL
from nanort.serving.shapes import Shape, octaves
from nanort.serving.threads import Threads, one_thread
from nanort.timeline.units import counted

LOG = logging.getLogger("nanort")

NEAR = 1.0
"""Octaves, of all sizes together, up to which the plan that a search found for one shape may serve another."""

KEPT = 0.95
"""What a plan that was carried over has to gain, of what it gained before; otherwise a search finds a better one."""


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """The schedule of every step that ``shape`` suits."""

    shape: Shape
    schedule: Schedule
    searched: bool = False

    def __str__(self) -> str:
        shape = self.shape
        return f"the plan of {shape.layout} for {counted(shape.requests, 'request')} on {self.schedule.device.name}"


class Planner:
    """Finds schedules for steps and keeps those used last.

    Args:
        graph: builds the graph of a shape.
        search: finds its schedule, however long that takes.
        device: what it schedules for.
        guard: whether a plan carried over has to beat the serial one.
        carry: whether plans are carried over at all; what was measured for one shape says nothing of another.
        background: whether a step that no plan suits runs by a serial plan while a better one is searched.
        capacity: schedules that are kept.
        threads: starts the thread that searches in the background.

    Attributes:
        made: schedules that steps asked for and that were not there.
        seconds: how long steps waited for them.
    """

    def __init__(
        self,
        graph: Callable[[Shape], Graph],
        search: Callable[[Shape, Graph], Schedule],
        device: Device,
        *,
        guard: bool = True,
        carry: bool = True,
        background: bool = False,
        capacity: int = 256,
        threads: Threads = one_thread,
    ) -> None:
        self.device = device
        self.made = 0
        self.seconds = 0.0
        self._graph, self._search, self._guard, self._carry = graph, search, guard, carry
        self._capacity = capacity
        self._plans: OrderedDict[Shape, Planned] = OrderedDict()  # the one used last comes last
        self._known: dict[Shape, Shape] = {}  # for steps seen before, by their own buckets, whose plan they use
        self._searches: dict[Shape, Future[Planned]] = {}
        self._thread = threads("nanort planner") if background else None
        self._lock = Lock()

    @property
    def plans(self) -> tuple[Planned, ...]:
        """The schedules that it keeps, the one used last at the end."""
        return tuple(self._plans.values())

    def find(self, step: Shape) -> Planned:
        """The schedule of the smallest shape that suits the step, made now if there is none."""
        with self._lock:
            bucket = step.bucket
            shape = self._known.get(bucket)
            if shape is None or shape not in self._plans or not shape.suits(step):
                shape = self._known[bucket] = self._suited(step, bucket)
            if shape not in self._plans:
                began = perf_counter()
                self._plans[shape] = self._made(shape)
                self.made, self.seconds = self.made + 1, self.seconds + perf_counter() - began
                self._shrink()
            elif (search := self._searches.get(shape)) is not None and search.done():
                del self._searches[shape]
                self._settle(shape, search)
            self._plans.move_to_end(shape)
            return self._plans[shape]

    def close(self) -> None:
        """Ends what is searched in the background."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _settle(self, shape: Shape, search: Future[Planned]) -> None:
        """Takes what a search found; where it found nothing, the plan that has served so far stays."""
        try:
            self._plans[shape] = search.result()
        except NanortError as error:
            LOG.warning("%s stays serial: the search for a better one failed: %s", self._plans[shape], error)

    def _suited(self, step: Shape, bucket: Shape) -> Shape:
        suited = (shape for shape in self._plans if shape.suits(step))
        return min(suited, key=lambda shape: (shape.layout.rows, shape.requests), default=bucket)

    def _made(self, shape: Shape) -> Planned:
        graph = self._graph(shape)
        if (found := self._carried(shape, graph)) is not None:
            return found
        if self._thread is None:
            return self._searched(shape, graph)
        self._searches[shape] = self._thread.submit(self._searched, shape, graph)
        return Planned(shape, self._serial(graph))

    def _searched(self, shape: Shape, graph: Graph) -> Planned:
        schedule = self._search(shape, graph)
        if schedule.truncated:  # by Ctrl-C, at which a search keeps the best so far: whoever waits for a step may not
            raise KeyboardInterrupt
        return Planned(shape, schedule, searched=True)

    def _carried(self, shape: Shape, graph: Graph) -> Planned | None:
        """The plan that was searched for the nearest shape carried over, where one is near and it still gains.

        Where a search found nothing better than the serial plan, near shapes take theirs without another search.
        """
        if not self._carry or shape.beside is not None:  # for which there is a policy that takes no longer
            return None
        alike = [plan for plan in self._plans.values() if plan.searched and plan.shape.beside is None]
        near = min(alike, key=lambda plan: octaves(plan.shape.layout, shape.layout), default=None)
        if near is None or octaves(near.shape.layout, shape.layout) > NEAR:
            return None
        if near.schedule.mechanism == SERIAL:
            return Planned(shape, self._serial(graph))
        found = carried(near.schedule, graph, self._guard)
        return None if found is None else Planned(shape, found)

    def _serial(self, graph: Graph) -> Schedule:
        return co_schedule(graph, self.device, policy="serial", nano_batches=1)

    def _shrink(self) -> None:
        while len(self._plans) > self._capacity:
            shape, _ = self._plans.popitem(last=False)
            if (search := self._searches.pop(shape, None)) is not None:
                search.cancel()


def carried(near: Schedule, graph: Graph, guard: bool) -> Schedule | None:
    """The plan of a near shape carried over; None where it does not fit, or does not gain as much."""
    with suppress(ScheduleError, SplitError):
        found = replan(near, graph, guard=guard)
        if found.mechanism != SERIAL and found.outlooks[0].gain >= KEPT * near.outlooks[0].gain:
            return found
    return None
