"""hazards: what streams and waits leave to chance, or find overwritten, in a program or in the record of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nanort.errors import ProgramError
from nanort.programs.accesses import Accesses, accesses, places, shown
from nanort.programs.clocks import Steps, conflicts
from nanort.programs.memory import PLANNED, MemoryPlan
from nanort.programs.program import Buffer, Program, Record, Wait

SPACE_BITS = 42
"""Ranges are sorted by space and then by place, as one number; a space holds up to four terabytes."""

RACES = ("read-after-write", "write-after-read", "write-after-write")
UNWRITTEN, OVERWRITTEN = "unwritten", "overwritten"
KINDS = (*RACES, UNWRITTEN, OVERWRITTEN)

SAYS = {
    "read-after-write": "{second} may read {what} before {first} has written it",
    "write-after-read": "{second} may write {what} before {first} has read it",
    "write-after-write": "{second} may write {what} before {first} has",
    "unwritten": "{second} reads {what} before anything has written it",
    "overwritten": "{second} reads {what} after {first} has written other contents to its bytes",
    # What only a record can show:
    "undeclared read": "{second} reads {what}, which it does not declare, and {first} writes it",
    "undeclared write": "{second} writes {what}, which it does not declare, and {first} touches it",
    "shared": "{second} and {first} touch {what}, and one of them writes it: make it a state",
    "aliased": "{second} returns {what}, of {first}, in place of a fresh tensor",
    "repeated": "two rows of {second} write {what}",
    "crossed": "{second} writes {what}, and so does {first}, though they declare different cells",
    "skipped": "{second} comes where the program has {first}",
}


@dataclass(frozen=True, slots=True)
class Hazard:
    """Two steps of which the one may spoil what the other reads or writes; prints as one sentence.

    Attributes:
        kind: one of KINDS; in the record of a run also another one of SAYS.
        buffer: the name of the one whose contents are spoilt.
        first, second: nodes, the first of which has to come first; "" where there is none.
        missing: what would order them, or what else to do, "" where nothing would.
        where: the users' lines that made them.
        span: which part of the buffer: the first and the last one left out.
        unit: what ``span`` counts, "bytes" or "cells".
    """

    kind: str
    buffer: str
    first: str
    second: str
    missing: str
    where: tuple[str, ...]
    span: tuple[int, int] = (0, 0)
    unit: str = "bytes"

    def __str__(self) -> str:
        low, high = self.span
        what = f"{self.unit} {low}:{high} of {self.buffer!r}" if high > low else repr(self.buffer)
        saying = SAYS[self.kind] if self.first else SAYS[self.kind].partition(", and {first}")[0]
        said = saying.format(first=self.first, second=self.second, what=what)
        lines = " and ".join(line for line in self.where if line)
        return f"{self.kind}: {said}" + (f": {self.missing}" if self.missing else "") + (f" ({lines})" if lines else "")


class Act(Protocol):
    """What touches memory: a launch, a copy, or in the record of a run what surrounds them."""

    @property
    def node(self) -> int:
        """Its place in the graph."""
        ...

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def stream(self) -> str:
        """Where it was queued."""
        ...

    @property
    def where(self) -> str:
        """The user's line that made it."""
        ...


@dataclass(frozen=True, slots=True)
class Course:
    """What steps do to memory, as it is planned or as it happened.

    Attributes:
        steps: acts, records and waits, in an order in which they may happen.
        buffers: what they touch.
        touched: which parts of them.
        shown: what is read when all is over, as :func:`nanort.programs.accesses.shown` has it.
    """

    steps: Sequence[Act | Record | Wait]
    buffers: Sequence[Buffer]
    touched: Accesses
    shown: Sequence[tuple[str, int, int, int, int]]


def hazards(program: Program, memory: MemoryPlan | None = None) -> tuple[Hazard, ...]:
    """What in ``program`` is left to chance; an empty tuple proves that every run gives the same outputs.

    Args:
        program: judged as it stands, whoever made it.
        memory: where its buffers lie, so that what shares bytes is judged too.
    """
    outputs = list(shown(program, places(program, memory)))
    return judged(Course(program.instructions, program.buffers, accesses(program, memory), outputs))


def judged(course: Course) -> tuple[Hazard, ...]:
    """What in a course of steps is left to chance.

    Steps are ordered by their stream and by waits for recorded events, and by nothing else, least of all by time. Two
    that touch the same bytes, one of them to write, must be ordered, and as their nodes are in the graph where they
    mean the same buffer. What is read must have been written last for the buffer that is meant. By vector clocks.
    """
    touched, outputs = course.touched, course.shown
    low = np.array([(space << SPACE_BITS) + low for _, space, low, _, _ in outputs], np.int64)
    high = np.array([(space << SPACE_BITS) + high for _, space, _, high, _ in outputs], np.int64)
    low = np.concatenate([(touched.space << SPACE_BITS) + touched.low, low])
    high = np.concatenate([(touched.space << SPACE_BITS) + touched.high, high])
    atoms = np.unique(np.concatenate([low, high]))
    first, last = (np.searchsorted(atoms, end).astype(np.int64) for end in (low, high))
    count = len(touched.step)
    owners = np.full(len(atoms), -1, np.int64)
    bound = np.array([buffer.kind not in PLANNED for buffer in course.buffers], bool)
    buffers = np.concatenate([touched.buffer, np.array([buffer for *_, buffer in outputs], np.int64)])
    for at in np.flatnonzero(bound[buffers]).tolist():
        owners[first[at] : last[at]] = buffers[at]
    found = conflicts(Steps.of(course.steps, touched.step), first, last, touched.writes, touched.buffer, owners)
    told = [*_told(course, found, atoms.tolist())]
    for at, (name, *_, buffer) in enumerate(outputs, count):
        spoilt = owners[first[at] : last[at]]
        if (spoilt != buffer).any():
            kind = UNWRITTEN if (spoilt[spoilt != buffer] == -1).any() else OVERWRITTEN
            told.append(_of_output(course, name, buffer, kind))
    return tuple(dict.fromkeys(told))


def refuse_hazards(program: Program, memory: MemoryPlan | None = None) -> None:
    """Raises ProgramError, with the first of them, if there are any."""
    if found := hazards(program, memory):
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise ProgramError(f"program {program.name} is racy: {found[0]}{more}")


def _told(course: Course, found: Sequence[Sequence[int]], atoms: Sequence[int]) -> Iterator[Hazard]:
    """A hazard for all rows that differ in nothing but the bytes, which are told as one range."""
    spans: dict[tuple[int, ...], list[int]] = {}
    for *row, atom in found:
        spans.setdefault((*row, atoms[atom] >> SPACE_BITS), []).append(atom)
    for (number, earlier, later, buffer, owner, space), there in spans.items():
        unit = "cells" if space >= course.touched.cells else "bytes"
        start = (space << SPACE_BITS) + (course.touched.starts[buffer] if unit == "bytes" else 0)
        span = atoms[min(there)] - start, atoms[max(there) + 1] - start
        yield _hazard(course, KINDS[number], [earlier, later], buffer, owner, span, unit)


def _hazard(
    course: Course, kind: str, pair: Sequence[int], buffer: int, owner: int, span: tuple[int, int], unit: str
) -> Hazard:
    steps = [course.steps[at] for at in pair if at >= 0]
    nodes = [step for step in steps if not isinstance(step, (Record, Wait))]
    if kind in RACES and owner == buffer and nodes[0].node > nodes[1].node:
        nodes.reverse()  # as the graph has them
        kind = {RACES[0]: RACES[1], RACES[1]: RACES[0]}.get(kind, kind)
    missing = ""
    if kind in RACES:
        missing = order(*nodes)
    before = nodes[0].name if len(nodes) > 1 else ""
    where = tuple(step.where for step in nodes)
    return Hazard(kind, course.buffers[buffer].name, before, nodes[-1].name, missing, where, span, unit)


def order(first: Act, second: Act) -> str:
    """What would put two steps in order."""
    if first.stream == second.stream:
        return f"{first.name} has to be launched first"
    return f"{second.stream} has to wait for {first.name} on {first.stream}"


def _of_output(course: Course, name: str, buffer: int, kind: str) -> Hazard:
    """An output that is not there when a run has ended."""
    return Hazard(kind, course.buffers[buffer].name, "another node", f"whoever takes output {name!r}", "", ())
