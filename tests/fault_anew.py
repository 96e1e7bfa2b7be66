"""Faults of the cuda backend that take an executor each: while it is made, captures or closes, and of the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

import nanort as nr
from failing import Broken
from fault_cuda import OnGpu
from fault_table import (
    ANEW,
    CALL_BY_CALL,
    DRIVER,
    EXCEPTION,
    HANG,
    KEPT,
    MEMORY,
    RESTART,
    STICKY,
    Told,
)
from fault_trials import ILLEGAL, NO_MEMORY, forget
from nanort.errors import (
    DeviceMemoryError,
    DriverError,
    HangError,
    PoisonedError,
)
from nanort.programs.program import Copy
from nanort.runtime import cuda
from saboteur import Saboteur, Site, census, held, machine


@dataclass
class Anew(OnGpu):
    """An executor for each case."""

    def all(self) -> None:
        """Everything that takes one."""
        if self.capture:
            self.capturing()
        else:
            self.allocating()
        self.closing()
        self.poisoned()

    # While an executor is made.

    def allocating(self) -> None:
        """Every call of the driver that makes an executor fails; then all that allocate find no memory."""
        calls = self.calls_of_making()
        for nth, method in enumerate(calls, 1):
            for error, fault in ((None, DRIVER), (DriverError(ILLEGAL, call=method, sticky=True), STICKY)):
                with machine(Saboteur()) as fake:
                    fake.fail_at("", nth, error)
                    told = self.attempt(self.build)
                    assert not fake.live["event"]
                    if fault == DRIVER:
                        said = f"{self.named(told, DriverError, None, f'{method} failed')} with the call"
                        assert told.call == method
                        with self.build() as run:
                            self.verify(run, fake)
                        self.note("allocate", fault, said, ANEW)
                    else:
                        said = self.named(told, DriverError, None, ILLEGAL)
                        self.named(self.attempt(self.build), PoisonedError, None, "again")
                        self.note("allocate", fault, said, RESTART)
        for nth in range(1, calls.count("allocate") + 1):
            with machine(Saboteur()) as fake:
                fake.fail_at("allocate", nth, DeviceMemoryError(NO_MEMORY))
                told = self.attempt(self.build)
                assert told.kind == "DeviceMemoryError"
                assert NO_MEMORY in told.text
                assert "its largest value" in told.text or not self.here.program.activities
                with self.build() as run:
                    self.verify(run, fake)
                self.note("allocate", MEMORY, "DeviceMemoryError with bytes and the largest value", ANEW)

    def calls_of_making(self) -> list[str]:
        """The methods of the driver that are called until an executor is there."""
        with machine(Saboteur()) as fake, self.build():
            return [str(method) for method, *_ in fake.calls]

    # Captures that fail, nodes that never end, and faults of the device: each with an executor of its own.

    def capturing(self) -> None:
        """Every call of a capture fails: a warning names the node, and the run is queued call by call."""
        for at, site in enumerate(self.captured()):
            refused = DriverError(f"{site.method} failed, as the test asked", call=site.method)
            errors: list[tuple[str, Exception]] = [(DRIVER, refused)]
            if site.what == "work":
                errors += [(EXCEPTION, Broken("it is negative")), (MEMORY, DeviceMemoryError(NO_MEMORY))]
            for fault, error in errors:
                with machine(Saboteur()) as fake, self.build() as run:
                    self.verify(run, fake)
                    before = census(fake)
                    ahead = len(self.states) + self.polls() + self.prologue()
                    fake.fail_at("", fake.count() + ahead + at + 1, error)
                    with pytest.warns(RuntimeWarning, match="is not captured but queued call by call") as told:
                        self.verify(run, fake)
                    (warning,) = [str(warning.message) for warning in told]
                    told.clear()
                    assert str(error) in warning
                    forget(error)
                    if site.node is not None:
                        step = self.steps[site.node]
                        assert f"node {step.name} ({step.where})" in warning
                    self.verify(run, fake)
                    assert census(fake) == before
                    said = "a warning with the node" if site.node is not None else "a warning with the call"
                    self.note(site.phase, fault, said, CALL_BY_CALL)

    def captured(self) -> list[Site]:
        """The calls that make a graph."""
        first = [Site("begin_capture", "launch", None, "capture"), Site("record", "launch", None, "began")]
        return [*first, *self.sites, Site("end_capture", "launch", None, "capture")]

    def closing(self) -> None:
        """An executor is closed while a node hangs, and while the driver fails to give things back."""
        for at, site in enumerate(self.sites):
            if site.what != "work":
                continue
            with machine(Saboteur()) as fake:
                before = len(cuda._HUNG), held()
                with self.warmed(fake) as run:
                    self.spoil(fake, run, at, HANG)
                    told = self.failed(run)
                    run.close()
                said = self.named(told, HangError, site.node)
                del run
                assert fake.live["event"], "what the node may still touch is gone"
                fake.heal()
                fake.settle(None)
                kept: Any = cuda._HUNG.pop()
                kept[0].close()
                del kept
                assert (len(cuda._HUNG), held()) == before
                with self.build() as run:
                    self.verify(run, fake)
                self.note("finish", HANG, said, ANEW, KEPT)
        with machine(Saboteur()) as fake, self.warmed(fake) as run:
            before = fake.count()
            run.close()
            count = fake.count() - before
        for nth in range(1, count + 1):
            with machine(Saboteur()) as fake:
                run = self.warmed(fake)
                fake.fail_at("", fake.count() + nth)
                told = self.attempt(run.close)
                assert told.kind == "DriverError", told
                assert f"{told.call} failed" in told.text
                run.close()
                fake.heal()
                with self.build() as run:
                    self.verify(run, fake)
                del run
                self.note("finish", DRIVER, "DriverError with the call", ANEW)

    def poisoned(self) -> None:
        """A fault of the device, found at every call of a run, and late of what every node does."""
        for at, site in enumerate(self.sites):
            if site.what == "work":
                told = self.fatal(lambda fake, run, at=at: self.spoil(fake, run, at, ILLEGAL))
                assert site.node is not None
                self.suspected(told, site.node)
                phase = "copy" if isinstance(self.steps[site.node], Copy) else "run"
                self.note(phase, STICKY, "PoisonedError with the nodes suspected", RESTART)
        staged, start = self.polls(), self.prologue()
        queued = [Site("launch_graph", "launch", None, "graph")] if self.capture else self.sites
        sites = [Site("", "stage", None, "")] * (staged + start) + queued + [Site("", "finish", None, "")] * 3
        tried = [(nth, site, self.warm) for nth, site in enumerate(sites, 1)]
        if self.capture:  # the second run makes the graph of its slot
            tried += [(staged + start + nth, site, 1) for nth, site in enumerate(self.captured(), 1)]
        for nth, site, warm in tried:
            error = partial(DriverError, ILLEGAL, call=site.method, sticky=True)
            told = self.fatal(
                lambda fake, run, nth=nth, error=error: fake.fail_at("", fake.count() + nth, error()), warm
            )
            if site.node is not None:
                step = self.steps[site.node]
                assert f"node {step.name} ({step.where}): {ILLEGAL}" in told.text
            said = "PoisonedError with the node" if site.node is not None else "PoisonedError with the nodes suspected"
            self.note(site.phase, STICKY, said, RESTART)

    def fatal(self, inject: Callable[[Saboteur, nr.Executor], None], warm: int | None = None) -> Told:
        """A run poisons the device: it is said then, and whenever it is used again; nothing is left."""
        with machine(Saboteur()) as fake:
            with self.warmed(fake, warm) as run:
                inject(fake, run)
                told = self.failed(run)
                assert told.kind == "PoisonedError", told
                assert ILLEGAL in told.text
                assert "start the process again" in told.text
                assert run.timeline.failure == "" or ILLEGAL in run.timeline.failure
                for later in (self.failed(run), self.attempt(self.build)):
                    assert later.kind == "PoisonedError", later
                    assert "start the process again" in later.text
            del run
        return told

    def suspected(self, told: Told, culprit: int) -> None:
        """The culprit is among the suspects, or comes after one of them."""
        after = self.followers()
        suspects = [index for index, step in enumerate(self.steps) if f"{step.name} ({step.where})" in told.text]
        assert any(culprit in after[suspect] for suspect in suspects), (told, self.steps[culprit].name)
        assert told.node == self.steps[suspects[0]].name or told.node in {self.steps[s].name for s in suspects}

    def followers(self) -> list[set[int]]:
        """By activity, those that streams and waits put after it, and itself."""
        after: list[set[int]] = [{index} for index in range(len(self.steps))]
        activities = self.here.program.activities
        last: dict[str, int] = {}
        before: list[set[int]] = []
        for index, activity in enumerate(activities):
            before.append({on for on, _ in activity.waits} | {last.get(activity.stream, index)} - {index})
            last[activity.stream] = index
        for index in reversed(range(len(activities))):
            for on in before[index]:
                after[on] |= after[index]
        return after
