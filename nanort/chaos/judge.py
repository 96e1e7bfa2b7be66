"""What has to hold in every world, whatever goes wrong in it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nanort.chaos.faults import HANGS, TIMEOUT, Fault
from nanort.chaos.workload import Asked
from nanort.errors import ExecutionError, InternalError, NanortError
from nanort.serving.engine import Engine
from nanort.serving.requests import CANCELLED, ERROR, LENGTH, STOP, Output, Request
from nanort.timeline.events import Timeline

TOLERANCE = 1e-9
"""Seconds."""


@dataclass(slots=True)
class Followed:
    """A request of a world, and what came of it.

    Attributes:
        number: of the request in its world; it is asked again where a process ended.
        step: of the process, in which it was submitted.
        left: whether its client has gone.
    """

    number: int
    asked: Asked
    request: Request
    step: int
    left: bool = False
    outputs: list[Output] = field(default_factory=list)

    def judge(self, *, over: bool) -> None:
        """Whether tokens and end are what they have to be; ``over`` says that the process has ended.

        Raises:
            InternalError: they are not.
        """
        request, wanted = self.request, self.asked.wanted
        tokens = tuple(token for output in self.outputs for token in output.tokens)
        ends = [output.finish for output in self.outputs if output.finish is not None]
        if tokens != tuple(request.generated) or tokens != wanted[: len(tokens)]:
            _breach(f"{request} was given {tokens}, holds {request.generated}, and should say {wanted}")
        if request.finish in (STOP, LENGTH) and tokens != wanted:
            _breach(f"{request} ended by {request.finish!r} after {tokens}, and should say {wanted}")
        told = [] if request.finish in (None, CANCELLED) else [request.finish]
        if ends != told:
            _breach(f"{request} ended by {request.finish!r}, and its client was told {ends}")
        if (request.finish == ERROR) != (request.error is not None):
            _breach(f"{request} ended by {request.finish!r} with the error {request.error!r}")
        if request.finish == CANCELLED and not (self.left or over):
            _breach(f"{request} was cancelled, and its client was still there")
        if over and request.finish is None:
            _breach(f"{request} never ended")


def judge_accounts(engine: Engine) -> None:
    """Whether every page is where the books say, and nobody holds any who has ended."""
    engine.cache.check()
    if engine.cache.free + engine.cache.used != engine.cache.pages - 1:
        _breach(f"{engine.cache} has {engine.cache.free} free pages and {engine.cache.used} used ones")
    if ended := [request for request in (*engine.waiting, *engine.running) if request.finish is not None]:
        _breach(f"{ended} have ended, and still wait or run")
    seats = [request.seat for request in engine.running]
    if None in seats or len(set(seats)) < len(seats):
        _breach(f"those that run sit on {seats}")
    if not engine.busy and engine.cache.used:
        _breach(f"nothing is left to do, and {engine.cache}")


def judge_timeline(timeline: Timeline) -> None:
    """Whether what happened could: activities of a stream one after the other, each after what it waits for."""
    start, end = timeline.start, timeline.end
    if np.isnan(start).any() or np.isnan(end).any() or (end < start).any() or (start < -TOLERANCE).any():
        _breach(f"a timeline has activities that never ran, or end before they start: {start}, {end}")
    last: dict[str, float] = {}
    for index, activity in enumerate(timeline.activities):
        before = max([last.get(activity.stream, 0.0), *(end[on] for on, _ in activity.waits)])
        if start[index] < before - TOLERANCE:
            _breach(f"{activity.name} started at {start[index]}, before what it comes after ended at {before}")
        last[activity.stream] = end[index]


def judge_error(error: NanortError, fault: Fault | None) -> None:
    """Whether an error is what a fault may lead to, and says what it is about."""
    if fault is None or fault.struck is None or not isinstance(error, fault.kind.errors):
        _breach(f"{type(error).__name__} with {'no fault' if fault is None else fault.kind.name}: {error}")
    named = getattr(error, "call", "") or any(word in str(error) for word in ("node", "step", "program", "group"))
    if not isinstance(error, ExecutionError) or not named:
        _breach(f"{type(error).__name__} names neither node, call, step, program nor group: {error}")


def failures_allowed(fault: Fault) -> int:
    """How many steps may fail of one fault: those in flight, and those that wait for what hangs."""
    return 3 + int(fault.seconds / TIMEOUT if fault.kind.name in HANGS else 0)


def _breach(what: str) -> None:
    raise InternalError(what)
