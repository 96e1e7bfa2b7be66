"""Faults: which node failed, or has not ended, and what the error that is raised says of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from nanort.driver import Driver
from nanort.errors import DeviceMemoryError, DriverError, ExecutionError, HangError, PoisonedError
from nanort.printable import said
from nanort.programs.program import Copy, Launch, Program, View
from nanort.runtime.marks import Marks, Run
from nanort.timeline.activities import Activity
from nanort.timeline.units import counted, duration

POLL_SECONDS = 5e-5
RESTART = "save what you need and start the process again"


class Watch:
    """What is known of a run: which of its activities have ended."""

    def __init__(self, program: Program, marks: Marks) -> None:
        self.program = program
        self._marks = marks
        self._lanes: dict[str, list[int]] = {}
        for index, activity in enumerate(program.activities):
            self._lanes.setdefault(activity.stream, []).append(index)
        self.begin(Run(0))

    def begin(self, run: Run) -> None:
        """Of a new run nothing is known."""
        self._run = run
        self._done: set[int] = set()
        self._next = dict.fromkeys(self._lanes, 0)

    def look(self) -> bool:
        """Asks for all that has not ended yet; whether anything has since the last time."""
        before = len(self._done)
        for stream, lane in self._lanes.items() if self._marks.stops else ():
            while (at := self._next[stream]) < len(lane) and lane[at] < self._run.queued:
                if not self._marks.has_ended(self._run, lane[at]):
                    break
                self._done.add(lane[at])
                self._next[stream] += 1
        return len(self._done) > before

    def wait(self, happened: Callable[[], bool], timeout: float) -> None:
        """Returns once ``happened()``.

        Raises:
            HangError: for ``timeout`` seconds no activity has ended.
        """
        time = self._marks.driver.time
        deadline = time.now() + timeout
        while not happened():
            if self.look():
                deadline = time.now() + timeout
            elif time.now() > deadline:
                raise self._hang(timeout)
            time.wait(time.now() + POLL_SECONDS)

    def poisoned(self, error: BaseException, runs: int) -> PoisonedError:
        """What is raised after ``error`` left the device unusable, while the last ``runs`` may not have ended."""
        with suppress(DriverError):  # a device that failed may tell nothing any more
            self.look()
        suspects = self._suspects()
        earlier = "" if runs < 2 or self._done else f", or a node of the {counted(runs - 1, 'run')} before"
        advice = "" if self._done else "; with timeout= the host looks on and can tell more"
        return PoisonedError(
            f"the device failed and is of no use any more in this process: {error}. {self._story()}; suspected: "
            f"{_named(suspects)} or what follows{earlier}{advice}. Now {RESTART}",
            **_first(suspects),
        )

    def _hang(self, timeout: float) -> HangError:
        suspects = self._suspects()
        return HangError(
            f"{_named(suspects) if suspects else 'the run'} did not end within {duration(timeout)}. {self._story()}. "
            f"Nothing ends a kernel from outside: give more timeout= if it is slow, or {RESTART}",
            **_first(suspects),
        )

    def ended(self) -> list[int]:
        """The activities that are known to have ended."""
        return sorted(self._done)

    def _suspects(self) -> list[Activity]:
        """What may be running: the first on each stream that has not ended, if all that it waits for has."""
        activities = self.program.activities
        heads = (activities[lane[at]] for stream, lane in self._lanes.items() if (at := self._next[stream]) < len(lane))
        return [head for head in heads if all(on in self._done for on, _ in head.waits)]

    def _story(self) -> str:
        activities, last = self.program.activities, max(self._done, default=None)
        named = f", last {activities[last].name}" if last is not None else ""
        return f"Known to have ended: {len(self._done)} of {counted(len(activities), 'node')}{named}"


def refuse_poisoned(driver: Driver) -> None:
    """Raises PoisonedError if the device has failed before in this process."""
    if driver.poisoned:
        raise PoisonedError(
            f"the device failed before and is of no use any more in this process ({driver.poisoned}): {RESTART}"
        )


@contextmanager
def naming(program: Program, step: Launch | Copy) -> Iterator[None]:
    """Whatever is raised inside names ``step``."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ExecutionError) and error.node:
            raise
        raise failure(program, step, error) from error


def failure(program: Program, step: Launch | Copy, error: Exception) -> ExecutionError:
    """What is raised where ``error`` kept ``step`` from being queued."""
    named = f"node {step.name} ({step.where})"
    if isinstance(error, DriverError):
        return DriverError(f"{named}: {error}", call=error.call, sticky=error.sticky, node=step.name, where=step.where)
    if isinstance(error, DeviceMemoryError):
        reads, writes = _sizes(program, step)
        return DeviceMemoryError(
            f"{named} reads {reads:,} bytes, writes {writes:,}, and there was no memory for what it needs besides "
            f"({error}): free some, or use a smaller batch",
            node=step.name,
            where=step.where,
        )
    return ExecutionError(f"{named} failed: {said(error)}", node=step.name, where=step.where)


def _sizes(program: Program, step: Launch | Copy) -> tuple[int, int]:
    """Bytes that a step reads, and that its results take."""
    args = (step.source,) if isinstance(step, Copy) else [arg for arg in step.args if isinstance(arg, View)]
    outs = (step.target,) if isinstance(step, Copy) else step.outs
    reads, writes = (
        sum(math.prod(view.shape) * program.buffers[view.buffer].dtype.itemsize for view in views)
        for views in (args, outs)
    )
    return reads, writes


def _named(suspects: list[Activity]) -> str:
    return ", ".join(f"{activity.name} ({activity.where})" for activity in suspects) or "no node"


def _first(suspects: list[Activity]) -> dict[str, str]:
    return {"node": suspects[0].name, "where": suspects[0].where} if suspects else {}
