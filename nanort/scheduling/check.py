"""Whether a schedule keeps every constraint, judged with no knowledge of how it was made."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush
from math import inf
from operator import itemgetter
from typing import TYPE_CHECKING, NoReturn

from nanort.errors import ScheduleError
from nanort.scheduling.bounds import fewest_sms
from nanort.scheduling.waits import exclusive

if TYPE_CHECKING:
    from nanort.scheduling.schedule import Assignment, Schedule

SLACK = 1e-9
"""The fraction of the makespan by which rounding may move a time."""

Job = tuple[float, float, float, str]


def check(schedule: Schedule) -> None:
    """Judges every constraint, each in near linear time.

    Raises:
        ScheduleError: one is broken; the message names the nodes.
    """
    slack = SLACK * schedule.makespan
    _each_node_once(schedule)
    if abs(schedule.outlooks[0].seconds - schedule.makespan) > slack:
        _refuse(f"the outlook says {schedule.outlooks[0].seconds!r} s, the assignments take {schedule.makespan!r} s")
    _streams(schedule, slack)
    _durations(schedule, slack)
    _precedence(schedule, slack)
    _groups(schedule, slack)
    _happens_before(schedule)
    for resource in ("sms", "hbm", "h2d", "d2h", "net"):
        _capacity(schedule, resource, slack)


def _each_node_once(schedule: Schedule) -> None:
    count, seen = len(schedule.graph.nodes), set[int]()
    for a in schedule.assignments:
        if not 0 <= a.node < count or schedule.graph.nodes[a.node].name != a.name:
            _refuse(f"{a.name!r} is not node {a.node} of the graph")
        if a.node in seen:
            _refuse(f"{a.name!r} is assigned twice")
        seen.add(a.node)
    for node in schedule.graph.nodes:
        if node.index not in seen:
            _refuse(f"{node.name!r} is not assigned")


def _streams(schedule: Schedule, slack: float) -> None:
    """Each node on a stream that can carry it, as pinned; no two at once on one stream; all in order of their start."""
    streams = {stream.name: stream for stream in schedule.streams}
    last: dict[str, Assignment] = {}
    previous = 0.0
    if len(streams) < len(schedule.streams):
        _refuse(f"two streams are called the same: {[stream.name for stream in schedule.streams]}")
    for a in schedule.assignments:
        node, stream = schedule.graph.nodes[a.node], streams.get(a.stream)
        if stream is None:
            _refuse(f"{a.name!r} runs on stream {a.stream!r}, which the schedule does not have")
        if node.stream not in (None, a.stream):
            _refuse(f"{a.name!r} is pinned to stream {node.stream!r} and runs on {a.stream!r}")
        least, most = node.span_on(schedule.device.kind)
        if stream.engine and (node.demand.engine != stream.engine):
            _refuse(f"{a.name!r} is no {stream.engine} transfer and runs on that copy engine")
        if not least <= a.sms <= min(stream.sms, stream.sms if most is None else most):
            _refuse(f"{a.name!r} asks for {least} to {most} SMs and holds {a.sms} of the {stream.sms} of {a.stream!r}")
        if not 0 <= a.start <= a.end < inf:
            _refuse(f"{a.name!r} runs from {a.start!r} to {a.end!r} seconds")
        if a.start < previous:
            _refuse(f"{a.name!r} starts at {a.start!r}, before the one assigned ahead of it")
        if (before := last.get(a.stream)) and a.start < before.end - slack:
            _refuse(f"{before.name!r} and {a.name!r} run at once on stream {a.stream!r}")
        previous, last[a.stream] = a.start, a


def _durations(schedule: Schedule, slack: float) -> None:
    for a in schedule.assignments:
        cost = schedule.costs.solo(schedule.graph.nodes[a.node], a.sms)
        if a.end - a.start < cost.seconds - slack:
            _refuse(f"{a.name!r} takes {a.end - a.start:.9g} s on {a.sms} SMs, alone it takes {cost.seconds:.9g} s")


def _precedence(schedule: Schedule, slack: float) -> None:
    end = {a.node: a.end for a in schedule.assignments}
    for a in schedule.assignments:
        for pred, reason in schedule.graph.nodes[a.node].preds:
            if a.start < end[pred] - slack:
                _refuse(
                    f"{a.name!r} starts before {schedule.graph.nodes[pred].name!r} has ended, which its {reason} needs"
                )


def _groups(schedule: Schedule, slack: float) -> None:
    """Nodes of different groups that share SMs never run at once, and no group has more streams than lanes."""
    for group in schedule.partition:
        if len(on := [stream.name for stream in schedule.streams if stream.group == group]) > group.lanes:
            _refuse(f"streams {on} are on group {group.name!r}, which has {group.lanes} lanes")
    rivals, lane = exclusive(schedule.streams), {stream.name: at for at, stream in enumerate(schedule.streams)}
    latest: list[Assignment | None] = [None] * len(schedule.streams)
    for a in schedule.assignments:
        own = lane[a.stream]
        for other in rivals[own]:
            if (before := latest[other]) is not None and a.start < before.end - slack:
                _refuse(
                    f"{before.name!r} on {before.stream!r} and {a.name!r} on {a.stream!r} hold the same SMs at once"
                )
        latest[own] = a


def _happens_before(schedule: Schedule) -> None:
    """The order within streams and the waits imply every edge of the graph and every order of groups that share SMs.

    Vector clocks: for each stream, how many of its nodes have ended before a node starts.
    """
    nodes, rivals = schedule.graph.nodes, exclusive(schedule.streams)
    lane = {stream.name: at for at, stream in enumerate(schedule.streams)}
    place = {a.node: index for index, a in enumerate(schedule.assignments)}
    awaited: dict[int, list[int]] = {}
    for wait in schedule.waits:
        if wait.node not in place or wait.on not in place:
            _refuse(f"a wait of node {wait.node} on node {wait.on}: the graph has no such nodes")
        if place[wait.on] >= place[wait.node]:
            _refuse(f"{nodes[wait.node].name!r} waits for {nodes[wait.on].name!r}, which starts later")
        awaited.setdefault(wait.node, []).append(wait.on)
    issued, clocks = [0] * len(schedule.streams), dict[int, list[int]]()
    latest = [-1] * len(schedule.streams)
    for a in schedule.assignments:
        own = lane[a.stream]
        clock = list(clocks[latest[own]]) if latest[own] >= 0 else [0] * len(issued)
        for other in awaited.get(a.node, ()):
            clock = list(map(max, clock, clocks[other]))
        for pred, reason in nodes[a.node].preds:
            at = lane[schedule.assignments[place[pred]].stream]
            if pred not in clocks or clock[at] < clocks[pred][at]:
                _refuse(f"nothing makes {a.name!r} wait for {nodes[pred].name!r}, which its {reason} needs")
        for other in rivals[own]:
            if clock[other] < issued[other]:
                _refuse(f"nothing makes {a.name!r} wait for {nodes[latest[other]].name!r}, which holds the same SMs")
        issued[own] += 1
        clock[own] = issued[own]
        clocks[a.node], latest[own] = clock, a.node


def _capacity(schedule: Schedule, resource: str, slack: float) -> None:
    """In no window of time do the nodes inside it need more of a bandwidth, or of the SMs, than there is.

    That is so just if earliest-deadline-first, with preemption, gives each node its share before the node ends.
    """
    jobs: list[Job] = []
    for a in schedule.assignments:
        node = schedule.graph.nodes[a.node]
        cost = schedule.costs.solo(node, a.sms)
        work = fewest_sms(node, schedule.costs) if resource == "sms" else getattr(cost, resource) * cost.seconds
        if work:
            jobs.append((a.start, a.end, work, a.name))
    late = latecomer(jobs, slack)
    if late and resource == "sms":
        _refuse(
            f"{late!r} cannot end in time: in some window that it closes, nodes need more SM-seconds than there are"
        )
    if late:
        _refuse(
            f"{late!r} cannot move its bytes before it ends: in some window of time that it closes, nodes need more "
            f"{resource} bandwidth than {schedule.device.name} has"
        )


def latecomer(jobs: Iterable[Job], slack: float) -> str:
    """A job (start, end, seconds of a resource, name) that cannot get its seconds in time; "" if all can."""
    queue: list[tuple[float, int, str]] = []  # by deadline
    left, now = list[float](), 0.0
    for index, (start, end, work, name) in enumerate([*sorted(jobs, key=itemgetter(0)), (inf, inf, 0.0, "")]):
        while queue and now < start:
            deadline, job, called = queue[0]
            if left[job] > start - now:
                left[job] -= start - now
                now = start
            else:
                now += left[job]
                heappop(queue)
                if now > deadline + slack:
                    return called
        now = max(now, start)
        left.append(work)
        heappush(queue, (end, index, name))
    return ""


def _refuse(what: str) -> NoReturn:
    raise ScheduleError(f"{what}: plan again with nr.co_schedule, or correct the schedule")
