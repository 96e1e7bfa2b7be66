"""Search: policies tried in every structure, each plan judged in the fluid simulation, and the best refined."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest

from nanort.devices import Device
from nanort.errors import CapacityError, PolicyError
from nanort.scheduling.bounds import ideal
from nanort.scheduling.flat import Flat
from nanort.scheduling.list_schedule import ListPolicy, estimate, serial
from nanort.scheduling.players import Player, replayed
from nanort.scheduling.policy import Policy, plan
from nanort.scheduling.schedule import Outlook
from nanort.scheduling.structures import Structure
from nanort.scheduling.tuning import Tuning
from nanort.scheduling.waits import waits
from nanort.scheduling.workload import Workload
from nanort.simulation.fluid import Trace

TRYING = 2
"""One in so many judged schedules may try a structure; the others tune the best of them."""

FINALISTS, BEST = 8, 4
"""Structures that are tuned at first, and those of them that are chosen by their plans, the others by an estimate.

After each round the better half is left. A bad first plan says little: at 64 SMs of saturation the split of a
LLaMA-3-8B step that is best in the end begins 10 % behind.
"""

RUN = 6_000
"""Schedules after which tuning begins anew with another seed: several short runs find more than a long one."""

NEAR = 1.05
"""How much longer than the best plan that of a cut may take whose structures are tuned."""

PLAYED = 6
"""The best plans that are played at every saturation point, whatever they take at the first one."""

Progress = Callable[[int, int, float, float], None]


def saturations(device: Device) -> list[int]:
    """The saturation points at which plans are judged, the most pessimistic first: the range's ends and its middle."""
    least, most = device.hbm_saturation_sms
    return sorted({least, round(math.sqrt(least * most)), most}, reverse=True)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to plan: a graph, a policy, and a structure that it is tried in."""

    work: Workload
    policy: Policy
    structure: Structure

    def plan(self) -> Trace:
        """What the policy makes of it, at the workload's saturation point."""
        if isinstance(self.policy, ListPolicy):
            return Player(self.work, self.structure).trace(self.policy)
        return plan(self.policy, self.work, self.structure)


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
        policies: tried in all their structures.
        effort: schedules that may be judged.
        deadline: the time (of ``time.monotonic``) at which it stops where it is.
        seed: of the refinement.
        progress: told schedules judged, effort, the best seconds so far, and seconds that no cut can beat.

    Attributes:
        judged: schedules judged so far.
        stopped: why it stopped before its effort was spent: "time was up", "interrupted", or "".
        tops: the best seconds, and what was tried for them, of each cut and mechanism.
        refused: why structures were left out.
    """

    def __init__(
        self,
        source: Flat,
        flats: Sequence[Flat],
        policies: Sequence[Policy],
        effort: int,
        deadline: float,
        seed: int,
        progress: Progress | None,
    ) -> None:
        self.source = source
        self.flats = flats
        self.policies = policies
        self.effort = effort
        self.deadline = deadline
        self.seed = seed
        self.progress = progress
        self.points = saturations(source.device)
        self.serial_seconds = {point: serial(source, point).makespan for point in self.points}
        self.best_seconds = math.inf
        self.tops: dict[tuple[Flat, str], tuple[float, Candidate]] = {}
        self.judged = 0
        self.stopped = ""
        self.refused: list[PolicyError | CapacityError] = []

    def run(self, refine: bool) -> Found | None:
        """The plan that gains most at its worst saturation point; None if every structure was refused.

        ``refine`` spends a part of the effort on variations of the best; Ctrl-C ends the search, not the program.
        """
        tried = list[tuple[float, int, Candidate]]()
        try:
            for candidate in self._candidates():
                if self._spent(max(1, self.effort // TRYING) if refine else self.effort):
                    break
                if (trace := self._judge(candidate)) is not None:
                    tried.append((trace.makespan, len(tried), candidate))
            tried.sort(key=lambda item: item[:2])
            if refine and tried:
                pools = _near(tried)
                runs = max(1, round((self.effort - self.judged) / RUN))
                for run in range(runs):
                    if self._spent(self.effort):
                        break
                    until = self.judged + (self.effort - self.judged) // (runs - run)
                    pool = pools[run % len(pools)] if runs > 1 else [item for pool in pools for item in pool]
                    tried += [(0.0, 0, candidate) for candidate in self._tuned(pool, self.seed + run, until)]
        except KeyboardInterrupt:
            self.stopped = "interrupted"
        return self._best(tried)

    def _best(self, tried: Sequence[tuple[float, int, Candidate]]) -> Found | None:
        """What gains most at its worst saturation point, of candidates and what they take at the first one.

        If it is interrupted, the best so far; the first is played in any case.
        """
        found: Found | None = None
        try:
            for better in self._better(tried):
                found = better
        except KeyboardInterrupt:
            self.stopped = "interrupted"
        if found is None and tried:
            candidate = min(tried, key=lambda item: item[:2])[2]
            found = self.met(candidate)
        return found

    def _better(self, tried: Sequence[tuple[float, int, Candidate]]) -> Iterator[Found]:
        """Each plan that gains more than those before it, the most promising first."""
        found: Found | None = None
        for rank, (seconds, _, candidate) in enumerate(sorted(tried, key=lambda item: item[:2])):
            hopeless = found is not None and self.serial_seconds[self.points[0]] <= found.worst.gain * seconds
            if hopeless and rank >= PLAYED:
                break  # it hardly gains more at its worst point than at this one
            met = self.met(candidate)
            if found is None or met.worst.gain > found.worst.gain:
                found = met
                yield met

    def _candidates(self) -> Iterator[Candidate]:
        """Ways to plan, from the most promising structures on, every mechanism and every cut in turn."""
        for row in zip_longest(*(self._framed(Workload(flat, self.points[0])) for flat in self.flats)):
            for candidates in filter(None, row):
                yield from candidates

    def _framed(self, work: Workload) -> Iterator[list[Candidate]]:
        """The candidates of one cut: the first structure of every policy, the second of every one, and so on."""
        for row in zip_longest(*(policy.structures(work) for policy in self.policies)):
            yield [
                Candidate(work, policy, structure)
                for policy, structure in zip(self.policies, row, strict=True)
                if structure is not None
            ]

    def _spent(self, limit: int) -> bool:
        if not self.stopped and self.judged > 0 and time.monotonic() >= self.deadline:
            self.stopped = "time was up"
        return bool(self.stopped) or self.judged >= limit

    def _judge(self, candidate: Candidate) -> Trace | None:
        """The plan, or None where a pin refuses the structure."""
        try:
            trace = candidate.plan()
        except (PolicyError, CapacityError) as error:
            if not isinstance(candidate.policy, ListPolicy):
                raise  # the caller's own policy has to be mended
            self.refused.append(error)
            return None
        self.judged += 1
        self.best_seconds = min(self.best_seconds, trace.makespan)
        key = (candidate.work.flat, candidate.structure.mechanism)
        if key not in self.tops or trace.makespan < self.tops[key][0]:
            self.tops[key] = (trace.makespan, candidate)
        self._tell()
        return trace

    def _tell(self) -> None:
        if self.progress:
            self.progress(self.judged, self.effort, self.best_seconds, self._bound)

    @cached_property
    def _bound(self) -> float:
        """Cutting adds work, so that no cut can beat what the busiest unit needs for the uncut graph."""
        return ideal(self.source.graph, self.source.costs(self.points[0]))[0]

    def met(self, candidate: Candidate) -> Found:
        """Its plan at every saturation point: streams play the nodes in its order, and pay for events."""
        flat, structure, trace = candidate.work.flat, candidate.structure, candidate.plan()
        awaited: list[list[int]] = [[] for _ in range(len(flat))]
        for wait in waits(flat.graph, structure.streams, trace.order, trace.lane):
            awaited[wait.node].append(wait.on)
        traces = {point: replayed(flat, structure, trace.order, trace.lane, awaited, point) for point in self.points}
        outlooks = tuple(Outlook(at, traces[at].makespan, self.serial_seconds[at]) for at in self.points)
        worst = min(outlooks, key=lambda outlook: outlook.gain)
        return Found(candidate, traces[worst.saturation], worst, outlooks)

    def _tuned(self, tried: Sequence[tuple[float, int, Candidate]], seed: int, limit: int) -> list[Candidate]:
        """The best candidates with their policies tuned, by successive halving: the more promising, the more effort."""
        promising = sorted(tried, key=lambda item: estimate(item[2].work, item[2].structure))
        finalists = list[tuple[float, Candidate, Tuning]]()
        seen = set[tuple[Workload, int, tuple[int, ...]]]()
        for seconds, _, candidate in (*tried[:BEST], *promising):
            sizes = sorted(group.sms for group in candidate.structure.groups)  # tuning can swap what they are for
            key = (candidate.work, len(candidate.structure.streams), tuple(sizes))
            if len(finalists) < FINALISTS and key not in seen and isinstance(candidate.policy, ListPolicy):
                seen.add(key)
                self.judged += 1
                tuning = Tuning(candidate.work, candidate.structure, candidate.policy, seed)
                finalists.append((seconds, candidate, tuning))
        try:
            self._halve(finalists, limit)
        except KeyboardInterrupt:
            self.stopped = "interrupted"
        winners = sorted(finalists, key=lambda one: one[0] / one[2].gain)[:3]
        return [replace(candidate, policy=tuning.policy) for _, candidate, tuning in winners]

    def _halve(self, alive: list[tuple[float, Candidate, Tuning]], limit: int) -> None:
        """Judges schedules up to ``limit``, as many in each round, in which each of them cools down."""
        while alive and not self._spent(limit):
            rounds, began = max(1, math.ceil(math.log2(len(alive) + 1))), self.judged
            until = began + math.ceil((limit - began) / rounds)
            while not self._spent(until):
                warmth = (1.0 - (self.judged - began) / (until - began)) ** 2
                for _, _, tuning in alive[: until - self.judged]:
                    tuning.step(warmth)
                    self.judged += 1
                self._tell()
            alive = sorted(alive, key=lambda one: one[0] / one[2].gain)[: (len(alive) + 1) // 2]


def _near(tried: Sequence[tuple[float, int, Candidate]]) -> list[list[tuple[float, int, Candidate]]]:
    """What was tried, the best first, by cut; without cuts whose best plan is far behind."""
    pools: dict[Workload, list[tuple[float, int, Candidate]]] = {}
    for item in tried:
        pools.setdefault(item[2].work, []).append(item)
    return [pool for pool in pools.values() if pool[0][0] <= NEAR * tried[0][0]]
