"""Clocks: steps on lanes, ordered by vector clocks, and what of their accesses that leaves to chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np

from nanort.compiled import Ints, Ints2, compiled
from nanort.programs.program import Record, Wait

MANY = 1000
"""Conflicts that are looked for; a program with so many has one cause for most of them."""

FEW = 4000
"""Accesses up to which a program is judged sooner than numba is imported."""

TOUCH, RECORD, WAIT = 0, 1, 2


class Queued(Protocol):
    """Whatever stands on a stream."""

    @property
    def stream(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Steps:
    """Instructions as arrays: what each is, its lane, event and node, and where its accesses begin."""

    kinds: Ints
    lanes: Ints
    events: Ints
    nodes: Ints
    pointers: Ints
    width: int
    marks: int

    @staticmethod
    def of(steps: Sequence[Queued], owner: Ints) -> Steps:
        """The steps in an order in which they may happen; ``owner`` is the step of every access."""
        lane: dict[str, int] = {}
        events: dict[int, int] = {}
        rows = []
        for step in steps:
            kind = RECORD if isinstance(step, Record) else WAIT if isinstance(step, Wait) else TOUCH
            event = events.setdefault(step.event, len(events)) if isinstance(step, (Record, Wait)) else 0
            rows.append((kind, lane.setdefault(step.stream, len(lane)), event, getattr(step, "node", -1)))
        table = np.array(rows, np.int64).reshape(len(rows), 4)
        kinds, lanes, numbers, nodes = (np.ascontiguousarray(table[:, column]) for column in range(4))
        pointers = np.searchsorted(owner, np.arange(len(rows) + 1)).astype(np.int64)
        return Steps(kinds, lanes, numbers, nodes, pointers, max(1, len(lane)), max(1, len(events)))


def conflicts(steps: Steps, first: Ints, last: Ints, writes: Ints, buffers: Ints, owners: Ints) -> list[list[int]]:
    """What is left to chance: rows as :func:`_scan` fills them, which changes ``owners`` to those in the end."""
    found = np.zeros((MANY, 6), np.int64)
    atoms, width = len(owners), steps.width
    clocks, marks, written, reads = (
        np.zeros(shape, np.int64) for shape in ((width,) * 2, (steps.marks, width), (5, atoms), (2 * atoms, width))
    )
    scan = _in_machine_code() if len(writes) > FEW else _scan
    total = scan(
        steps.kinds, steps.lanes, steps.events, steps.nodes, steps.pointers, first, last, writes, buffers, owners,
        clocks, marks, written, reads, found,
    )  # fmt: skip  # what a step is, what it touches, and what is kept
    rows: list[list[int]] = found[:total].tolist()
    return rows


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

    A row is (kind, earlier step, later step, buffer that is spoilt, the one whose contents were there before, atom).
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
                    found[total, 3], found[total, 4], found[total, 5] = spoilt, owner, atom
                    total += 1
        clocks[lane, lane] = number
    return total


@cache
def _in_machine_code() -> Callable[..., int]:
    return compiled(_scan)
