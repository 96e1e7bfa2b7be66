"""Problem: the multi-mode resource-constrained project scheduling problem; Solution: when its tasks start, and how."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from nanort.errors import ProblemError
from nanort.scheduling.solving.arrays import MOST, SLACK, Arrays, arrays

if TYPE_CHECKING:
    from nanort.devices import Device
    from nanort.graph import Graph


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to carry out a task: how long it takes, and how much of each resource it holds meanwhile.

    >>> Mode(3.5, {"sms": 64, "hbm": 0.4})
    Mode(duration=3.5, usage={'sms': 64, 'hbm': 0.4})
    """

    duration: float
    usage: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "duration", _figure(self.duration, "the duration of a mode"))
        usage = {name: _figure(amount, f"the usage of {name!r}") for name, amount in dict(self.usage).items()}
        object.__setattr__(self, "usage", usage)


@dataclass(frozen=True, slots=True)
class Task:
    """A piece of work and the modes that it can be carried out in; it runs once, in one of them, uninterrupted."""

    name: str
    modes: tuple[Mode, ...]

    def __init__(self, name: str, modes: Sequence[Mode]) -> None:
        if not isinstance(name, str):
            raise ProblemError(f"task {name!r}: a name is a string: give Task({str(name)!r}, ...)")
        if isinstance(modes, Mode) or not isinstance(modes, Iterable):
            raise ProblemError(f"task {name!r}: modes={modes!r}: give a sequence of Mode(duration, usage)")
        modes = tuple(modes)
        if not all(isinstance(mode, Mode) for mode in modes):
            raise ProblemError(f"task {name!r}: modes={modes!r}: give a sequence of Mode(duration, usage)")
        if not modes:
            raise ProblemError(f"task {name!r} has no mode: give it at least one Mode(duration, usage)")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "modes", modes)


@dataclass(frozen=True)
class Problem:
    """Tasks, renewable resources and an order: when does each task start, and in which mode, so that all end soonest?

    Args:
        tasks: at least one; their names are distinct.
        capacities: how much of each resource there is at every instant.
        precedence: pairs ``(before, after)`` of task names; ``after`` starts once ``before`` has ended.
        name: what is printed.

    A mode that asks for more of a resource than there is takes no part; the others keep their index.

    Raises:
        ProblemError: a figure that is negative or not finite, a name that is unknown or used twice, a task of which no
            mode fits, or tasks that wait for each other in a circle.

    >>> tasks = [Task("load", [Mode(2, {"link": 1})]), Task("work", [Mode(3, {"cores": 4}), Mode(5, {"cores": 2})])]
    >>> Problem(tasks, {"cores": 4, "link": 1}, [("load", "work")], name="tiny")
    <Problem tiny: 2 tasks in up to 2 modes, 1 precedence, 2 resources>
    """

    tasks: tuple[Task, ...]
    capacities: Mapping[str, float] = field(hash=False)
    precedence: tuple[tuple[str, str], ...] = ()
    name: str = "problem"

    def __init__(
        self,
        tasks: Iterable[Task],
        capacities: Mapping[str, float],
        precedence: Iterable[tuple[str, str]] = (),
        name: str = "problem",
    ) -> None:
        if not isinstance(capacities, Mapping):
            raise ProblemError(
                f"capacities={capacities!r}: give a mapping from each resource to how much there is of it"
            )
        held = {resource: _figure(amount, f"the capacity of {resource!r}") for resource, amount in capacities.items()}
        for label, value in (("tasks", tuple(tasks)), ("capacities", held), ("name", name)):
            object.__setattr__(self, label, value)
        object.__setattr__(self, "precedence", tuple(dict.fromkeys(_pair(pair) for pair in precedence)))
        self._refuse_names()
        self.arrays  # noqa: B018  # refuses circles, and tasks that do not fit

    def __repr__(self) -> str:
        modes = max(len(task.modes) for task in self.tasks)
        counts = (("precedence", len(self.precedence)), ("resource", len(self.capacities)))
        said = (f"{count:,} {what}{'s' * (count != 1)}" for what, count in counts)
        tasks = f"{len(self.tasks):,} task{'s' * (len(self.tasks) != 1)}{f' in up to {modes} modes' * (modes > 1)}"
        return f"<Problem {self.name}: {', '.join((tasks, *said))}>"

    @cached_property
    def arrays(self) -> Arrays:
        """The same in numbers, for those who compute with it."""
        return arrays(self)

    @staticmethod
    def read(path: str | os.PathLike[str]) -> Problem:
        """The problem in a file of the standard sets: Patterson's ``.rcp``, or PSPLIB's ``.sm`` and ``.mm``.

        Tasks are called ``"1"``, ``"2"``, ... as in the file; its source and sink are tasks of duration 0.

        Raises:
            TruncatedFileError: the file is cut short, or is of another kind.
            FileError: it says something that cannot be; the message names the line.
            ProblemError: it limits resources that are used up, which cannot be stated here.
        """
        from nanort.scheduling.solving import files as problem_files

        return problem_files.read(path)

    @staticmethod
    def of(graph: Graph, device: Device) -> Problem:
        """The problem of running ``graph`` on ``device`` where every demand is rigid; it holds the fewest SMs it can.

        Resources are SMs, shares of the bandwidths, and copy engines, which carry one transfer at a time each.

        Raises:
            ProblemError: a node's demand is not rigid, or does not fit the device.
        """
        tasks = []
        for node in graph.seal().nodes:
            demand = node.demand
            if demand.seconds is None:
                raise ProblemError(
                    f"{node.where}: {node.name} has no fixed duration: give every node demand=nr.Demand.rigid(...), or "
                    f"plan the graph with nr.co_schedule"
                )
            usage: dict[str, float] = {"sms": node.span[0], "hbm": demand.hbm, "h2d": demand.h2d, "d2h": demand.d2h}
            if demand.engine:
                usage[f"{demand.engine} engine"] = 1
            tasks.append(Task(node.name, [Mode(demand.seconds, usage)]))
        arcs = [(graph.nodes[pred].name, node.name) for node in graph.nodes for pred, _ in node.preds]
        capacities = {"sms": device.sms, "hbm": 1, "h2d": 1, "d2h": 1, "h2d engine": 1, "d2h engine": 1}
        return Problem(tasks, capacities, arcs, graph.name)

    def check(self, solution: Solution) -> None:
        """Judges a solution by itself, whatever made it.

        Raises:
            ScheduleError: it breaks a constraint; the message names the tasks.
        """
        from nanort.scheduling.solving import check as problem_check

        problem_check.check(self, solution)

    def _refuse_names(self) -> None:
        names = set[str]()
        if not self.tasks:
            raise ProblemError(f"problem {self.name!r} has no tasks: give at least one")
        for task in self.tasks:
            if not isinstance(task, Task):
                raise ProblemError(f"problem {self.name!r}: {task!r} is no task: give Task(name, modes)")
            if task.name in names:
                raise ProblemError(f"two tasks are called {task.name!r}: give each a name of its own")
            names.add(task.name)
            for mode in task.modes:
                if unknown := mode.usage.keys() - self.capacities.keys():
                    raise ProblemError(
                        f"task {task.name!r} uses {sorted(unknown)}: give their capacities, there are only those of "
                        f"{sorted(self.capacities)}"
                    )
        for pair in self.precedence:
            if strangers := [name for name in pair if name not in names]:
                raise ProblemError(f"precedence {pair}: there is no task {strangers[0]!r}: use names of tasks")
            if pair[0] == pair[1]:
                raise ProblemError(f"precedence {pair}: {pair[0]!r} cannot wait for itself: leave the pair out")


@dataclass(frozen=True, slots=True, repr=False)
class Solution:
    """When each task of a problem starts, and in which mode; whole numbers where all of the problem's are.

    Attributes:
        starts: by task, in the order of ``Problem.tasks``, from 0 on.
        modes: by task, indices into ``Task.modes``.
        makespan: when the last task ends.
        bound: what no solution can be below.
        schedules: how many were generated to find it.
        stopped: why the search ended before its budget did; "" if it did not.
    """

    starts: tuple[float, ...]
    modes: tuple[int, ...]
    makespan: float
    bound: float
    schedules: int = 0
    stopped: str = ""

    def __repr__(self) -> str:
        gap = "optimal" if self.optimal else f"bound {self.bound:.9g}"
        if self.bound and not self.optimal:
            gap += f", at most {self.makespan / self.bound - 1:.1%} above the optimum"
        made = f"{self.schedules:,} schedule{'s' * (self.schedules != 1)}"
        return f"<Solution: makespan {self.makespan:.9g}, {gap}; {made}{f'; {self.stopped}' * bool(self.stopped)}>"

    @property
    def optimal(self) -> bool:
        """Whether the bound proves that nothing is better."""
        return self.makespan <= self.bound * (1 + SLACK)


def _figure(figure: object, what: str) -> float:
    """A plain int or float that is finite and not negative."""
    if isinstance(figure, np.generic):
        figure = figure.item()
    if isinstance(figure, bool) or not isinstance(figure, (int, float)) or not 0 <= figure <= MOST:
        raise ProblemError(f"{what} is {figure!r}: give a number from 0 to {MOST:,}")
    return figure


def _pair(pair: object) -> tuple[str, str]:
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise ProblemError(f"precedence {pair!r}: give pairs of task names, (before, after)")
    return (pair[0], pair[1])
