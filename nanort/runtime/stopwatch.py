"""Stopwatch: what runs schedules side by side and tells the seconds of each run, for the guard of co_schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import torch

from nanort.eager import KINDS
from nanort.errors import CostError, MissingInputError
from nanort.graph import Graph
from nanort.runtime.buffers import SLOTS
from nanort.runtime.executor import Executor, resolve
from nanort.scheduling.guard import standard
from nanort.scheduling.schedule import Schedule
from nanort.values import Value


class Stopwatch:
    """Runs schedules of one graph side by side: ``co_schedule(g, device, measure=Stopwatch(inputs=...))``.

    Args:
        inputs, constants, states: by name; states are changed as a run would, so give a copy. Those that are not given
            are random, which integers, such as page tables, cannot be. Rows are in canonical order, as the uncut graph
            takes them; a cut plan is given them as its layout packs them.
        seed: of what is random.
        backend, capture: of the Executors.
        repeats: runs of each schedule that are timed, after some that are not; an interval takes six.
        budget: seconds of all runs together after which no round of them is begun; a first one that takes them all
            counts.

    Raises:
        CostError: there is no run to make.
    """

    def __init__(
        self,
        *,
        inputs: Mapping[str, torch.Tensor] | None = None,
        constants: Mapping[str, torch.Tensor] | None = None,
        states: Mapping[str, torch.Tensor] | None = None,
        seed: int = 0,
        backend: str = "auto",
        capture: bool = False,
        repeats: int = 11,
        budget: float = 2.0,
    ) -> None:
        if repeats < 1 or not budget > 0:
            raise CostError(f"Stopwatch({repeats=}, {budget=}): give at least one run, and more than zero seconds")
        self.given = dict(zip(KINDS, (dict(inputs or {}), dict(constants or {}), dict(states or {})), strict=True))
        self.seed = seed
        self.backend = backend
        self.capture = capture
        self.repeats = repeats
        self.budget = budget

    def __call__(self, schedules: Sequence[Schedule]) -> list[list[float]]:
        """For each schedule the seconds of its runs, by their timelines; all of them share the tensors.

        A round runs each of them once, in the opposite order to the round before: what drifts meets all alike.

        Raises:
            InputError: integers were not given, or what was given does not fit the graph.
            CostError: a schedule is planned for another device than it runs on.
        """
        kind, place = resolve(self.backend, schedules[0].device)
        if kind == "cpu" and schedules[0].device.kind != "cpu":  # before tensors of its size are made
            raise _foreign(schedules[0].device.name, "cpu")
        inputs, constants, states = self._tensors(schedules[0].source, place)
        ready = partial(Executor, constants=constants, states=states, backend=self.backend, capture=self.capture)
        warm = 1 + len(SLOTS) * self.capture  # a graph is captured for each slot of the outputs, after a first run
        rounds = list[list[float]]()
        with ExitStack() as stack:
            runs = [stack.enter_context(ready(schedule)) for schedule in schedules]
            given = [_packed(schedule.graph, inputs) for schedule in schedules]
            while len(rounds) < warm + self.repeats and sum(map(sum, rounds)) < self.budget:
                order = range(len(runs))[:: -1 if len(rounds) % 2 else 1]
                seconds = {k: _timed(runs[k], given[k]) for k in order}
                rounds.append([seconds[k] for k in range(len(runs))])
        return [list(times) for times in zip(*(rounds[warm:] or rounds[-1:]), strict=True)]

    def refuse(self, graph: Graph) -> None:
        """Refuses a graph that asks for something which was not given and cannot be random."""
        lacking: dict[str, list[str]] = {}
        for root in self._missing(graph):
            if not root.dtype.is_floating_point:
                lacking.setdefault(f"{root.kind}s", []).append(root.name)
        if lacking:
            asked = ", ".join(
                f"{kind}={{{', '.join(f'{name!r}: ...' for name in names)}}}" for kind, names in lacking.items()
            )
            raise MissingInputError(
                f"graph {graph.name!r} asks for integers, such as page tables and tokens, which cannot be random: give "
                f"them, measure=nr.Stopwatch({asked})"
            )

    def _missing(self, graph: Graph) -> list[Value]:
        return [root for root in graph.roots if root.kind in KINDS and root.name not in self.given[root.kind]]

    def _tensors(self, graph: Graph, place: str) -> list[dict[str, torch.Tensor]]:
        """Inputs, constants and states: those that were given, and random ones, made on ``place`` or on the host."""
        self.refuse(graph)
        tensors = {kind: dict(given) for kind, given in self.given.items()}
        for root in self._missing(graph):
            tensors[root.kind][root.name] = _random(root, self.seed + root.index, place)
        return [tensors[kind] for kind in KINDS]


@standard
def _on_random_tensors(seed: int) -> Stopwatch:
    """What ``measure=True`` asks for."""
    return Stopwatch(seed=seed)


def _random(root: Value, seed: int, place: str) -> torch.Tensor:
    """Normal numbers, which cost what real ones do (zeros do not); matrices keep the size of what they multiply."""
    where = "cpu" if root.device == "host" else place
    generator = torch.Generator(where).manual_seed(seed)
    numbers = torch.randn(root.shape, generator=generator, device=where)
    if root.kind == "constant" and len(root.shape) > 1:
        numbers /= math.sqrt(root.shape[-1])
    return numbers.to(root.dtype)


def _packed(graph: Graph, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inputs with the rows of the step as ``graph``, a cut one, holds them."""
    layout, rows = graph.layout, {root.name for root in graph.roots if root.kind == "input" and root.batch is not None}
    if layout is None or not layout.cuts:
        return dict(inputs)
    fits = {name for name in rows & inputs.keys() if inputs[name].shape[:1] == (layout.rows,)}  # others are refused
    return {name: layout.pack(tensor) if name in fits else tensor for name, tensor in inputs.items()}


def _timed(run: Executor, inputs: Mapping[str, torch.Tensor]) -> float:
    """The seconds of one run, which is over when they are known."""
    run(**inputs)
    timeline = run.timeline
    if timeline.foreign:
        raise _foreign(run.program.device.name, timeline.device)
    return timeline.makespan


def _foreign(device: str, place: str) -> CostError:
    """What is said of a plan for ``device`` that could only run on ``place``."""
    return CostError(
        f"a plan for {device} would run on {place}, whose times say nothing about it: measure it where it is to run, "
        f"or plan for nr.device({place!r})"
    )
