"""Queues: a program as calls of the driver without arguments, on streams and with events that are made once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch

from nanort.driver import Driver
from nanort.partition import WHOLE, Stream, whole
from nanort.programs.program import Copy, Launch, Program, Record, Wait
from nanort.runtime import kernels
from nanort.runtime.buffers import SLOTS, Buffers
from nanort.runtime.faults import failure, naming
from nanort.runtime.kernels import Call
from nanort.runtime.marks import Marks, Run, events
from nanort.runtime.partitions import Partitions


@dataclass(frozen=True, slots=True)
class Handles:
    """The streams and events of a program, used again by every run.

    Attributes:
        streams: by name, those that are used, the main one first.
        events: what the program records.
        arrived: what the caller queued before a run.
        fork: the inputs are there.
        ends: all that each stream but the main one was given.
        joined: the end of the runs of each slot.
        marks: what of a run has ended, and when.
    """

    streams: dict[str, int]
    events: tuple[int, ...]
    arrived: int
    fork: int
    ends: tuple[int, ...]
    joined: tuple[int, ...]
    marks: Marks

    @property
    def main(self) -> int:
        """The stream that all others fork from and join."""
        return next(iter(self.streams.values()))

    @property
    def others(self) -> tuple[int, ...]:
        """All streams but the main one."""
        return tuple(self.streams.values())[1:]


def handles(program: Program, driver: Driver, partitions: Partitions, held: ExitStack, marks: Marks) -> Handles:
    """Streams and events for ``program``, which ``held`` gives back."""

    def stream(asked: Stream) -> int:
        handle = partitions.stream(asked)
        held.callback(partitions.release, (handle,))
        return handle

    used = {instruction.stream for instruction in program.instructions}
    main, *rest = program.streams or (Stream(WHOLE, whole(program.device)),)
    streams = {asked.name: stream(asked) for asked in (main, *(other for other in rest if other.name in used))}
    arrived, fork = events(driver, held, 2)
    ends, joined = events(driver, held, len(streams) - 1), events(driver, held, len(SLOTS))
    return Handles(streams, events(driver, held, program.events), arrived, fork, ends, joined, marks)


NEXT, NOBODY = -1, -2
"""What a call is made for where it is no part of an activity: the one that comes next, or none."""


@dataclass(frozen=True, slots=True)
class Queue:
    """Calls that queue a run of ``program``, and the activity that each is of: NEXT, NOBODY, or its index."""

    program: Program
    steps: tuple[Launch | Copy, ...]
    calls: tuple[Call, ...]
    owners: tuple[int, ...]

    def carry_out(self, run: Run) -> None:
        """Makes all calls in order; ``run`` is told how far they came.

        Raises:
            ExecutionError: one failed; it names the node, and the driver's call if that failed.
        """
        at = 0
        try:
            for call in self.calls:  # this loop is what a node costs the host
                call()
                at += 1
        except BaseException as error:
            owner = self.owners[at]
            run.queued = owner if owner >= 0 else max((-1, *self.owners[:at])) + 1
            run.begun = max(run.queued, owner + 1)
            if owner == NOBODY or not isinstance(error, Exception):
                raise
            raise failure(self.program, self.steps[owner if owner >= 0 else run.queued], error) from error
        run.begun = run.queued = len(self.steps)


def queue(program: Program, driver: Driver, handles: Handles, work: Sequence[Sequence[Call]], captured: bool) -> Queue:
    """The calls from the fork to the join: the program's instructions, ``work`` for each activity, and their marks.

    What is ``captured`` records marks that happen at every replay.
    """
    calls: list[Call] = []
    owners: list[int] = []

    def put(call: Call, owner: int = NOBODY) -> None:
        calls.append(call)
        owners.append(owner)

    main, others, marks = handles.main, handles.others, handles.marks
    for event in marks.began if captured else ():
        put(partial(driver.record, event, main, external=True))
    if others:
        put(partial(driver.record, handles.fork, main))
    for other in others:
        put(partial(driver.wait, other, handles.fork))
    index = 0
    for instruction in program.instructions:
        stream = handles.streams[instruction.stream]
        if isinstance(instruction, Record):
            put(partial(driver.record, handles.events[instruction.event], stream), index - 1)
        elif isinstance(instruction, Wait):
            put(partial(driver.wait, stream, handles.events[instruction.event]), NEXT)
        else:
            if marks.starts:
                put(partial(driver.record, marks.starts[index], stream, external=captured), NEXT)
            for call in work[index]:
                put(call, index)
            if marks.stops:
                put(partial(driver.record, marks.stops[index], stream, external=captured), index)
            index += 1
    for call in joining(driver, handles):
        put(call)
    return Queue(program, tuple(steps_of(program)), tuple(calls), tuple(owners))


def joining(driver: Driver, handles: Handles) -> Iterator[Call]:
    """Calls that make the main stream wait for all others."""
    for other, end in zip(handles.others, handles.ends, strict=True):
        yield partial(driver.record, end, other)
        yield partial(driver.wait, handles.main, end)


def work(
    program: Program, driver: Driver, handles: Handles, buffers: Buffers, slot: int, device: torch.device
) -> list[list[Call]]:
    """For every activity the calls that queue it, on the tensors of ``slot``; see :mod:`nanort.runtime.kernels`."""
    tensors, found = buffers.slots[slot], list[list[Call]]()
    for step in steps_of(program):
        stream = handles.streams[step.stream]
        if isinstance(step, Launch):
            with naming(program, step):
                call = kernels.launch(program, step, tensors, buffers.scratch.get(step.stream), device)
            found.append([partial(driver.launch, stream, call)])
        else:
            found.append([partial(driver.copy, stream, *pair) for pair in kernels.pieces(step, tensors)])
    return found


def steps_of(program: Program) -> Iterator[Launch | Copy]:
    """What a program launches and copies, in the order of its activities."""
    return (step for step in program.instructions if isinstance(step, (Launch, Copy)))
