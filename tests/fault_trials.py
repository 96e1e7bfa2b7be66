"""Faults before anything is asked of a GPU, and those of the cpu backend."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch

import nanort as nr
import random_dags
from failing import Broken
from fake_runs import executor
from fault_samples import Sample
from fault_table import (
    ANEW,
    DRIVER,
    EXCEPTION,
    GRANT,
    LOST,
    MEMORY,
    RESTART,
    RIGHT,
    STICKY,
    Matrix,
    Told,
)
from nanort.errors import (
    BackendError,
    CapacityError,
    DeviceMemoryError,
    DriverError,
    ExecutionError,
    InputShapeError,
    MissingInputError,
    NanortError,
    PoisonedError,
)
from nanort.programs.program import Copy, Launch, Program, Record, View, Wait
from saboteur import Saboteur, census, held, machine, steps

SECONDS = 0.1  # of the clock that stands still while nobody waits
ILLEGAL = "an illegal memory access was encountered"
NO_MEMORY = "tried to allocate 2 GiB"


def forget(error: BaseException | None) -> None:
    """Lets go of the frames that an error and what it came of keep alive, until a collection at the latest."""
    while error:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


@dataclass
class Trial:
    """One graph under trial."""

    matrix: Matrix
    here: Sample

    def __post_init__(self) -> None:
        graph = self.here.schedule.graph
        self.ours = {name: tensor.clone() for name, tensor in self.here.tensors.items()}
        self.given, self.constants, self.states = random_dags.by_kind(graph, self.ours)
        self.steps = steps(self.here.program)

    def reset(self, fake: Saboteur | None) -> None:
        """States as they were at the beginning, on the caller's stream: a run that failed may have changed them."""
        for name, tensor in self.states.items():
            restore = partial(tensor.copy_, self.here.tensors[name])
            if fake:
                fake.launch(0, restore)
            else:
                restore()

    def failed(self, run: nr.Executor, given: Mapping[str, torch.Tensor] | None = None) -> Told:
        """What a run raises."""
        return self.attempt(partial(run, **(given or self.given)))

    def attempt(self, call: Callable[[], object]) -> Told:
        """What a call raises."""
        with pytest.raises(NanortError) as caught:
            call()
        error = caught.value
        told = Told(type(error).__name__, str(error), getattr(error, "node", ""), getattr(error, "call", ""))
        forget(error)
        del error, caught
        return told

    def verify(self, run: nr.Executor, fake: Saboteur | None = None) -> None:
        """A run gives the right values, and leaves the right states."""
        self.reset(fake)
        found = run(**self.given)
        if fake:
            fake.settle(0)
        assert found.keys() == self.here.answers.keys()
        for name, answer in self.here.answers.items():
            assert torch.equal(found[name], answer), name
        for name, state in self.here.states.items():
            assert torch.equal(self.states[name], state), name
        assert run.timeline.failure == ""

    def named(self, told: Told, kind: type[Exception], index: int | None, *parts: str) -> str:
        """Asserts that an error is of this class and names this activity, and says so."""
        assert told.kind == kind.__name__, told
        for part in parts:
            assert part in told.text, (part, told)
        if index is None:
            assert told.node == "", told
            return kind.__name__
        step = self.steps[index]
        assert told.node == step.name, (told, step.name)
        assert f"{step.name} ({step.where})" in told.text, told
        return f"{kind.__name__} with the node"


class Planning(Trial):
    """Before anything is asked of a GPU: the same for all backends, counted as eager."""

    def all(self) -> None:
        self.kernels()
        self.waits()
        self.refusals()

    def build(self, program: Program | None = None, **options: Any) -> nr.Executor:
        return nr.Executor(
            program or self.here.program, constants=self.constants, states=self.states, backend="cuda",
            timeout=SECONDS, **options,
        )  # fmt: skip  # what is said by its name

    def refused(self, fake: Saboteur, program: Program | None = None, **options: Any) -> Told:
        """What an executor that cannot be made raises; it leaves nothing, and the next one works."""
        before = census(fake)
        told = self.attempt(partial(self.build, program, **options))
        assert census(fake) == before
        with self.build() as run:
            self.verify(run, fake)
        return told

    def kernels(self) -> None:
        """A kernel that does not exist, and rules of one that raise, at every launch."""
        places = [at for at, step in enumerate(self.here.program.instructions) if isinstance(step, (Launch, Copy))]
        with machine(Saboteur()) as fake:
            self.build().close()  # so that streams which are kept for the next executor are there
            for index, step in enumerate(self.steps):
                if not isinstance(step, Launch):
                    continue
                views = [argument for argument in step.args if isinstance(argument, View)]
                on_host = any(self.here.program.buffers[view.buffer].device == "host" for view in views)
                rules = ("refusing", "scratching", "preparing")[index % 3 : index % 3 + 1]
                for name in ("absent", *(() if on_host else rules)):  # no kernel takes values of the host
                    op = replace(step.op, kernels={name: f"failing:{name}"})
                    instructions = list(self.here.program.instructions)
                    instructions[places[index]] = replace(step, op=op, kernel=name)
                    told = self.refused(fake, replace(self.here.program, instructions=tuple(instructions)))
                    kind = BackendError if name == "absent" else ExecutionError
                    said = self.named(told, kind, index, "cannot be imported" if name == "absent" else "it is broken")
                    self.matrix.note("eager", "plan", EXCEPTION, said, ANEW)

    def waits(self) -> None:
        """A wait of the schedule that is lost: the program is refused, with both nodes."""
        schedule, graph = self.here.schedule, self.here.schedule.graph
        for lost in schedule.waits:
            left = replace(schedule, waits=tuple(wait for wait in schedule.waits if wait is not lost))
            if lost.reason not in ("data", "state"):
                continue  # nothing but the plan's wish, or also what another pair of nodes relies on
            told = self.attempt(partial(nr.lower, left))
            assert told.kind == "ProgramError"
            assert " has to wait for " in told.text
            assert any(graph.nodes[node].name in told.text for node in (lost.node, lost.on)), (lost, told)
            self.matrix.note("eager", "plan", LOST, "ProgramError with both nodes", "the whole schedule runs")

    def refusals(self) -> None:
        """A budget that is too small, a driver that fails, a device that has failed, and one that is another."""
        with machine(Saboteur()) as fake:
            self.build().close()
            if self.here.program.activities:
                said = self.named(self.refused(fake, budget=1), CapacityError, None, "budget=1")
                self.matrix.note("eager", "plan", MEMORY, said, ANEW)
        for error, fault in ((None, DRIVER), (DriverError(ILLEGAL, sticky=True), STICKY)):
            fake = Saboteur()
            fake.fail_at("resource", 1, error)
            with machine(fake):
                told = self.attempt(self.build)
                if fault == STICKY:
                    self.named(told, DriverError, None, ILLEGAL)
                    said = self.named(self.attempt(self.build), PoisonedError, None, "again")
                    self.matrix.note("eager", "plan", fault, said, RESTART)
                    continue
                said = f"{self.named(told, DriverError, None, 'resource failed')} with the call"
                with self.build() as run:
                    self.verify(run, fake)
                self.matrix.note("eager", "plan", fault, said, ANEW)
        for options in ({"sms": 124}, {"minimum": 16, "alignment": 16}):
            with machine(Saboteur(**options)) as fake:
                said = self.named(self.attempt(self.build), BackendError, None, "plan again")
            self.replanned("plan", said)
        used = {step.stream for step in self.here.program.instructions}
        lent = [stream for stream in self.here.program.streams if stream.name in used]
        groups = {stream.group.name: stream.group for stream in lent if stream.group and stream.group.units}
        for group in groups.values():
            assert group.units
            wrong = [8] * 16
            wrong[group.units[0]] = 16
            for options, granted in (({"grants": wrong}, None), ({}, group.sms + 8)):
                with machine(Saboteur(**options)) as fake:
                    fake.grant = granted
                    told = self.attempt(self.build)
                    said = self.named(told, BackendError, None, "group '", "grants it", "plan again")
                self.replanned("allocate", f"{said} with the group")

    def replanned(self, phase: str, said: str) -> None:
        """On a GPU that grants what was planned for it all is well."""
        with machine(Saboteur()) as fake, self.build() as run:
            self.verify(run, fake)
        self.matrix.note("eager", phase, GRANT, said, "planned again, gives the right values")


@dataclass
class Cpu(Trial):
    """References that fail on worker threads, and a host that has no memory or threads left."""

    def all(self) -> None:
        self.allocating()
        self.running()

    def build(self) -> nr.Executor:
        return executor(self.here.program, self.ours, backend="cpu")

    def note(self, phase: str, fault: str, said: str, then: str) -> None:
        self.matrix.note("cpu", phase, fault, said, then)

    def allocating(self) -> None:
        """No thread can be started for a stream; there is no memory for the buffers of joins."""
        used = {step.stream for step in self.here.program.instructions}
        for nth in range(1, len(used) + 1) if len(used) > 1 else ():
            before = held()
            with pytest.MonkeyPatch.context() as patch:
                start = failing_at(nth, threading.Thread.start, "can't start new thread")
                patch.setattr(threading.Thread, "start", start)
                told = self.attempt(self.build)
            said = self.named(told, BackendError, None, "can't start new thread", "stream")
            assert held() == before
            with self.build() as run:
                self.verify(run)
            self.note("allocate", EXCEPTION, f"{said} with the stream", ANEW)
        made = [buffer for buffer in self.here.program.buffers if buffer.kind in ("join", "empty")]
        for nth, buffer in enumerate(made, 1):
            before = held()
            with self.build() as run:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(torch, "empty", failing_at(nth, torch.empty, f"DefaultCPUAllocator: {NO_MEMORY}"))
                    told = self.failed(run)
                said = self.named(told, DeviceMemoryError, None, NO_MEMORY, buffer.name, f"{buffer.nbytes:,} bytes")
                self.verify(run)
            assert held() == before
            self.note("allocate", MEMORY, f"{said} with bytes and the value", RIGHT)

    def running(self) -> None:
        """Inputs that are wrong or missing; every node raises, finds no memory, or gives what is no tensor."""
        before, graph = held(), self.here.schedule.graph
        with self.build() as run:
            watched = Watched(run)
            threads = held()
            for root in [root for root in graph.roots if root.kind == "input"]:
                wrong = {**self.given, root.name: torch.zeros(*root.shape, 1, dtype=root.dtype)}
                less = {name: tensor for name, tensor in self.given.items() if name != root.name}
                for given, kind in ((wrong, InputShapeError), (less, MissingInputError)):
                    if given:
                        told = self.failed(run, given)
                        assert told.kind == kind.__name__
                        assert root.name in told.text
                        self.verify(run)
                        self.note("stage", EXCEPTION, f"{kind.__name__} with the input", RIGHT)
            for index, step in enumerate(self.steps):
                phase = "copy" if isinstance(step, Copy) else "run"
                tried: list[tuple[str, str, Exception | None]] = [
                    (phase, EXCEPTION, Broken("it is negative")),
                    (phase, MEMORY, RuntimeError(f"DefaultCPUAllocator: {NO_MEMORY}")),
                ]
                if isinstance(step, Copy) or step.outs:
                    tried.append(("finish", EXCEPTION, None))
                for where, fault, error in tried:
                    watched.results.clear()
                    watched.fails = index, error
                    told = self.failed(run)
                    said = self.named(told, ExecutionError, index, str(error) if error else "object")
                    assert run.timeline.failure.startswith(f"{step.name}: ")
                    first = [*watched.results]
                    watched.fails = -1, None
                    self.verify(run)
                    forget(error)
                    assert not any(result() is not None for result in first), "results of the run that failed are left"
                    assert held() == threads
                    self.note(where, fault, said, RIGHT)
        assert held() == before


class Watched:
    """The steps of an executor on the cpu, one of which fails; ``results`` are those that it made."""

    def __init__(self, run: nr.Executor) -> None:
        self.fails: tuple[int, Exception | None] = (-1, None)
        self.results: list[weakref.ref[torch.Tensor]] = []
        backend: Any = run._backend
        for queue in backend.queues.values():
            for at, item in enumerate(queue):
                if not isinstance(item, (Record, Wait)):
                    queue[at] = replace(item, call=partial(self.call, item.index, item.call))

    def call(self, index: int, reference: Callable[..., Any], *args: Any) -> Any:
        """What the reference gives, unless it is to fail."""
        wrong, error = self.fails
        if index == wrong:
            if error:
                raise error
            return object()
        results = reference(*args)
        for result in results if isinstance(results, (tuple, list)) else (results,):
            if result is not None:
                self.results.append(weakref.ref(result))
        return results


def failing_at(nth: int, function: Callable[..., Any], why: str) -> Callable[..., Any]:
    """``function``, whose ``nth`` call raises."""
    left = [nth]

    def call(*args: Any, **given: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise RuntimeError(why)
        return function(*args, **given)

    return call
