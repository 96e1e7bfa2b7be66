"""CpuRecorder: what each stream of the cpu backend really did, noted by what it is made of and not by its plan."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from nanort.errors import RecordError
from nanort.programs.accesses import ranges
from nanort.programs.program import Copy, Launch, Program, Record, View, Wait
from nanort.programs.record import Done, RunRecord, Touch
from nanort.runtime.observer import Observer, address
from nanort.runtime.sightings import Sightings
from nanort.runtime.steps import Env, Step


class Happening(Protocol):
    """What a stream waits for, and another one tells: a lock that is held until then."""

    def acquire(self) -> bool:
        """Returns once it has happened."""
        ...

    def release(self) -> None:
        """Says that it has."""
        ...


class CpuRecorder:
    """Takes part in every run of a program: its steps are watched, its events tell who waits for them.

    Attributes:
        last: the last run; None before its end.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.last: RunRecord | None = None
        self._here = threading.local()
        self._log: list[list[Done]] = []  # each the one that stands there now
        self._seen = Sightings(program)
        self._watches: dict[int, Observer] = {}
        self._begun: dict[int, list[Done]] = {}

    def enter(self, stream: str) -> None:
        """Says on which stream the calling thread works."""
        self._here.stream = stream

    def begin(self, env: Env) -> None:
        """Forgets the last run; ``env`` has the tensors of the next one."""
        self.last, self._log, self._seen, self._watches, self._begun = None, [], Sightings(self.program), {}, {}
        for buffer in self.program.buffers:
            if env[buffer.index] is not None:
                self._seen.place(buffer.index, env[buffer.index])

    def event(self, number: int) -> Happening:
        """An event that has not happened, and that notes who tells and who waits."""
        return _Noted(self, number)

    def watched(self, step: Step, made: Launch | Copy) -> Step:
        """A step that does the same, watched."""
        outs = made.outs if isinstance(made, Launch) else (made.target,)

        def call(*args: Any) -> Any:
            begun = Done(replace(made, stream=self._here.stream), self._seen.given(made))  # until it has ended
            self._begun[made.node] = self.note(begun)
            observer = Observer([address(argument) for argument in args if isinstance(argument, torch.Tensor)])
            with observer:
                result = step.call(*args)
                if step.store is None:
                    result = result.contiguous()  # a view is read only now
            self._watches[made.node] = observer
            return result

        def store(env: Env, result: Any) -> None:
            if step.store is None:
                env[step.slot] = result
            else:
                with self._watches[made.node]:
                    step.store(env, result)
            self._finish(made, outs, env)

        return replace(step, call=call, slot=-1, store=store)

    def note(self, done: Done) -> list[Done]:
        """Adds to what happened: called before others can know, and after waiting for others."""
        self._log.append(place := [done])
        return place

    def end(self, *, ended: bool) -> RunRecord:
        """The run, which has ended or failed; lets go of its values."""
        self.last = self._seen.record([done for (done,) in self._log], ended)
        self._log, self._seen, self._watches, self._begun = [], Sightings(self.program), {}, {}
        return self.last

    def _finish(self, step: Launch | Copy, outs: Sequence[View], env: Env) -> None:
        observer = self._watches.pop(step.node)
        buffers = self.program.buffers
        done = self._seen.seen(step, observer) if isinstance(step, Launch) else Done(step, self._seen.given(step))
        found = [*done.found]
        for view in outs:
            if buffers[view.buffer].kind == "result":
                found += self._seen.adopt(step, view.buffer, env[view.buffer])
        written = [
            Touch(view.buffer, low, high, True)
            for view in (outs if isinstance(step, Launch) else ())
            for low, high in ranges(view, buffers[view.buffer].dtype.itemsize)
        ]
        (begun,) = place = self._begun[step.node]
        place[0] = replace(begun, touched=(*done.touched, *written), found=tuple(found))


class _Noted:
    """An event of the cpu backend: whoever goes through it is noted."""

    def __init__(self, recorder: CpuRecorder, number: int) -> None:
        self._recorder, self._number = recorder, number
        self._lock = threading.Lock()
        self._lock.acquire()
        self._passing: set[int] = set()

    def acquire(self) -> bool:
        """Waits, and is noted afterwards."""
        self._lock.acquire()
        self._passing.add(threading.get_ident())
        self._recorder.note(Done(Wait(self._recorder._here.stream, self._number, "")))
        return True

    def release(self) -> None:
        """Tells, and is noted before; whoever has waited lets the next one through, which is nothing to note."""
        if threading.get_ident() in self._passing:
            self._passing.remove(threading.get_ident())
        else:
            self._recorder.note(Done(Record(self._recorder._here.stream, self._number)))
        self._lock.release()


def refuse(record: RunRecord, failure: Exception | None = None) -> None:
    """Raises RecordError, with the first thing that is wrong with a run, if anything is; ``failure`` came of it."""
    if found := record.hazards():
        more = f", and {len(found) - 1} more: see record.hazards()" if len(found) > 1 else ""
        node = found[0].second
        steps = (step for step in record.program.instructions if isinstance(step, (Launch, Copy)))
        where = next((step.where for step in steps if step.name == node), "")
        raise RecordError(
            f"a run of {record.program.name} was other than its program says: {found[0]}{more}", node=node, where=where
        ) from failure
