"""RunRecord: what a run really did, stream by stream: launches, copies, waits, and the bytes that they touched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, partial

import torch

from nanort.programs.accesses import APART, Accesses, Indexed, Row, ranges, shown, stated
from nanort.programs.hazards import RACES, UNWRITTEN, Course, Hazard, judged, order
from nanort.programs.program import Buffer, Copy, Launch, Program, Record, Wait


@dataclass(frozen=True, slots=True)
class Touch:
    """Bytes of a buffer, counted from its beginning, that a step read or wrote."""

    buffer: int
    low: int
    high: int
    writes: bool


@dataclass(frozen=True, slots=True)
class Around:
    """What a run does besides its program: the caller's work before and after it, the inputs that it copies."""

    name: str
    stream: str
    node: int = -1
    where: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """A step that was carried out.

    Attributes:
        step: an instruction of the program, or what is around it.
        touched: the bytes that it touched, reads first.
        found: what is wrong with it by itself.
    """

    step: Launch | Copy | Around | Record | Wait
    touched: tuple[Touch, ...] = ()
    found: tuple[Hazard, ...] = ()


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a buffer lay: which memory, from which byte on, and the first buffer whose bytes are among its own."""

    space: int
    start: int
    same: int


@dataclass(frozen=True, slots=True, repr=False)
class RunRecord:
    """One run as it happened; prints as its steps, one a line.

    Attributes:
        program: what was to be run.
        steps: what was done, in an order that streams and waits allow.
        spots: by buffer, where it lay; one more for the memory of the run itself.
        ended: whether all was carried out, or a failure ended it before.
    """

    program: Program
    steps: tuple[Done, ...]
    spots: tuple[Spot, ...]
    ended: bool

    def __str__(self) -> str:
        """One line a step, with the bytes that it touched."""
        length = f"{len(self.steps)} steps{'' if self.ended else ', until it failed'}"
        return "\n".join([f"a run of {self.program.name}: {length}", *map(self._line, self.steps)])

    __repr__ = __str__

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """Those of the program, and one that stands for the run's memory as a whole."""
        whole = Buffer(len(self.program.buffers), -1, "the memory of the run", "input", (1,), torch.uint8, "device")
        return (*self.program.buffers, whole)

    def hazards(self) -> tuple[Hazard, ...]:
        """What of this run was left to chance, or was other than its program says: nothing, if all is well."""
        from nanort.programs.audit import breaches, skipped

        return (*breaches(self), *map(self._with_maker, judged(self.course())), *skipped(self))

    def course(self) -> Course:
        """The run for the checker that judges programs: bytes as they were touched, cells as they were declared."""
        places = [(APART + spot.space, spot.start) for spot in self.spots]
        states, seen = Indexed.of(self.program), cache(ranges)
        rows = list[Row]()
        for at, done in enumerate(self.steps):
            mine = [
                (at, *self._place(touch), int(touch.writes), self.spots[touch.buffer].same)
                for touch in done.touched
                if touch.buffer not in states.above
            ]
            if isinstance(done.step, (Launch, Copy)):
                said = stated(at, done.step, self.program.buffers, places, states, seen)
                mine += [row for row in said if row[-1] in states.above]
            rows += sorted(mine, key=lambda row: row[4])
        steps = [done.step for done in self.steps]
        outputs = list(shown(self.program, places)) if self.ended else []
        return Course(steps, self.buffers, Accesses.of(rows, places), outputs)

    def _with_maker(self, hazard: Hazard) -> Hazard:
        """Says of what nobody had written who should have: in a run it may have come later, or not any more."""
        reader = next((done.step for done in self.steps if getattr(done.step, "name", "") == hazard.second), None)
        if hazard.kind != UNWRITTEN or reader is None or isinstance(reader, (Record, Wait)):
            return hazard
        low, high = hazard.span
        for step in self.program.instructions:
            for view in step.outs if isinstance(step, Launch) else (step.target,) if isinstance(step, Copy) else ():
                buffer = self.program.buffers[view.buffer]
                spans = ranges(view, buffer.dtype.itemsize) if buffer.name == hazard.buffer else ()
                if isinstance(step, (Launch, Copy)) and any(max(low, a) < min(high, b) for a, b in spans):
                    where = (step.where, reader.where)
                    return replace(hazard, kind=RACES[0], first=step.name, missing=order(step, reader), where=where)
        return hazard

    def _place(self, touch: Touch) -> tuple[int, int, int]:
        spot = self.spots[touch.buffer]
        return APART + spot.space, spot.start + touch.low, spot.start + touch.high

    def _line(self, done: Done) -> str:
        step = done.step
        if isinstance(step, Record):
            return f"  {step.stream:8} record e{step.event}"
        if isinstance(step, Wait):
            return f"  {step.stream:8} wait   e{step.event}"
        what = "launch" if isinstance(step, Launch) else "copy  " if isinstance(step, Copy) else "      "
        return f"  {step.stream:8} {what} {step.name}{''.join(map(partial(str.format, '; {}'), self._said(done)))}"

    def _said(self, done: Done) -> Iterator[str]:
        """``reads x[0:64], y[0:4]``, ``writes ...``."""
        for verb, writes in (("reads", False), ("writes", True)):
            if named := [
                f"{self.program.buffers[touch.buffer].name}[{touch.low}:{touch.high}]"
                for touch in done.touched
                if touch.writes == writes and touch.buffer < len(self.program.buffers)
            ]:
                yield f"{verb} {', '.join(named)}"
