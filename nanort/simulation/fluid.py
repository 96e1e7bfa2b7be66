"""A fluid model of what nodes do to each other: bandwidths are shared, streams are queues, time jumps between events.

A job progresses at min(1, b / d) of its speed alone: d is the share of a bandwidth that it draws alone, b what it gets
when the running jobs draw more than there is. Bandwidth is dealt by weighted water-filling: first to copies, which hold
no SMs, then to kernels in proportion to the SMs they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, nan
from typing import Protocol

from nanort.errors import SimulationError
from nanort.partition import Stream
from nanort.simulation.interference import Coresidence, coresidence

TINY = 1e-12
"""The fraction of a job at which it counts as done: rounding must not split one event into two."""


@dataclass(frozen=True, slots=True)
class Modes:
    """What every job takes on one stream: flat lists by job.

    Attributes:
        seconds: alone.
        sms: SMs held; 0 for a copy.
        shares: for each bandwidth that jobs may contend for, the share (0 to 1) that each draws alone.
    """

    seconds: list[float]
    sms: list[int]
    shares: tuple[list[float], ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """When each job started and ended and on which stream, and the jobs in order of their start."""

    start: list[float]
    end: list[float]
    lane: list[int]
    order: list[int]

    @property
    def makespan(self) -> float:
        """Seconds until the last job is done."""
        return max(self.end, default=0.0)


class Policy(Protocol):
    """What decides; the simulator asks it whenever a stream is idle."""

    def next(self, lane: int, running: Sequence[int], left: Sequence[float]) -> int:
        """The job that the idle stream ``lane`` starts now, or -1.

        ``running`` has each stream's job, or -1, and ``left`` the solo seconds that it still needs.
        """
        ...

    def done(self, job: int) -> None:
        """``job`` has ended."""
        ...


@dataclass(frozen=True, slots=True)
class Crossings:
    """What it costs to follow a job of another stream: ``seconds`` for a job any of whose ``preds`` ran elsewhere."""

    preds: Sequence[Sequence[int]]
    seconds: float


def simulate(
    count: int,
    modes: Sequence[Modes],
    policy: Policy,
    shared: Coresidence | None = None,
    crossings: Crossings | None = None,
) -> Trace:
    """Runs ``count`` jobs as ``policy`` starts them on streams, on which they take ``modes`` and may share SMs.

    Every round ends at least one job, so that there are at most ``count`` of them. Equal inputs give equal bits: ties
    are broken by stream.

    Raises:
        SimulationError: jobs are left, and the policy starts none of them, or none that runs can progress.
    """
    lanes = range(len(modes))
    running, busy = [-1] * len(modes), list[int]()  # by stream; streams in order of start
    left, slack, sms = [inf] * len(modes), [0.0] * len(modes), [0] * len(modes)
    draws = [[0.0] * len(modes) for _ in (modes[0].shares if modes else ())]
    start, end, on, order = [nan] * count, [nan] * count, [-1] * count, list[int]()
    full = [1.0] * len(modes)
    now, ask, done, finish = 0.0, policy.next, 0, policy.done
    while True:
        for lane in lanes:
            if running[lane] < 0 and (job := ask(lane, running, left)) >= 0:
                mode, scale = modes[lane], 1.0
                running[lane], left[lane], sms[lane] = job, mode.seconds[job], mode.sms[job]
                if crossings and any(on[pred] != lane for pred in crossings.preds[job]):
                    left[lane] += crossings.seconds
                    scale = mode.seconds[job] / left[lane]
                slack[lane] = left[lane] * TINY
                for draw, share in zip(draws, mode.shares, strict=True):
                    draw[lane] = share[job] * scale
                start[job], on[job] = now, lane
                order.append(job)
                busy.append(lane)
        if not busy:
            break
        speeds, weights = shared.speeds(busy, running, sms) if shared else (full, sms)
        rates = speeds
        for draw in draws:
            drawn = draw if speeds is full else [share * speed for share, speed in zip(draw, speeds, strict=True)]
            total = 0.0
            for one in drawn:  # sum() rounds otherwise from Python 3.12 on
                total += one
            if total > 1.0:
                filled = water_fill(drawn, weights)
                rates = [min(rate, speed * fill) for rate, speed, fill in zip(rates, speeds, filled, strict=True)]
        if rates is full:
            step = min(left)
            for lane in busy:
                left[lane] -= step
        else:
            step = min((left[lane] / rates[lane] for lane in busy if rates[lane] > 0.0), default=inf)
            if step == inf:
                raise SimulationError(f"jobs {[running[lane] for lane in busy]} are running and none can progress")
            for lane in busy:
                left[lane] -= step * rates[lane]
        now += step
        for lane in [lane for lane in busy if left[lane] <= slack[lane]]:
            job, running[lane], left[lane], sms[lane] = running[lane], -1, inf, 0
            busy.remove(lane)
            for draw in draws:
                draw[lane] = 0.0
            end[job] = now
            done += 1
            finish(job)
    if done < count:
        stuck = [job for job in range(count) if on[job] < 0]
        raise SimulationError(
            f"{len(stuck)} of {count} jobs can never start, the first is job {stuck[0]}: they wait in a circle"
        )
    return Trace(start, end, on, order)


def water_fill(drawn: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The fraction that each gets of the bandwidth it draws, where all together draw more than 1.

    >>> water_fill([1.0, 1.0, 0.25], [30, 10, 0])  # a copy, then two kernels by their SMs
    [0.5625, 0.1875, 1.0]
    """
    got = [1.0] * len(drawn)
    copies = 0.0
    for share, weight in zip(drawn, weights, strict=True):
        copies += 0.0 if weight else share
    if copies > 1.0:
        return [
            1.0 if not share else 0.0 if weight else 1.0 / copies for share, weight in zip(drawn, weights, strict=True)
        ]
    kernels = sorted(
        (share / weight, lane) for lane, (share, weight) in enumerate(zip(drawn, weights, strict=True)) if weight
    )
    free, holders = 1.0 - copies, sum(weights)
    for level, lane in kernels:  # who asks least per SM is served in full, the others share what is left
        share, weight = drawn[lane], weights[lane]
        if level * holders > free:
            got[lane] = free * weight / holders / share
        free -= share * got[lane]
        holders -= weight
    return got


class Queues:
    """The policy of streams: each runs its queue in order, a job as soon as all that it waits for has ended.

    Args:
        queues: the jobs of each stream.
        waits: for each job, those on other streams that it waits for.
    """

    def __init__(self, queues: Sequence[Sequence[int]], waits: Sequence[Sequence[int]]) -> None:
        self.queues = [list(reversed(queue)) for queue in queues]
        self.missing = [len(waited) for waited in waits]
        self.waiters: list[list[int]] = [[] for _ in waits]
        for job, waited in enumerate(waits):
            for other in waited:
                self.waiters[other].append(job)

    def next(self, lane: int, running: Sequence[int], left: Sequence[float]) -> int:
        """The head of the queue, if it waits for nothing."""
        queue = self.queues[lane]
        return queue.pop() if queue and not self.missing[queue[-1]] else -1

    def done(self, job: int) -> None:
        """Frees those that wait for it."""
        for waiter in self.waiters[job]:
            self.missing[waiter] -= 1


@dataclass(frozen=True, slots=True)
class Jobs:
    """Jobs in the order in which they are issued, as flat lists.

    Attributes:
        stream: the index of each job's stream.
        modes: what each takes there.
        operators: their names, by which measured pairs are found.
        seconds_on: the seconds of a job on fewer SMs, where streams share them.
    """

    stream: list[int]
    modes: Modes
    operators: list[str]
    seconds_on: Callable[[int, int], float]


def replay(
    jobs: Jobs,
    streams: Sequence[Stream],
    waits: Sequence[Sequence[int]],
    pairs: Mapping[tuple[str, str], tuple[float, float]] | None = None,
    event_seconds: float = 0.0,
) -> tuple[list[float], list[float]]:
    """Start and end of every job when each stream is a queue and ``waits[job]`` lists the jobs it waits for.

    Args:
        jobs: what runs.
        streams: the queues.
        waits: for each job, those on other streams that must have ended.
        pairs: measured slowdowns of two operators on the same SMs.
        event_seconds: what a job that waits for others takes longer.
    """
    queues: list[list[int]] = [[] for _ in streams]
    for job, stream in enumerate(jobs.stream):
        queues[stream].append(job)
    shared = coresidence(streams, jobs.operators, jobs.seconds_on, pairs)
    modes = with_events(jobs.modes, waits, event_seconds)
    trace = simulate(len(jobs.stream), [modes] * len(streams), Queues(queues, waits), shared)
    return trace.start, trace.end


def with_events(modes: Modes, waits: Sequence[Sequence[int]], event_seconds: float) -> Modes:
    """The modes of jobs that take ``event_seconds`` longer, and draw as many bytes, if they wait for others."""
    longer = [before + event_seconds if waited else before for before, waited in zip(modes.seconds, waits, strict=True)]
    scales = [before / after if after > before else 1.0 for before, after in zip(modes.seconds, longer, strict=True)]
    shares = ([share * scale for share, scale in zip(draw, scales, strict=True)] for draw in modes.shares)
    return Modes(longer, modes.sms, tuple(shares))
