"""Accesses: which bytes of which memory, or which cells of a state, every step of a program reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from nanort.compiled import Ints
from nanort.edges import Access
from nanort.layout import Cells
from nanort.programs.memory import PLANNED, MemoryPlan
from nanort.programs.program import Buffer, Copy, Launch, Program, View

Ranges = tuple[tuple[int, int], ...]
Row = tuple[int, int, int, int, int, int]
"""Step, space, low, high, 1 if written, buffer."""
Place = tuple[int, int]
"""The space of a buffer, and where in it the buffer begins."""

DEVICE, HOST, APART = 0, 1, 2
"""Spaces: the two arenas of a memory plan; from there on one for each buffer, and one for the cells of each."""


@dataclass(frozen=True, slots=True)
class Accesses:
    """Ranges that steps touch, in the order of the steps, reads of a step before its writes.

    Attributes:
        step: by range, the index of the step.
        space: which memory it lies in; ranges of different spaces have nothing in common.
        low, high: its ends, in bytes, or cells.
        writes: 1 where it is written, 0 where it is read.
        buffer: whose contents are meant, by index in the program.
        starts: by buffer, where in the space of its bytes it begins.
        cells: the first space whose ranges are cells.
    """

    step: Ints
    space: Ints
    low: Ints
    high: Ints
    writes: Ints
    buffer: Ints
    starts: Sequence[int]
    cells: int

    @staticmethod
    def of(rows: Sequence[Row], places: Sequence[Place]) -> Accesses:
        """Those of ``rows``; ranges that are empty are left out."""
        kept = [row for row in rows if row[2] < row[3]]
        columns = np.array(kept, np.int64).reshape(len(kept), 6).T
        step, space, low, high, writes, buffer = (np.ascontiguousarray(column) for column in columns)
        return Accesses(step, space, low, high, writes, buffer, [start for _, start in places], APART + len(places))


def accesses(program: Program, memory: MemoryPlan | None = None) -> Accesses:
    """What every launch and copy of ``program`` touches; ``memory`` says which buffers share bytes, none without it."""
    found, states, seen = (
        places(program, memory),
        Indexed.of(program),
        cache(ranges),
    )  # most views are met more than once
    rows = list[Row]()
    for at, step in enumerate(program.instructions):
        if isinstance(step, (Launch, Copy)):
            rows += stated(at, step, program.buffers, found, states, seen)
    return Accesses.of(rows, found)


def places(program: Program, memory: MemoryPlan | None = None) -> list[Place]:
    """Where the buffers lie."""
    return [_place(buffer, memory) for buffer in program.buffers]


@dataclass(frozen=True, slots=True)
class Indexed:
    """States that some step reaches through an index.

    Attributes:
        above: by buffer, a number above those of all its cells.
        boxed: buffers of which some step reaches a box.
    """

    above: dict[int, int]
    boxed: set[int]

    @staticmethod
    def of(program: Program) -> Indexed:
        """Those of a program."""
        return Indexed(_indexed(program), _boxes(program))


def stated(
    at: int,
    step: Launch | Copy,
    buffers: Sequence[Buffer],
    places: Sequence[Place],
    states: Indexed,
    ranges_of: Callable[[View, int], Ranges],
) -> Iterator[Row]:
    """What a step says that it touches, reads first."""
    for view, cells, writes in touched(step, buffers, states.above):
        buffer, whole = view.buffer, buffers[view.buffer]
        space, shift = places[buffer]
        spans = ranges_of(view, whole.dtype.itemsize)
        if not spans or (cells is not None and all(low >= high for low, high in cells)):
            continue  # a part without elements, or no row of an indexed state
        if buffer in states.above:
            boxed = cells is None and not view.is_whole(whole)
            if buffer in states.boxed:  # a box meets all cells, and boxes only where they cross
                for low, high in spans if boxed else ((0, whole.nbytes),):
                    yield at, space, low, high, writes * (cells is None), buffer
            space, shift, writes = APART + len(places) + buffer, 0, writes * (not boxed)
            spans = cells if cells is not None else ((0, states.above[buffer]),)
        for low, high in spans:
            yield at, space, shift + low, shift + high, writes, buffer


def shown(program: Program, places: Sequence[Place]) -> Iterator[tuple[str, int, int, int, int]]:
    """``(output, space, low, high, buffer)``: the bytes that are read when a run has ended."""
    indexed = _indexed(program)
    for name, view in program.outputs.items():
        if view.buffer not in indexed:
            space, shift = places[view.buffer]
            for low, high in ranges(view, program.buffers[view.buffer].dtype.itemsize):
                yield name, space, shift + low, shift + high, view.buffer


def _place(buffer: Buffer, memory: MemoryPlan | None) -> Place:
    """The space of a buffer, and where in it the buffer begins."""
    if memory is not None:
        for space, offset in ((DEVICE, memory.device[buffer.index]), (HOST, memory.host[buffer.index])):
            if offset is not None:
                return space, offset
    return APART + buffer.index, 0


def _indexed(program: Program) -> dict[int, int]:
    """States that some step reaches through an index, and a number above those of all their cells."""
    by_root = {buffer.root: buffer.index for buffer in program.buffers}
    above: dict[int, int] = {}
    for step in program.instructions:
        if isinstance(step, (Launch, Copy)):
            for access in (*step.reads, *step.writes) if isinstance(step, Launch) else step.reads:
                if (cells := access.region.cells) is not None:
                    index = by_root[access.root]
                    above[index] = max(above.get(index, 1), *(high for _, high in cells), 1)
    return above


def _boxes(program: Program) -> set[int]:
    """States that some step reaches a box of."""
    by_root = {buffer.root: buffer.index for buffer in program.buffers if buffer.kind == "state"}
    steps = (step for step in program.instructions if isinstance(step, (Launch, Copy)))
    stated = (access for step in steps for access in (*step.reads, *(step.writes if isinstance(step, Launch) else ())))
    return {by_root[access.root] for access in stated if access.root in by_root and access.region.box is not None}


def touched(
    step: Launch | Copy, buffers: Sequence[Buffer], indexed: Collection[int]
) -> Iterator[tuple[View, Cells | None, int]]:
    """``(view, cells, writes)`` of a step, reads first; cells where a state is reached through an index."""
    if isinstance(step, Copy):
        yield step.source, _cells(step.reads, buffers[step.source.buffer], indexed), 0
        yield step.target, None, 1
        return
    changed = step.op.writes
    for at, view in enumerate(step.args):
        if isinstance(view, View) and at not in changed:
            yield view, _cells(step.reads, buffers[view.buffer], indexed), 0
    for at in changed:
        if isinstance(view := step.args[at], View):
            if buffers[view.buffer].kind in PLANNED:  # what is changed in part has to be there
                yield view, None, 0
            yield view, _cells(step.writes, buffers[view.buffer], indexed), 1
    for view in step.outs:
        yield view, None, 1


def _cells(stated: Sequence[Access], buffer: Buffer, indexed: Collection[int]) -> Cells | None:
    """The cells of an indexed state that a step touches; None where it touches all."""
    if buffer.index not in indexed:
        return None
    found = [access.region.cells for access in stated if access.root == buffer.root]
    parts = [cells for cells in found if cells is not None]
    return tuple(part for cells in parts for part in cells) if len(parts) == len(found) else None


def ranges(view: View, itemsize: int) -> Ranges:
    """The bytes of a view, as ranges without gaps."""
    inner, rest = 1, list[tuple[int, int]]()
    for stride, size in sorted(zip(view.strides, view.shape, strict=True)):
        if size == 0:
            return ()
        if stride <= inner and not rest:
            inner += stride * (size - 1)
        elif size > 1:
            rest.append((stride, size))
    low, length = view.offset * itemsize, inner * itemsize
    if not rest:
        return ((low, low + length),)
    starts = np.zeros(1, np.int64)
    for stride, size in rest:
        starts = (starts[:, None] + stride * np.arange(size)).reshape(-1)
    lows = low + np.sort(starts) * itemsize
    return tuple(zip(lows.tolist(), (lows + length).tolist(), strict=True))
