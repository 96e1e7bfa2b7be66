"""Search: structures are enumerated, each is list-scheduled in the fluid simulation, and the best is refined."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from nanort.devices import Device
from nanort.errors import CapacityError, PolicyError
from nanort.partition import ENGINES
from nanort.scheduling.flat import Flat
from nanort.scheduling.list_schedule import COMPUTE, FEED, LIGHT, MEMORY, PATH, Outline, dispatch, serial
from nanort.scheduling.schedule import Outlook
from nanort.scheduling.structures import CORESIDENT, Structure, overlapping
from nanort.scheduling.waits import waits
from nanort.simulation.fluid import Queues, Trace, simulate, with_events

REFINING = 4
"""One in so many judged schedules refines the best structure instead of trying another."""

Progress = Callable[[int, int, float], None]


def saturations(device: Device) -> list[int]:
    """The saturation points at which plans are judged, the most pessimistic first: the range's ends and its middle."""
    least, most = device.hbm_saturation_sms
    return sorted({least, round(math.sqrt(least * most)), most}, reverse=True)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to plan: a graph, a structure, and how nodes are dispatched in it."""

    outline: Outline
    structure: Structure
    order: str = PATH
    borrow: bool = False
    offsets: tuple[float, ...] = ()

    def plan(self) -> Trace:
        """What list scheduling makes of it, at the outline's saturation point."""
        return dispatch(self.outline, self.structure, self.order, self.borrow, self.offsets)


@dataclass(frozen=True, slots=True)
class Found:
    """A candidate, what it comes to at every saturation point, and its trace at the worst of them."""

    candidate: Candidate
    trace: Trace
    worst: Outlook
    outlooks: tuple[Outlook, ...]


class Search:
    """Judges plans for one graph, which ``flats`` are different cuts of, within a budget.

    Args:
        source: the uncut graph, whose serial schedule is the baseline.
        flats: what may be planned.
        effort: schedules that may be judged.
        deadline: the time (of ``time.monotonic``) at which it stops where it is.
        seed: of the refinement.
        progress: told schedules judged, effort, and the best seconds so far, after each.

    Attributes:
        judged: schedules judged so far.
        truncated: whether the deadline stopped it.
        tops: the best seconds, and the structure that has them, of each cut and mechanism.
        refused: why structures were left out.
    """

    def __init__(
        self, source: Flat, flats: Sequence[Flat], effort: int, deadline: float, seed: int, progress: Progress | None
    ) -> None:
        self.source = source
        self.flats = flats
        self.effort = effort
        self.deadline = deadline
        self.seed = seed
        self.progress = progress
        self.points = saturations(source.device)
        self.serial_seconds = {point: serial(source, point).makespan for point in self.points}
        self.best_seconds = math.inf
        self.tops: dict[tuple[Flat, str], tuple[float, Structure]] = {}
        self.judged = 0
        self.truncated = False
        self.refused: list[PolicyError | CapacityError] = []

    def run(self, exhaustive: bool) -> Found | None:
        """The plan that gains most at its worst saturation point; None if every structure was refused.

        ``exhaustive`` tries every structure and refines the best; otherwise the most promising one of each mechanism.
        """
        limit = self.effort - self.effort // REFINING
        tried: list[tuple[float, int, Candidate]] = []
        for candidate in self._candidates(exhaustive):
            if self._spent(limit):
                break
            if (trace := self._judge(candidate)) is not None:
                tried.append((trace.makespan, len(tried), candidate))
        found: Found | None = None
        for seconds, _, candidate in sorted(tried, key=lambda item: item[:2]):
            if found is not None and self.serial_seconds[self.points[0]] <= found.worst.gain * seconds:
                break  # it cannot gain more at its worst point than at this one, without the cost of events
            met = self._met(candidate, candidate.plan())
            if found is None or met.worst.gain > found.worst.gain:
                found = met
        return self._refined(found) if found and exhaustive else found

    def _candidates(self, exhaustive: bool) -> Iterator[Candidate]:
        """Ways to plan, from the most promising structures on, every mechanism and every cut in turn."""
        for row in zip_longest(*(self._frames(flat, exhaustive) for flat in self.flats)):
            for outline, structure in filter(None, row):
                yield Candidate(outline, structure)
                if exhaustive:
                    yield Candidate(outline, structure, FEED)
                if exhaustive and structure.alone >= 0:
                    yield Candidate(outline, structure, PATH, borrow=True)
                    yield Candidate(outline, structure, FEED, borrow=True)

    def _frames(self, flat: Flat, exhaustive: bool) -> list[tuple[Outline, Structure]]:
        """The structures for one cut, the best estimate of every mechanism first."""
        outline, used = Outline(flat, self.points[0]), {node.demand.engine for node in flat.examples}
        ranked: dict[str, list[Structure]] = {}
        for structure in overlapping(flat.device, [engine for engine in ENGINES if engine in used]):
            ranked.setdefault(structure.mechanism, []).append(structure)
        for alike in ranked.values():
            alike.sort(key=lambda structure: _estimate(outline, structure))
        rows = zip_longest(*ranked.values())
        frames = [(outline, structure) for row in rows for structure in filter(None, row)]
        return frames if exhaustive else frames[: len(ranked)]

    def _spent(self, limit: int) -> bool:
        self.truncated = self.truncated or (self.judged > 0 and time.monotonic() >= self.deadline)
        return self.truncated or self.judged >= limit

    def _judge(self, candidate: Candidate) -> Trace | None:
        """The plan, or None where a pin refuses the structure."""
        try:
            trace = candidate.plan()
        except (PolicyError, CapacityError) as error:
            self.refused.append(error)
            return None
        self.judged += 1
        self.best_seconds = min(self.best_seconds, trace.makespan)
        key = (candidate.outline.flat, candidate.structure.mechanism)
        if key not in self.tops or trace.makespan < self.tops[key][0]:
            self.tops[key] = (trace.makespan, candidate.structure)
        if self.progress:
            self.progress(self.judged, self.effort, self.best_seconds)
        return trace

    def _met(self, candidate: Candidate, trace: Trace) -> Found:
        """The plan at every saturation point: streams play the nodes of ``trace`` in its order, and pay for events."""
        flat, streams = candidate.outline.flat, candidate.structure.streams
        awaited: list[list[int]] = [[] for _ in range(len(flat))]
        for wait in waits(flat.graph, streams, trace.order, trace.lane):
            awaited[wait.node].append(wait.on)
        traces = {point: _played(candidate, trace, awaited, point) for point in self.points}
        outlooks = tuple(Outlook(at, traces[at].makespan, self.serial_seconds[at]) for at in self.points)
        worst = min(outlooks, key=lambda outlook: outlook.gain)
        return Found(candidate, traces[worst.saturation], worst, outlooks)

    def _refined(self, found: Found) -> Found:
        """The best of the plans in which some kinds of nodes are more or less urgent than their order says."""
        outline = found.candidate.outline
        flat, chance = outline.flat, random.Random(self.seed)
        kinds = len(flat.examples)
        longest = max((cost.seconds for cost in flat.kind_costs(outline.saturation, flat.device.sms)), default=0.0)
        best = found.outlooks[0].seconds
        while kinds and not self._spent(self.effort):
            offsets = list(found.candidate.offsets or [0.0] * kinds)
            offsets[chance.randrange(kinds)] += chance.gauss(0.0, 2 * longest)
            candidate = replace(found.candidate, offsets=tuple(offsets))
            trace = self._judge(candidate)
            if trace is not None and trace.makespan < best:
                met = self._met(candidate, trace)
                if met.worst.gain > found.worst.gain:
                    found, best = met, trace.makespan
        return found


def _played(candidate: Candidate, trace: Trace, awaited: Sequence[Sequence[int]], point: int) -> Trace:
    """What becomes of a trace where ``point`` SMs saturate device memory, streams and waits being kept."""
    flat, structure = candidate.outline.flat, candidate.structure
    queues: list[list[int]] = [[] for _ in structure.streams]
    for node in trace.order:
        queues[trace.lane[node]].append(node)
    shared = flat.coresidence(point, structure.streams) if structure.mechanism == CORESIDENT else None
    modes = with_events(flat.placed(point, structure.streams, trace.lane), awaited, flat.device.event_seconds)
    return simulate(len(flat), [modes] * len(queues), Queues(queues, awaited), shared)


def _estimate(outline: Outline, structure: Structure) -> float:
    """Seconds that the busiest stream needs, or half of both together, were nothing to wait for anything."""
    flat, saturation = outline.flat, outline.saturation
    compute, memory = (
        flat.kind_costs(saturation, structure.streams[lane].sms) for lane in (structure.compute, structure.memory)
    )
    loads = dict.fromkeys((COMPUTE, MEMORY, LIGHT), 0.0)
    for kind, count in outline.counts.items():
        role = outline.roles[kind]
        seconds = {COMPUTE: compute[kind].seconds, MEMORY: memory[kind].seconds}
        loads[role] += count * seconds.get(role, min(seconds.values()))
    total = sum(loads.values())
    return max(loads[COMPUTE], loads[MEMORY], total / 2) if structure.alone >= 0 else total
