"""CudaRecorder: what the cuda backend really asked of the driver, and which bytes its launches touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch

from nanort.costs.roofline import REFERENCE
from nanort.driver import Driver
from nanort.programs.program import Copy, Launch, Program, Record, View, Wait
from nanort.programs.record import Around, Done, RunRecord, Touch
from nanort.runtime.buffers import Buffers
from nanort.runtime.kernels import Call
from nanort.runtime.observer import Observer
from nanort.runtime.queues import Handles, steps_of
from nanort.runtime.sightings import Sightings

CALLER = "caller"
"""The stream of the torch code that calls an executor."""


class CudaRecorder:
    """Stands between a backend and its driver, notes every call that orders or queues something, and hands it on.

    References are observed while they are queued or captured; kernels and copies touch the tensors that they were
    given. Integers that a launch which changes something was given are kept, run by run, for what they index.

    Attributes:
        driver: the driver to use in place of the real one.
    """

    def __init__(
        self, program: Program, driver: Driver, handles: Handles, buffers: Buffers, device: torch.device
    ) -> None:
        self.driver = cast(Driver, _Recorded(driver, self))
        self.program, self._real, self._device = program, driver, device
        self._steps = tuple(steps_of(program))
        self._streams = {0: CALLER} | {handle: name for name, handle in handles.streams.items()}
        self._events = {handle: number for number, handle in enumerate(handles.events)}
        self._marks = {*handles.marks.began, *handles.marks.starts, *handles.marks.stops}  # nobody waits for these
        self._tensors = buffers.slots
        self._places = [Sightings.of(program, tensors) for tensors in buffers.slots]
        self._whole = len(program.buffers)  # the index of the run's own memory
        self._kept: dict[tuple[int, int], dict[int, torch.Tensor]] = {}
        self._observed: dict[tuple[int, int], Observer] = {}
        self._graphs: dict[int, list[Done]] = {}
        self._outer: list[Done] = []
        self._at: tuple[int, int] | None = None  # slot and activity of the call that is being made
        self._slot, self._log = 0, list[Done]()
        self._done: RunRecord | None = None

    def begin(self, slot: int) -> None:
        """A new run, after all that the caller has queued."""
        self._slot, self._done = slot, None
        self._log = [Done(Around("whatever came before", CALLER), (Touch(self._whole, 0, 1, True),))]

    def end(self) -> RunRecord:
        """The run, which has ended: what the caller does next comes after it."""
        after = Around("whatever comes next", CALLER, len(self.program.graph.nodes))
        self._log.append(Done(after, (Touch(self._whole, 0, 1, True),)))
        self._done = self._record(ended=True)
        return self._done

    def record(self) -> RunRecord | None:
        """The last run, as far as it came."""
        return self._done or (self._record(ended=False) if self._log else None)

    def close(self) -> None:
        """Lets go of tensors; what was recorded stays."""
        self._done = self.record()
        self._tensors, self._places, self._kept, self._observed, self._log = ({}, {}), [], {}, {}, []

    def watched(self, work: Sequence[Sequence[Call]], slot: int) -> list[list[Call]]:
        """The calls of all activities, each of which says whose it is; and others that keep what indexes something."""
        found = []
        for index, (step, calls) in enumerate(zip(self._steps, work, strict=True)):
            mine: list[Call] = [partial(self._during, (slot, index), call) for call in calls]
            if isinstance(step, Launch) and (kept := self._indices(step, slot)):
                self._kept[slot, index] = {at: copy for at, (copy, _) in kept.items()}
                handle = next(h for h, name in self._streams.items() if name == step.stream)
                mine.append(partial(self._real.launch, handle, partial(_keep, tuple(kept.values()))))
            found.append(mine)
        return found

    def _indices(self, step: Launch, slot: int) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """By argument of a launch that changes something: room for a copy of its integers, and they themselves."""
        views = {at: v.of(self._tensors[slot][v.buffer]) for at, v in enumerate(step.args) if isinstance(v, View)}
        whole = (at for at, view in views.items() if step.op.writes and _is_index(view) and at not in step.op.writes)
        return {at: (torch.empty_like(views[at], device=self._device), views[at]) for at in whole}

    # What the driver is asked.

    def _during(self, at: tuple[int, int], call: Call) -> None:
        self._at = at
        try:
            call()
        finally:
            self._at = None

    def observing(self, call: Call) -> Call:
        """The same launch, observed where it is a reference's."""
        at = self._at
        if at is None or not isinstance(step := self._steps[at[1]], Launch) or step.kernel != REFERENCE:
            return call

        def watched() -> None:
            observer = Observer(self._places[at[0]].memories, values=False)
            with observer:
                call()
            self._observed[at] = observer

        return watched

    def launched(self, stream: int) -> None:
        """Notes a launch."""
        if self._at is not None:
            step = self._steps[self._at[1]]
            self._log.append(Done(replace(step, stream=self._streams[stream]), (Touch(self._whole, 0, 1, False),)))

    def copied(self, stream: int, target: torch.Tensor, source: torch.Tensor) -> None:
        """Notes a copy, or one more piece of it."""
        seen = self._places[self._slot if self._at is None else self._at[0]]
        name = self._streams[stream]
        if self._at is None:
            step: Copy | Around = Around("the copies of its inputs", name)
            mine: frozenset[int] = frozenset()
        else:
            copy = cast(Copy, self._steps[self._at[1]])
            step, mine = replace(copy, stream=name), frozenset((copy.source.buffer, copy.target.buffer))
        read = tuple(seen.of_tensor(source, mine, False))
        touched = (*read, *seen.of_tensor(target, mine, True))
        if self._at is None:  # what is read there, such as an output of an earlier run, came before
            before = self._log[0]
            self._log[0] = replace(before, touched=(*before.touched, *(replace(t, writes=True) for t in read)))
        if self._log and self._log[-1].step == step:
            last = self._log.pop()
            self._log.append(replace(last, touched=(*last.touched, *touched)))
        else:
            self._log.append(Done(step, (Touch(self._whole, 0, 1, False), *touched)))

    def noted(self, kind: Callable[..., Record | Wait], stream: int, event: int, *reason: str) -> None:
        """Notes a record or a wait; events that are not the program's have numbers below zero."""
        if event not in self._marks:
            number = self._events.get(event, -1 - event)
            self._log.append(Done(kind(self._streams[stream], number, *reason)))

    def begin_capture(self) -> None:
        """What is noted from now on happens at every replay."""
        self._outer, self._log = self._log, []

    def end_capture(self) -> list[Done]:
        """What was noted since then; the run goes on."""
        captured, self._log, self._outer = self._log, self._outer, []
        return captured

    def captured(self, graph: int, log: list[Done]) -> None:
        """Keeps what a graph does."""
        self._graphs[graph] = log

    def replayed(self, graph: int) -> None:
        """Notes all that a graph does."""
        self._log += self._graphs[graph]

    # What comes of it.

    def _record(self, *, ended: bool) -> RunRecord:
        seen = Sightings.of(self.program, self._tensors[self._slot])
        indices = {step.node: index for index, step in enumerate(self._steps)}
        steps = [
            self._filled(seen, done, indices[done.step.node], ended) if isinstance(done.step, Launch) else done
            for done in self._log
        ]
        return seen.record(steps, ended)

    def _filled(self, seen: Sightings, done: Done, index: int, ended: bool) -> Done:
        """A launch with what it touched; what it wrote through an index, row by row, once nothing runs any more."""
        step, at = cast(Launch, done.step), (self._slot, index)
        observed = self._observed.get(at) if step.kernel == REFERENCE else None
        touched = seen.given(step) if observed is None else seen.seen(step, observed).touched
        found = done.found
        if ended and at in self._kept:
            rows = seen.seen(step, self._dry(step, at))
            exact = {touch.buffer for touch in rows.touched if touch.writes}
            touched = (
                *(touch for touch in touched if not touch.writes or touch.buffer not in exact),
                *(touch for touch in rows.touched if touch.writes),
            )
            found = (*found, *rows.found)
        return replace(done, touched=(*done.touched, *touched), found=found)

    def _dry(self, step: Launch, at: tuple[int, int]) -> Observer:
        """Which rows a launch wrote: its reference once more, with the integers of this run, writing nothing."""
        tensors, kept = self._tensors[at[0]], self._kept[at]
        observer = Observer(self._places[at[0]].memories, dry=True)
        with torch.no_grad(), observer:
            step.op.reference(*self._again(step, tensors, kept), **step.static)
        return observer

    def _again(self, step: Launch, tensors: dict[int, torch.Tensor], kept: dict[int, torch.Tensor]) -> Iterator[Any]:
        """Arguments that index as those of the run did; ones stand for what lay between nodes, which is gone by now."""
        for at, argument in enumerate(step.args):
            if not isinstance(argument, View):
                yield argument
            elif at in kept:
                yield kept[at]
            elif at in step.op.writes:
                yield argument.of(tensors[argument.buffer])
            elif self.program.buffers[argument.buffer].kind in ("input", "constant", "state"):
                yield argument.of(tensors[argument.buffer]).to(self._device)
            else:
                dtype = self.program.buffers[argument.buffer].dtype
                yield torch.ones(argument.shape, dtype=dtype, device=self._device)


class _Recorded:
    """A driver whose calls a recorder is told of before they are made."""

    def __init__(self, driver: Driver, recorder: CudaRecorder) -> None:
        self._driver, self._recorder = driver, recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def record(self, event: int, stream: int, *, external: bool = False) -> None:
        self._driver.record(event, stream, external=external)
        self._recorder.noted(Record, stream, event)

    def wait(self, stream: int, event: int) -> None:
        self._driver.wait(stream, event)
        self._recorder.noted(Wait, stream, event, "")

    def launch(self, stream: int, call: Call) -> None:
        self._driver.launch(stream, self._recorder.observing(call))
        self._recorder.launched(stream)

    def copy(self, stream: int, target: torch.Tensor, source: torch.Tensor) -> None:
        self._driver.copy(stream, target, source)
        self._recorder.copied(stream, target, source)

    def begin_capture(self, stream: int) -> None:
        self._driver.begin_capture(stream)
        self._recorder.begin_capture()

    def end_capture(self, stream: int) -> int:
        log = self._recorder.end_capture()
        graph = self._driver.end_capture(stream)
        self._recorder.captured(graph, log)
        return graph

    def launch_graph(self, graph: int, stream: int) -> None:
        self._driver.launch_graph(graph, stream)
        self._recorder.replayed(graph)


def _is_index(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex()


def _keep(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for copy, integers in pairs:
        copy.copy_(integers, non_blocking=True)
