"""The critical path of a schedule, and what binds each stretch of its time: the node of the path that runs then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nanort.compiled import Floats, Ints
from nanort.scheduling.waits import Wait

if TYPE_CHECKING:
    from nanort.scheduling.schedule import Assignment, Schedule

LAUNCH, SMS, ORDER, DEPENDENCY = "launch", "SMs", "order", "dependency"
LINKS = {"hbm": "HBM", "h2d": "PCIe down", "d2h": "PCIe up", "net": "network"}
CAUSES = (LAUNCH, *LINKS.values(), SMS, ORDER, DEPENDENCY)

FULL = 0.9
"""The share of a bandwidth that a node draws alone from which on it counts as bound by it."""

SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Step:
    """A part of the critical path: where in the assignments its node is, -1 where none runs, and what it waited for.

    The reason is that of the edge or wait to the step before, ``"stream"`` for the node before it on its stream, or
    ``"start"``.
    """

    place: int
    start: float
    end: float
    reason: str


@dataclass(frozen=True, slots=True)
class Stretch:
    """A time in which one cause binds the schedule; ``detail`` is the operator on the critical path, or ``""``."""

    start: float
    end: float
    cause: str
    detail: str


def critical_path(schedule: Schedule) -> tuple[Step, ...]:
    """Steps from zero to the makespan, each of which starts where the one before it ends.

    Back from the node that ends last, always to what ended last of all that a node waits for: its edges, its waits,
    the node before it on its stream. What lies between the two, if anything, is a step without a node.
    """
    assignments = schedule.assignments
    place = {a.node: at for at, a in enumerate(assignments)}
    awaited: dict[int, list[Wait]] = {}
    for wait in schedule.waits:
        awaited.setdefault(wait.node, []).append(wait)
    before, last = dict[int, int](), dict[str, int]()
    for at, a in enumerate(assignments):
        if a.stream in last:
            before[at] = last[a.stream]
        last[a.stream] = at
    steps = list[Step]()
    at, until = max(range(len(assignments)), key=lambda at: assignments[at].end, default=-1), schedule.makespan
    while at >= 0:
        a = assignments[at]
        blockers = [(place[pred], reason) for pred, reason in schedule.graph.nodes[a.node].preds]
        blockers += [(place[wait.on], wait.reason) for wait in awaited.get(a.node, ())]
        blockers += [(before[at], "stream")] if at in before else []
        earlier = [blocker for blocker in blockers if blocker[0] < at]
        blocker, reason = max(earlier, key=lambda pair: assignments[pair[0]].end, default=(-1, "start"))
        start = min(a.start, until)
        ended = min(assignments[blocker].end, start) if blocker >= 0 else 0.0
        steps.append(Step(at, start, until, reason))
        if ended < start:
            steps.append(Step(-1, ended, start, reason))
        at, until = blocker, ended
    return tuple(reversed(steps))


def stretches(schedule: Schedule, path: tuple[Step, ...]) -> tuple[Stretch, ...]:
    """What binds the schedule from zero to the makespan: the first cause that holds of the path's node at each time.

    launch: half of its solo seconds or more is its launch.
    HBM, PCIe down, PCIe up, network: alone it draws 90 % of the bandwidth; or the nodes that run then ask for more than
    all of it, and it for more than its part by SMs (copies are served first).
    SMs: all SMs that groups can give are held, so that more SMs would make it faster, or something run beside it.
    order: some are free, and a node that is ready waits for its turn on its stream.
    dependency: some are free, and no node is ready to use them.
    """
    if not schedule.makespan:
        return ()
    assignments = schedule.assignments
    moments, at = _moments(assignments, path)
    links, launched = _shares(schedule)
    held = np.array([a.sms for a in assignments], np.float64)
    starts = np.searchsorted(moments, [a.start for a in assignments])
    ends = np.searchsorted(moments, [a.end for a in assignments])

    def running(amounts: Floats) -> Floats:
        """The sum over the nodes that run, from each moment to the next."""
        change = np.zeros(len(moments))
        np.add.at(change, starts, amounts)
        np.add.at(change, ends, -amounts)
        return change.cumsum()[:-1]

    weight, copies = running(held), held == 0
    own = np.where(at >= 0, held[at], 0.0)
    conditions = [launched[at] & (at >= 0)]
    for share in links.values():
        draw = np.where(at >= 0, share[at], 0.0)
        copied = running(np.where(copies, share, 0.0))
        part = np.where(own > 0, np.maximum(1.0 - copied, 0.0) * own / np.maximum(weight, 1.0), 1.0 - copied + draw)
        conditions.append((draw >= FULL) | ((running(share) > 1 + SLACK) & (draw > part + SLACK)))
    conditions.append(weight >= _usable(schedule))
    conditions.append(_waiting(schedule, moments[:-1]) > 0)
    causes = np.select(conditions, list(range(len(conditions))), len(conditions)).tolist()
    found = list[Stretch]()
    for k, place in enumerate(at.tolist()):
        cause = CAUSES[causes[k]]
        detail = schedule.graph.nodes[assignments[place].node].op.name if place >= 0 else ""
        start, end = float(moments[k]), float(moments[k + 1])
        if found and (found[-1].cause, found[-1].detail) == (cause, detail):
            found[-1] = Stretch(found[-1].start, end, cause, detail)
        else:
            found.append(Stretch(start, end, cause, detail))
    return tuple(found)


def _moments(assignments: tuple[Assignment, ...], path: tuple[Step, ...]) -> tuple[Floats, Ints]:
    """Every time at which something starts or ends, and the place of the path's node from each to the next, or -1."""
    times = [time for a in assignments for time in (a.start, a.end)]
    moments = np.unique(np.array([*times, *(step.start for step in path)]))
    step = np.searchsorted([step.start for step in path], moments[:-1], side="right") - 1
    return moments, np.array([step.place for step in path], np.int64)[step]


def _shares(schedule: Schedule) -> tuple[dict[str, Floats], npt.NDArray[np.bool_]]:
    """The share of each bandwidth that every node draws alone, and whether it is bound by its launch."""
    nodes = [schedule.graph.nodes[a.node] for a in schedule.assignments]
    twice = 2 * schedule.device.launch_seconds
    alone = list(zip(nodes, schedule.alone, strict=True))
    launched = [cost.seconds <= twice and not node.demand.is_rigid for node, cost in alone]
    return {link: np.array([getattr(cost, link) for _, cost in alone]) for link in LINKS}, np.array(launched)


def _usable(schedule: Schedule) -> int:
    """SMs that are all held at once when no more can be: those of the disjoint groups, or of the device."""
    units = {unit for group in schedule.partition if group.units is not None for unit in range(*group.units)}
    return len(units) * schedule.device.sm_granularity or schedule.device.sms


def _waiting(schedule: Schedule, moments: Floats) -> Ints:
    """How many nodes that need SMs are ready at each moment and have not started."""
    end = {a.node: a.end for a in schedule.assignments}
    asking = [a for a in schedule.assignments if a.sms]
    ready = [max((end[pred] for pred, _ in schedule.graph.nodes[a.node].preds), default=0.0) for a in asking]
    started = np.sort([a.start for a in asking])
    counts: Ints = np.searchsorted(np.sort(ready), moments, side="right") - np.searchsorted(started, moments, "right")
    return counts
