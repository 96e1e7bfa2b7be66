"""Random scheduling problems like those of PSPLIB, made as ProGen makes them.

Kolisch, Sprecher, Drexl: Characterization and generation of a general class of resource-constrained project scheduling
problems, Management Science 41 (1995). The same arguments give the same problem on every machine.

>>> cell, problem = next(grid("j30", per_cell=1))
>>> cell
Cell(complexity=1.5, resource_factor=0.25, resource_strength=0.2)
>>> problem
<Problem j30-1-1: 32 tasks, 48 precedences, 4 resources>
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from nanort.errors import ProblemError
from nanort.scheduling.problem import Mode, Problem, Task

DURATIONS, USAGES = (1, 10), (1, 10)
ENDS = (1, 3)
"""How many activities follow the source, and how many the sink follows."""
NEIGHBOURS = 3
"""The most predecessors and successors of an activity, source and sink aside."""


@dataclass(frozen=True, slots=True)
class Cell:
    """The parameters that the problems of one cell of a grid share.

    Attributes:
        complexity: precedences for each task, source and sink included.
        resource_factor: the share of all resources that an activity uses on average.
        resource_strength: 0 where capacities are as small as activities allow, 1 where they never bind.
    """

    complexity: float
    resource_factor: float
    resource_strength: float


def grid(name: str, per_cell: int) -> Iterator[tuple[Cell, Problem]]:
    """``per_cell`` problems for every cell of PSPLIB's grid ``name``.

    "j30", "j60" and "j120" are of one mode and four resources; "m20", say, is of three modes and two resources.
    """
    jobs, modes, resources = int(name[1:]), *((3, 2) if name[0] == "m" else (1, 4))
    axes: list[tuple[float, ...]] = [(1.5, 1.8, 2.1), (0.25, 0.5, 0.75, 1.0), (0.2, 0.5, 0.7, 1.0)]
    if modes > 1:
        axes = [(1.8,), (0.5, 1.0), (0.25, 0.5, 0.75, 1.0)]
    elif jobs >= 120:
        axes[2] = (0.1, 0.2, 0.3, 0.4, 0.5)
    for number, (complexity, factor, strength) in enumerate(product(*axes), 1):
        cell = Cell(complexity, factor, strength)
        for at in range(1, per_cell + 1):
            seed, called = 1000 * number + at, f"{name}-{number}-{at}"
            yield cell, instance(jobs, complexity, factor, strength, seed, modes, resources, called)


def instance(
    jobs: int,
    complexity: float,
    resource_factor: float,
    resource_strength: float,
    seed: int,
    modes: int = 1,
    resources: int = 4,
    name: str = "",
) -> Problem:
    """A problem of ``jobs`` activities between a source and a sink that take no time; see :class:`Cell`.

    Of several modes, a longer one uses no more of any resource, and less of at least one.
    """
    draw = random.Random(f"{jobs} {complexity} {resource_factor} {resource_strength} {modes} {resources} {seed}")
    arcs = _network(draw, jobs, complexity)
    used = _used(draw, jobs, resources, resource_factor)
    activities = [_modes(draw, modes, row) for row in used]
    dummy = [(0, [0] * resources)]
    every = [dummy, *activities, dummy]
    peaks = _peaks(every, arcs, resources)
    capacities = []
    for resource in range(resources):
        least = max(min(usage[resource] for _, usage in ways) for ways in every)
        capacities.append(least + round(resource_strength * (peaks[resource] - least)))
    tasks = [
        Task(str(at), [Mode(length, {f"R{r}": u for r, u in enumerate(usage, 1) if u}) for length, usage in ways])
        for at, ways in enumerate(every, 1)
    ]
    return Problem(
        tasks,
        {f"R{r}": capacity for r, capacity in enumerate(capacities, 1)},
        [(str(a + 1), str(b + 1)) for a, b in sorted(arcs)],
        name or f"progen-{jobs}-{seed}",
    )


def _network(draw: random.Random, jobs: int, complexity: float) -> set[tuple[int, int]]:
    """Arcs between source 0, activities 1 to ``jobs`` and the sink, none of them implied by others."""
    wanted = round(complexity * (jobs + 2))
    for _ in range(1000):  # a network drawn unluckily has no room for as many arcs
        network = _Network(draw, jobs)
        if network.connect() and network.fill(wanted):
            return network.arcs
    raise ProblemError(f"{jobs} activities have no network of {wanted} precedences: give another complexity")


class _Network:
    """Arcs so far; for each task its successors and those that it reaches, as bits, and those that reach it.

    A task reaches itself.
    """

    def __init__(self, draw: random.Random, jobs: int) -> None:
        self.draw, self.jobs = draw, jobs
        self.arcs = set[tuple[int, int]]()
        self.next = [0] * (jobs + 2)
        self.after = [1 << task for task in range(jobs + 2)]
        self.before = [{task} for task in range(jobs + 2)]
        self.outs, self.ins = [0] * (jobs + 2), [0] * (jobs + 2)
        self.first = min(jobs, draw.randint(*ENDS))  # the last of the activities that follow the source
        self.last = jobs + 1 - min(jobs, draw.randint(*ENDS))  # the first of those before the sink

    def connect(self) -> bool:
        """Gives every activity a predecessor and a successor; whether that was possible."""
        for task in range(1, self.first + 1):
            self.add(0, task)
        for task in range(self.last, self.jobs + 1):
            self.add(task, self.jobs + 1)
        for task in range(self.first + 1, self.jobs + 1):
            if not self._any([(other, task) for other in range(1, min(task, self.last))]):
                return False
        return all(
            self.outs[task] or self._any([(task, other) for other in range(max(task, self.first) + 1, self.jobs + 1)])
            for task in range(self.last - 1, 0, -1)  # the last of them have the least choice
        )

    def fill(self, wanted: int) -> bool:
        """Adds arcs until there are as many; whether there was room for them."""
        pairs = [(a, b) for a in range(1, self.last) for b in range(max(a, self.first) + 1, self.jobs + 1)]
        self.draw.shuffle(pairs)  # what does not fit now never will
        for pair in pairs:
            if len(self.arcs) < wanted and self._fits(*pair):
                self.add(*pair)
        return len(self.arcs) == wanted

    def _any(self, pairs: Sequence[tuple[int, int]]) -> bool:
        fitting = [pair for pair in pairs if self._fits(*pair)]
        if fitting:
            self.add(*self.draw.choice(fitting))
        return bool(fitting)

    def _fits(self, a: int, b: int) -> bool:
        """Whether the arc is implied by no others and makes none of them implied."""
        if self.outs[a] >= NEIGHBOURS or self.ins[b] >= NEIGHBOURS or self.after[a] >> b & 1:
            return False
        return not any(self.next[x] & self.after[b] for x in self.before[a])

    def add(self, a: int, b: int) -> None:
        self.arcs.add((a, b))
        self.outs[a] += 1
        self.ins[b] += 1
        self.next[a] |= 1 << b
        for x in self.before[a]:
            self.after[x] |= self.after[b]
        for y in range(b, self.jobs + 2):
            if self.after[b] >> y & 1:
                self.before[y] |= self.before[a]


def _used(draw: random.Random, jobs: int, resources: int, factor: float) -> list[list[bool]]:
    """Which activity uses which resource: one at least, and ``factor`` of all pairs."""
    used = [[False] * resources for _ in range(jobs)]
    for row in used:
        row[draw.randrange(resources)] = True
    free = [(job, resource) for job in range(jobs) for resource in range(resources) if not used[job][resource]]
    for job, resource in draw.sample(free, max(0, round(factor * jobs * resources) - jobs)):
        used[job][resource] = True
    return used


def _modes(draw: random.Random, modes: int, used: Sequence[bool]) -> list[tuple[int, list[int]]]:
    """Durations and usages, the shortest first; none as long and as greedy as another."""
    lengths = sorted(draw.sample(range(DURATIONS[0], DURATIONS[1] + 1), modes))
    while True:
        columns = [_levels(draw, modes) if use else [0] * modes for use in used]
        usages = [list(row) for row in zip(*columns, strict=True)]
        if all(a != b for at, a in enumerate(usages) for b in usages[:at]):
            return list(zip(lengths, usages, strict=True))


def _levels(draw: random.Random, modes: int) -> list[int]:
    """Usages that fall as modes grow longer: each drawn from its own slice between two random ends."""
    low, high = sorted(draw.randint(*USAGES) for _ in range(2)) if modes > 1 else USAGES
    step = (high - low) / modes
    slices = [(round(high - step * (mode + 1)), round(high - step * mode)) for mode in range(modes)]
    return [draw.randint(*ends) for ends in slices]


def _peaks(every: Sequence[Sequence[tuple[int, list[int]]]], arcs: set[tuple[int, int]], resources: int) -> list[int]:
    """The most that is used at an instant if every task starts as early as precedence lets it, in its shortest mode."""
    start = [0] * len(every)
    for a, b in sorted(arcs):  # by the first, whose start is known by then: arcs go upwards
        start[b] = max(start[b], start[a] + every[a][0][0])
    held = [[0] * resources for _ in range(max(start) + 1)]
    for begin, ((length, usage), *_) in zip(start, every, strict=True):
        for instant in range(begin, begin + length):
            for resource, amount in enumerate(usage):
                held[instant][resource] += amount
    return [max(column) for column in zip(*held, strict=True)]


def to_rcp(problem: Problem) -> str:
    """A problem of one mode for each task as a Patterson file; tasks are numbered as they stand."""
    successors, names = _successors(problem), list(problem.capacities)
    lines = [f"{len(problem.tasks)} {len(names)}", _join(problem.capacities.values())]
    for task in problem.tasks:
        (mode,) = task.modes
        after = successors[task.name]
        lines.append(_join([mode.duration, *(mode.usage.get(name, 0) for name in names), len(after), *after]))
    return "\n".join(lines) + "\n"


def to_sm(problem: Problem) -> str:
    """A problem as a PSPLIB file, ``.sm`` or with several modes ``.mm``; tasks are numbered as they stand."""
    successors, names, rule = _successors(problem), list(problem.capacities), "*" * 72
    heads = _join(f"R {at}" for at in range(1, len(names) + 1))
    lines = [
        rule,
        f"jobs (incl. supersource/sink ):  {len(problem.tasks)}",
        "RESOURCES",
        f"  - renewable                 :  {len(names)}   R",
        "  - nonrenewable              :  0   N",
        "  - doubly constrained        :  0   D",
        *(rule, "PRECEDENCE RELATIONS:", "jobnr.    #modes  #successors   successors"),
    ]
    for at, task in enumerate(problem.tasks, 1):
        after = successors[task.name]
        lines.append(_join([at, len(task.modes), len(after), *after]))
    lines += [rule, "REQUESTS/DURATIONS:", f"jobnr. mode duration  {heads}", "-" * 72]
    for at, task in enumerate(problem.tasks, 1):
        for place, mode in enumerate(task.modes, 1):
            usage = [mode.usage.get(name, 0) for name in names]
            lines.append(_join([*([at] if place == 1 else []), place, mode.duration, *usage]))
    lines += [rule, "RESOURCEAVAILABILITIES:", heads, _join(problem.capacities.values()), rule]
    return "\n".join(lines) + "\n"


def _successors(problem: Problem) -> dict[str, list[int]]:
    """The numbers of each task's successors."""
    number = {task.name: at for at, task in enumerate(problem.tasks, 1)}
    found: dict[str, list[int]] = {task.name: [] for task in problem.tasks}
    for before, after in problem.precedence:
        found[before].append(number[after])
    return {name: sorted(after) for name, after in found.items()}


def _join(figures: object) -> str:
    return "  ".join(map(str, figures))  # type: ignore[call-overload]  # numbers and words of a line
