"""hazards: accesses of a program that its streams and waits leave unordered, or that find others' contents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from nanort.compiled import Ints, Ints2, compiled
from nanort.errors import ProgramError
from nanort.programs.accesses import accesses, shown
from nanort.programs.memory import PLANNED, MemoryPlan
from nanort.programs.program import Copy, Launch, Program, Record, Wait

SPACE_BITS = 42
"""Ranges are sorted by space and then by place, as one number; a space holds up to four terabytes."""

MANY = 1000
"""Hazards that are looked for; a program with so many has one cause for most of them."""

FEW = 4000
"""Accesses up to which a program is judged sooner than numba is imported."""

RACES = ("read-after-write", "write-after-read", "write-after-write")
UNWRITTEN, OVERWRITTEN = "unwritten", "overwritten"
KINDS = (*RACES, UNWRITTEN, OVERWRITTEN)

SAYS = {
    "read-after-write": "{second} may read {buffer} before {first} has written it",
    "write-after-read": "{second} may write {buffer} before {first} has read it",
    "write-after-write": "{second} may write {buffer} before {first} has",
    "unwritten": "{second} reads {buffer} before anything has written it",
    "overwritten": "{second} reads {buffer} after {first} has written other contents to its bytes",
}


@dataclass(frozen=True, slots=True)
class Hazard:
    """Two steps of which the one may spoil what the other reads or writes; prints as one sentence.

    Attributes:
        kind: one of "read-after-write", "write-after-read", "write-after-write", "unwritten", "overwritten".
        buffer: the name of the one whose contents are spoilt.
        first, second: nodes, the first of which has to come first; "" where there is none.
        missing: what would order them, "" where nothing would.
        where: the users' lines that made them.
    """

    kind: str
    buffer: str
    first: str
    second: str
    missing: str
    where: tuple[str, ...]

    def __str__(self) -> str:
        said = SAYS[self.kind].format(first=self.first, second=self.second, buffer=repr(self.buffer))
        lines = " and ".join(line for line in self.where if line)
        return f"{self.kind}: {said}" + (f": {self.missing}" if self.missing else "") + (f" ({lines})" if lines else "")


def hazards(program: Program, memory: MemoryPlan | None = None) -> tuple[Hazard, ...]:
    """What in ``program`` is left to chance; an empty tuple proves that every run gives the same outputs.

    Steps are ordered by their stream and by waits for recorded events, and by nothing else, least of all by time. Two
    that touch the same bytes, one of them to write, must be ordered, and as their nodes are in the graph where they
    mean the same buffer. What is read must have been written last for the buffer that is meant. By vector clocks.

    Args:
        program: judged as it stands, whoever made it.
        memory: where its buffers lie, so that what shares bytes is judged too.
    """
    touched = accesses(program, memory)
    outputs = list(shown(program, memory))
    low = np.array([(space << SPACE_BITS) + low for _, space, low, _, _ in outputs], np.int64)
    high = np.array([(space << SPACE_BITS) + high for _, space, _, high, _ in outputs], np.int64)
    low = np.concatenate([(touched.space << SPACE_BITS) + touched.low, low])
    high = np.concatenate([(touched.space << SPACE_BITS) + touched.high, high])
    atoms = np.unique(np.concatenate([low, high]))
    first, last = (np.searchsorted(atoms, end).astype(np.int64) for end in (low, high))
    count = len(touched.step)
    steps = _Steps.of(program, touched.step)
    owners = np.full(len(atoms), -1, np.int64)
    bound = np.array([buffer.kind not in PLANNED for buffer in program.buffers], bool)
    buffers = np.concatenate([touched.buffer, np.array([buffer for *_, buffer in outputs], np.int64)])
    for at in np.flatnonzero(bound[buffers]).tolist():
        owners[first[at] : last[at]] = buffers[at]
    found = np.zeros((MANY, 5), np.int64)
    clocks, marks, written, reads = (
        np.zeros(shape, np.int64)
        for shape in ((steps.width,) * 2, (steps.marks, steps.width), (5, len(atoms)), (2 * len(atoms), steps.width))
    )
    scan = _in_machine_code() if count > FEW else _scan
    total = scan(
        steps.kinds, steps.lanes, steps.events, steps.nodes, steps.pointers, first, last, touched.writes,
        touched.buffer, owners, clocks, marks, written, reads, found,
    )  # fmt: skip  # what a step is, what it touches, and what is kept
    told = dict.fromkeys(_hazard(program, row) for row in found[:total].tolist())
    for at, (name, *_, buffer) in enumerate(outputs, count):
        spoilt = owners[first[at] : last[at]]
        if (spoilt != buffer).any():
            kind = UNWRITTEN if (spoilt[spoilt != buffer] == -1).any() else OVERWRITTEN
            told[_of_output(program, name, buffer, kind)] = None
    return tuple(told)


def refuse_hazards(program: Program, memory: MemoryPlan | None = None) -> None:
    """Raises ProgramError, with the first of them, if there are any."""
    if found := hazards(program, memory):
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise ProgramError(f"program {program.name} is racy: {found[0]}{more}")


TOUCH, RECORD, WAIT = 0, 1, 2


@dataclass(frozen=True, slots=True)
class _Steps:
    """Instructions as arrays: what each is, its lane, event and node, and where its accesses begin."""

    kinds: Ints
    lanes: Ints
    events: Ints
    nodes: Ints
    pointers: Ints
    width: int
    marks: int

    @staticmethod
    def of(program: Program, owner: Ints) -> _Steps:
        lane = {stream.name: at for at, stream in enumerate(program.streams)}
        events: dict[int, int] = {}
        rows = []
        for step in program.instructions:
            kind = RECORD if isinstance(step, Record) else WAIT if isinstance(step, Wait) else TOUCH
            event = events.setdefault(step.event, len(events)) if isinstance(step, (Record, Wait)) else 0
            node = step.node if isinstance(step, (Launch, Copy)) else -1
            rows.append((kind, lane[step.stream], event, node))
        table = np.array(rows, np.int64).reshape(len(rows), 4)
        kinds, lanes, numbers, nodes = (np.ascontiguousarray(table[:, column]) for column in range(4))
        pointers = np.searchsorted(owner, np.arange(len(rows) + 1)).astype(np.int64)
        return _Steps(kinds, lanes, numbers, nodes, pointers, max(1, len(lane)), max(1, len(events)))


def _scan(
    kinds: Ints,
    lanes: Ints,
    events: Ints,
    nodes: Ints,
    pointers: Ints,
    first: Ints,
    last: Ints,
    writes: Ints,
    buffers: Ints,
    owners: Ints,
    clocks: Ints2,
    marks: Ints2,
    written: Ints2,
    reads: Ints2,
    found: Ints2,
) -> int:
    """Plays the instructions; fills rows of ``found``, and returns how many.

    A row is (kind, earlier step, later step, the buffer that is spoilt, the one whose contents were there before).
    Instructions have ``kinds, lanes, events, nodes`` and ``pointers`` to their accesses, those ``first`` and ``last``
    atoms, ``writes`` and ``buffers``; and there are, all zero but ``owners`` to begin with:

    - owners [atoms]: whose contents an atom has, -1 for nobody's.
    - clocks [lanes, lanes]: how many steps of each lane are over before a lane goes on.
    - marks [events, lanes]: the same when the event was recorded.
    - written [5, atoms]: lane, number and instruction of the last write, and whether there was one; one more than the
      instruction that has read since and is the last of these in the graph.
    - reads [2 * atoms, lanes]: number and instruction of the last read by each lane since that write.
    """
    total, atoms, width = 0, owners.shape[0], clocks.shape[0]
    for step in range(kinds.shape[0]):
        lane = lanes[step]
        if kinds[step] == RECORD:
            for other in range(width):
                marks[events[step], other] = clocks[lane, other]
            continue
        if kinds[step] == WAIT:
            for other in range(width):
                clocks[lane, other] = max(clocks[lane, other], marks[events[step], other])
            continue
        number = clocks[lane, lane] + 1
        for access in range(pointers[step], pointers[step + 1]):
            buffer = buffers[access]
            for atom in range(first[access], last[access]):
                kind, earlier, owner, spoilt = -1, -1, owners[atom], buffer
                if written[3, atom] == 1 and written[2, atom] != step:
                    other = written[0, atom]
                    unordered = other != lane and written[1, atom] > clocks[lane, other]
                    if unordered or (owner == buffer and nodes[written[2, atom]] > nodes[step]):
                        kind, earlier = 2 * writes[access], written[2, atom]
                if writes[access] == 0:
                    if kind < 0 and owner == -1:
                        kind = 3
                    elif kind < 0 and owner != buffer:
                        kind, earlier = 4, written[2, atom]
                    reads[atom, lane] = number
                    reads[atoms + atom, lane] = step
                    if written[4, atom] == 0 or nodes[written[4, atom] - 1] < nodes[step]:
                        written[4, atom] = step + 1
                else:
                    reader = written[4, atom] - 1
                    if reader >= 0 and owner == buffer and nodes[reader] > nodes[step]:
                        kind, earlier = 1, reader
                    for other in range(width):
                        if other != lane and reads[atom, other] > clocks[lane, other]:
                            kind, earlier = 1, reads[atoms + atom, other]
                    own = reads[atom, lane] == number or (written[3, atom] == 1 and written[2, atom] == step)
                    if kind < 0 and own and owner != buffer and owner >= 0:
                        kind, earlier, spoilt = 4, step, owner  # it reads there itself, or two of its results lie there
                    for other in range(width):
                        reads[atom, other] = 0
                    written[4, atom] = 0
                    owners[atom] = buffer
                    written[0, atom], written[1, atom], written[2, atom], written[3, atom] = lane, number, step, 1
                if kind >= 0 and total < found.shape[0]:
                    found[total, 0], found[total, 1], found[total, 2] = kind, earlier, step
                    found[total, 3], found[total, 4] = spoilt, owner
                    total += 1
        clocks[lane, lane] = number
    return total


@cache
def _in_machine_code() -> Callable[..., int]:
    return compiled(_scan)


def _hazard(program: Program, row: list[int]) -> Hazard:
    number, earlier, later, buffer, owner = row
    kind, steps = KINDS[number], [program.instructions[at] for at in (earlier, later) if at >= 0]
    nodes = [step for step in steps if isinstance(step, (Launch, Copy))]
    if kind in RACES and owner == buffer and nodes[0].node > nodes[1].node:
        nodes.reverse()  # as the graph has them
        kind = {RACES[0]: RACES[1], RACES[1]: RACES[0]}.get(kind, kind)
    missing = ""
    if kind in RACES:
        first, second = nodes
        apart = first.stream != second.stream
        missing = (
            f"{second.stream} has to wait for {first.name} on {first.stream}"
            if apart
            else f"{first.name} has to be launched first"
        )
    before = nodes[0].name if len(nodes) > 1 else ""
    where = tuple(step.where for step in nodes)
    return Hazard(kind, program.buffers[buffer].name, before, nodes[-1].name, missing, where)


def _of_output(program: Program, name: str, buffer: int, kind: str) -> Hazard:
    """An output that is not there when a run has ended."""
    return Hazard(kind, program.buffers[buffer].name, "another node", f"whoever takes output {name!r}", "", ())
