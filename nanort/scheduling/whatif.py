"""What a schedule would take were an operator twice as fast: its streams and waits, played again."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING

from nanort.simulation.fluid import Jobs, Modes, replay

if TYPE_CHECKING:
    from nanort.scheduling.schedule import Schedule

LINKS = ("hbm", "h2d", "d2h", "net")


def twice_as_fast(schedule: Schedule, operators: Sequence[str]) -> dict[str, float]:
    """For each of ``operators``, the makespan if its nodes took half their solo seconds.

    A node that takes half the time draws the same shares, and so moves half of its bytes. The order of every stream and
    all waits stay: planning again may gain more.
    """
    nodes = [schedule.graph.nodes[a.node] for a in schedule.assignments]
    costs, alone = schedule.costs, schedule.alone
    place = {a.node: at for at, a in enumerate(schedule.assignments)}
    lane = {stream.name: at for at, stream in enumerate(schedule.streams)}
    awaited: list[list[int]] = [[] for _ in nodes]
    for wait in schedule.waits:
        awaited[place[wait.node]].append(place[wait.on])
    names = [node.op.name for node in nodes]
    on = [lane[a.stream] for a in schedule.assignments]
    held = [a.sms for a in schedule.assignments]
    shares = tuple([getattr(cost, link) for cost in alone] for link in LINKS)
    pairs = schedule.profile.slowdowns if schedule.profile else None

    def seconds_on(job: int, sms: int) -> float:
        return costs.solo(nodes[job], sms).seconds if sms >= nodes[job].span[0] else inf

    found = {}
    for operator in operators:
        seconds = [cost.seconds / (2 if name == operator else 1) for cost, name in zip(alone, names, strict=True)]
        jobs = Jobs(on, Modes(seconds, held, shares), names, seconds_on)
        end = replay(jobs, schedule.streams, awaited, pairs, schedule.device.event_seconds)[1]
        found[operator] = max(end, default=0.0)
    return found
