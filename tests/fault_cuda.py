"""Faults of the cuda backend after which the same executor runs again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import nanort as nr
from failing import Broken
from fake_runs import executor
from fault_table import (
    DRIVER,
    EXCEPTION,
    HANG,
    LOST,
    MEMORY,
    NOTHING,
    RIGHT,
    Told,
)
from fault_trials import NO_MEMORY, SECONDS, Trial
from nanort.errors import (
    DeviceMemoryError,
    DriverError,
    ExecutionError,
    HangError,
    InputShapeError,
    MissingInputError,
)
from nanort.programs.program import Copy
from saboteur import Saboteur, body, census, machine


@dataclass
class OnGpu(Trial):
    """A GPU's driver that fails, and work that fails or hangs on the GPU; with ``capture`` in graphs and their making.

    Runs are watched, so that hangs are found. After 3 runs both slots have their graph.
    """

    capture: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        self.backend = "captured" if self.capture else "eager"
        self.sites = body(self.here.program)
        self.warm = 3 if self.capture else 1
        roots = {buffer.root: buffer for buffer in self.here.program.buffers if buffer.kind == "input"}
        self.copied = sum(buffer.device != "host" for buffer in roots.values())

    def build(self, **options: Any) -> nr.Executor:
        return executor(self.here.program, self.ours, capture=self.capture, timeout=SECONDS, **options)

    def warmed(self, fake: Saboteur, runs: int | None = None) -> nr.Executor:
        """An executor that has run."""
        run = self.build()
        for _ in range(runs or self.warm):
            self.verify(run, fake)
        return run

    def nth(self, at: int, method: str) -> int:
        """Which call of its method in a run the call at ``at`` of the body is, queued call by call."""
        before = {"record": 2, "wait": 1, "copy": self.copied, "launch": 0}[method]  # arrived, began; arrived; inputs
        return before + sum(site.method == method for site in self.sites[: at + 1])

    def spoil(self, fake: Saboteur, run: nr.Executor, at: int, how: str) -> None:
        """What the call at ``at`` of the body queues in the next run hangs or fails."""
        if self.capture:
            backend: Any = run._backend
            fake.spoil_graph(backend._graphs[backend._slot], 1 + at, how)  # after the mark of its beginning
        else:
            method = self.sites[at].method
            fake.spoil_at(method, self.nth(at, method), how)

    def note(self, phase: str, fault: str, said: str, then: str, left: str = NOTHING) -> None:
        self.matrix.note(self.backend, phase, fault, said, then, left)

    def prologue(self) -> int:
        """Calls before the program, the questions of a run that has inputs of the host left out."""
        return 3 + self.copied

    def polls(self) -> int:
        """Questions at the beginning of a run with inputs of the host, whose slot has long been free."""
        return int(any(b.kind == "input" and b.device == "host" for b in self.here.program.buffers))

    def joins(self) -> int:
        """Which record of a run is the hand-over to the caller."""
        return 3 + (0 if self.capture else sum(site.method == "record" for site in self.sites))


@dataclass
class Cuda(OnGpu):
    """One executor that goes on and on."""

    # Faults after which the same executor goes on.

    def all(self) -> None:
        """Everything after which an executor runs again."""
        with machine(Saboteur()) as fake, self.warmed(fake) as run:
            self.staging(fake, run)
            if not self.capture:
                self.queueing(fake, run)
            self.hanging(fake, run)
            self.finishing(fake, run)

    def recovers(
        self, fake: Saboteur, run: nr.Executor, inject: Callable[[], None], kind: type[Exception], *parts: str
    ) -> Told:
        """A run fails with this error; afterwards nothing is left of it and the next run gives the right values."""
        before = census(fake)
        inject()
        told = self.failed(run)
        assert told.kind == kind.__name__, told
        for part in parts:
            assert part in told.text, (part, told)
        assert run.timeline.failure == told.text
        fake.heal()
        self.verify(run, fake)
        assert census(fake) == before
        return told

    def staging(self, fake: Saboteur, run: nr.Executor) -> None:
        """Inputs that are wrong or missing; calls that bring them to the device, and what those queue."""
        graph = self.here.schedule.graph
        for root in [root for root in graph.roots if root.kind == "input"]:
            wrong = {**self.given, root.name: torch.zeros(*root.shape, 1, dtype=root.dtype)}
            less = {name: tensor for name, tensor in self.given.items() if name != root.name}
            for given, kind in ((wrong, InputShapeError), (less, MissingInputError)):
                if not given:
                    continue
                before = census(fake)
                told = self.failed(run, given)
                assert told.kind == kind.__name__
                assert root.name in told.text
                self.verify(run, fake)
                assert census(fake) == before
                self.note("stage", EXCEPTION, f"{kind.__name__} with the input", RIGHT)
        for method, count in (("record", 2), ("wait", 1), ("copy", self.copied)):
            for nth in range(1, count + 1):
                at = partial(fake.fail_at, method)
                told = self.recovers(
                    fake, run, lambda at=at, nth=nth, m=method: at(fake.count(m) + nth), DriverError, f"{method} failed"
                )
                assert told.call == method
                self.note("stage", DRIVER, "DriverError with the call", RIGHT)
                if method == "copy":
                    error = DeviceMemoryError(NO_MEMORY)
                    self.recovers(
                        fake, run, lambda at=at, nth=nth, e=error: at(fake.count("copy") + nth, e), DeviceMemoryError,
                        NO_MEMORY,
                    )  # fmt: skip  # what is injected, and what comes of it
                    self.note("stage", MEMORY, "DeviceMemoryError", RIGHT)
                if self.sites and method != "wait":
                    hang = partial(fake.spoil_at, method, nth, HANG)
                    told = self.recovers(fake, run, hang, HangError, "did not end within", "0 of ")
                    assert told.node in {step.name for step in self.steps}
                    fault = HANG if method == "copy" else LOST
                    self.note("stage", fault, "HangError with nodes that wait for it", RIGHT)

    def queueing(self, fake: Saboteur, run: nr.Executor) -> None:
        """Every call that queues a part of the program fails; operators raise, and find no memory."""
        for at, site in enumerate(self.sites):
            errors: list[tuple[str, Exception | None, type[Exception], str]] = [
                (DRIVER, None, DriverError, f"{site.method} failed")
            ]
            if site.what == "work":
                errors.append((EXCEPTION, Broken("it is negative"), ExecutionError, "it is negative"))
                errors.append((MEMORY, DeviceMemoryError(NO_MEMORY), DeviceMemoryError, NO_MEMORY))
            for fault, error, kind, part in errors:
                nth = self.nth(at, site.method)
                fails = lambda s=site, n=nth, e=error: fake.fail_at(s.method, fake.count(s.method) + n, e)  # noqa: E731
                told = self.recovers(fake, run, fails, kind, part)
                said = self.named(told, kind, site.node)
                self.note(site.phase, fault, said if site.node is not None else f"{said} with the call", RIGHT)

    def hanging(self, fake: Saboteur, run: nr.Executor) -> None:
        """Every node hangs, and every event is lost: whatever waits for it never goes on."""
        for at, site in enumerate(self.sites):
            if site.what not in ("work", "start", "stop", "event", "join", "fork") or site.method == "wait":
                continue
            told = self.recovers(fake, run, partial(self.spoil, fake, run, at, HANG), HangError, "did not end within")
            copied = site.node is not None and isinstance(self.steps[site.node], Copy)
            phase = "finish" if site.what == "join" else "copy" if copied else "run"
            if site.what == "work":
                self.note(phase, HANG, self.named(told, HangError, site.node, "timeout="), RIGHT)
                continue
            names = {step.name for step in self.steps}
            if site.what in ("start", "stop"):
                assert site.node is not None
                assert self.steps[site.node].name in told.text, (site, told)
            said = "HangError with nodes that wait for it" if told.node in names else "HangError, all nodes have ended"
            assert told.node in names or told.text.startswith("the run did not end"), (site, told)
            self.note(phase, LOST, said, RIGHT)

    def finishing(self, fake: Saboteur, run: nr.Executor) -> None:
        """What follows the program: the hand-over to the caller, the host's questions, the timeline."""
        count = self.prologue() + (1 if self.capture else len(self.sites))
        for nth, method in enumerate(("record", "wait", "happened"), count + 1):
            fails = lambda nth=nth: fake.fail_at("", fake.count() + self.polls() + nth)  # noqa: E731
            told = self.recovers(fake, run, fails, DriverError, "failed")
            assert told.call == method
            self.note("finish", DRIVER, "DriverError with the call", RIGHT)
        for method in ("happened", "seconds") if self.here.program.activities else ():
            before = census(fake)
            self.verify(run, fake)
            run(**self.given)
            fake.fail_at(method, fake.count(method) + 1)
            told = self.attempt(lambda: run.timeline)
            assert told.call == method
            assert run.timeline.failure == told.text
            self.verify(run, fake)
            assert census(fake) == before
            self.note("finish", DRIVER, "DriverError with the call", RIGHT)
        if self.capture:
            told = self.recovers(
                fake, run, lambda: fake.fail_at("launch_graph", fake.count("launch_graph") + 1), DriverError,
                "launch_graph failed",
            )  # fmt: skip  # what is injected, and what comes of it
            self.note("launch", DRIVER, "DriverError with the call", RIGHT)
        joined = self.joins()
        told = self.recovers(fake, run, partial(fake.spoil_at, "record", joined, HANG), HangError, "did not end within")
        assert told.text.startswith("the run did not end")
        self.note("finish", LOST, "HangError, all nodes have ended", RIGHT)
