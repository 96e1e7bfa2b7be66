"""A second judge of races, which shares nothing with the first: bytes as bits of a number, the order as sets of steps.

And a third one, PyTorch's CUDA sanitizer, which is told of the same bytes.
"""

from __future__ import annotations

import types
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from unittest import mock

import numpy as np
from torch.cuda import _sanitizer

from nanort.edges import Access
from nanort.programs.memory import MemoryPlan
from nanort.programs.program import Copy, Launch, Program, Record, View, Wait
from nanort.values import Region

Space = tuple[str, int]
Touched = Mapping[tuple[Space, int], int]
"""By memory and by the buffer that is meant: its bytes, bit n for byte n."""

FIRST = 2
"""Cells are numbered from -2 on: those of history and of elsewhere come before a step's rows."""

MADE = ("result", "join", "empty")


def touched(program: Program, memory: MemoryPlan | None) -> list[tuple[Touched, Touched]]:
    """For every instruction, what it reads and what it writes.

    A state that is reached through an index is a table, a row for each cell and a column for each byte of boxes: some
    steps touch rows of it and some columns, and a row and a column always meet.
    """
    tables = _tables(program)
    found = []
    for step in program.instructions:
        reads, writes = defaultdict[tuple[Space, int], int](int), defaultdict[tuple[Space, int], int](int)
        for view, stated, which in _views(step, program):
            buffer = program.buffers[view.buffer]
            space, shift = _place(view.buffer, memory)
            bits = _bits(view, buffer.dtype.itemsize) << shift
            if buffer.root in tables:
                space = ("cells", view.buffer)
                bits = _in_table(bits, [a.region for a in stated if a.root == buffer.root], *tables[buffer.root])
            for kind, into in (("r", reads), ("w", writes)):
                if kind in which and bits:
                    into[space, buffer.index] |= bits
        found.append((reads, writes))
    return found


def order(program: Program) -> list[int]:
    """For every instruction, all that are over before it starts: bit n for the n-th, and nothing else orders them."""
    over: list[int] = []
    last: dict[str, int] = {}
    recorded: dict[int, int] = {}
    for at, step in enumerate(program.instructions):
        direct = [last[step.stream]] if step.stream in last else []
        if isinstance(step, Wait) and step.event in recorded:
            direct.append(recorded[step.event])
        elif isinstance(step, Record):
            recorded[step.event] = at
        last[step.stream] = at
        over.append(0)
        for earlier in direct:
            over[at] |= over[earlier] | 1 << earlier
    return over


def is_unordered(program: Program, memory: MemoryPlan | None = None) -> bool:
    """Whether two steps touch the same bytes, one of them to write, and could do so in either order."""
    return any(not ordered for ordered, _ in _conflicts(program, touched(program, memory)))


def is_racy(program: Program, memory: MemoryPlan | None = None) -> bool:
    """Whether some outputs could differ from run to run, or from what the graph means."""
    sets = touched(program, memory)
    wrong = any(not ordered or reversed_ for ordered, reversed_ in _conflicts(program, sets))
    return wrong or _is_spoilt(program, memory, sets)


def sanitizer_errors(program: Program, memory: MemoryPlan | None = None) -> int:
    """Races that PyTorch's CUDA sanitizer sees; it is told one pointer for each range that accesses have in common."""
    sets = touched(program, memory)
    starts = defaultdict[Space, int](int)  # where a range begins that some step touches and some other does not
    for (space, _), bits in (touch for both in sets for one in both for touch in one.items()):
        starts[space] |= bits ^ bits << 1
    numbers: dict[tuple[Space, int], int] = {}

    @cache
    def pointers(space: Space, bits: int) -> frozenset[int]:
        return frozenset(numbers.setdefault((space, one), len(numbers) + 1) for one in _ones(bits & starts[space]))

    told = [
        [set().union(*(pointers(space, bits) for (space, _), bits in one.items())) for one in both] for both in sets
    ]
    handler, errors = _sanitizer.EventHandler(), 0
    with mock.patch.object(_sanitizer, "traceback", _NO_TRACES):
        for pointer in numbers.values():
            handler._handle_memory_allocation(pointer)
        streams = {stream.name: number for number, stream in enumerate(program.streams, 1)}
        for number in streams.values():
            handler._handle_stream_creation(number)
        for event in {step.event for step in program.instructions if isinstance(step, (Record, Wait))}:
            handler._handle_event_creation(event)
        for step, (reads, writes) in zip(program.instructions, told, strict=True):
            stream = streams[step.stream]
            if isinstance(step, Record):
                handler._handle_event_record(step.event, stream)
            elif isinstance(step, Wait):
                handler._handle_event_wait(step.event, stream)
            else:
                named = {pointer: ["x"] for pointer in reads | writes}
                errors += len(handler._handle_kernel_launch(stream, reads - writes, writes, set(), step.name, named))
    return errors


_NO_TRACES = types.SimpleNamespace(
    walk_stack=lambda frame: (), StackSummary=types.SimpleNamespace(extract=lambda frames, lookup_lines: [])
)
"""In place of the module ``traceback``: the sanitizer walks the stack at every launch, and nobody reads that here."""


def _conflicts(program: Program, sets: Sequence[tuple[Touched, Touched]]) -> Iterator[tuple[bool, bool]]:
    """``(ordered, reversed)`` of every two steps that touch the same bytes, one of them to write."""
    over = order(program)
    met = defaultdict[Space, list[tuple[int, int, int, bool]]](list)
    for later, (reads, writes) in enumerate(sets):
        if not reads and not writes:
            continue
        own = [(touch, False) for touch in reads.items()] + [(touch, True) for touch in writes.items()]
        node = _node(program, later)
        for ((space, buffer), bits), writing in own:
            for earlier, other, theirs, written in met[space]:
                if writing or written:
                    ordered = bool(over[later] >> earlier & 1)
                    reversed_ = buffer == other and _node(program, earlier) > node
                    if (not ordered or reversed_) and bits & theirs:
                        yield ordered, reversed_
        for ((space, buffer), bits), writing in own:
            met[space].append((later, buffer, bits, writing))


def _is_spoilt(program: Program, memory: MemoryPlan | None, sets: Sequence[tuple[Touched, Touched]]) -> bool:
    """Whether something is read that other contents lie in, or none: in the order of the instructions."""
    holds = defaultdict[Space, dict[int, int]](dict)  # by buffer, the bytes that have its contents now

    def is_missing(reads: Touched) -> bool:
        return any(
            bits & ~holds[space].get(buffer, 0)
            for (space, buffer), bits in reads.items()
            if program.buffers[buffer].kind in MADE
        )

    for reads, writes in sets:
        if is_missing(reads):
            return True
        for (space, buffer), bits in writes.items():
            for (there, other), theirs in writes.items():
                if there == space and other != buffer and bits & theirs:
                    return True  # two results in the same bytes
            for (there, other), theirs in reads.items():
                new, old = bits & ~reads.get((space, buffer), 0), theirs & ~writes.get((space, other), 0)
                if there == space and other != buffer and new & old:
                    return True  # it writes over what it may still have to read
        for (space, buffer), bits in writes.items():
            for other in holds[space]:
                holds[space][other] &= ~bits
            holds[space][buffer] = holds[space].get(buffer, 0) | bits
    for view in program.outputs.values():
        space, shift = _place(view.buffer, memory)
        if is_missing({(space, view.buffer): _bits(view, program.buffers[view.buffer].dtype.itemsize) << shift}):
            return True
    return False


def _views(step: object, program: Program) -> Iterator[tuple[View, Sequence[Access], str]]:
    """``(view, what is stated of it, "r", "w" or "rw")`` of every argument and result of a step."""
    if isinstance(step, Copy):
        yield step.source, step.reads, "r"
        yield step.target, (), "w"
    elif isinstance(step, Launch):
        for at, view in enumerate(step.args):
            if isinstance(view, View):
                if at in step.op.writes:  # what is changed in part has to be there
                    yield view, step.writes, "rw" if program.buffers[view.buffer].kind in MADE else "w"
                else:
                    yield view, step.reads, "r"
        for view in step.outs:
            yield view, (), "w"


def _stated(step: object) -> tuple[Access, ...]:
    return (*step.reads, *step.writes) if isinstance(step, Launch) else step.reads if isinstance(step, Copy) else ()


def _tables(program: Program) -> dict[int, tuple[int, int]]:
    """By root, the rows and columns of each state that is reached through an index; one column where no box is."""
    stated = [access for step in program.instructions for access in _stated(step)]
    boxed = {access.root for access in stated if access.region.box is not None}
    above: dict[int, int] = {}
    for access in stated:
        for _, high in access.region.cells or ():
            above[access.root] = max(above.get(access.root, 0), high)
    nbytes = {buffer.root: buffer.nbytes for buffer in program.buffers}
    return {root: (FIRST + rows, nbytes[root] if root in boxed else 1) for root, rows in above.items()}


def _in_table(columns: int, regions: Sequence[Region], rows: int, width: int) -> int:
    """The rows of a table that are cells, and its columns where a region is no cells."""
    bits, every = 0, (1 << width) - 1
    for region in regions:
        if region.cells is None:
            bits |= _repeated(columns if width > 1 else every, width, rows)
        else:
            for low, high in region.cells:
                bits |= _repeated(every, width, high - low) << width * (low + FIRST)
    return bits


def _place(buffer: int, memory: MemoryPlan | None) -> tuple[Space, int]:
    """The memory that a buffer lies in, and the bits before its first byte."""
    for arena in ("device", "host") if memory else ():
        if (offset := getattr(memory, arena)[buffer]) is not None:
            return (arena, -1), offset
    return ("own", buffer), 0


@lru_cache(maxsize=1 << 16)
def _bits(view: View, item: int) -> int:
    """The bytes of a view in its buffer."""
    bits = (1 << item) - 1
    for stride, size in sorted(zip(view.strides, view.shape, strict=True)):
        bits = _repeated(bits, stride * item, size)
    return bits << view.offset * item


def _repeated(bits: int, step: int, times: int) -> int:
    if times <= 1:
        return bits * times
    half = times // 2
    part = _repeated(bits, step, half)
    whole = part | part << step * half
    return whole | bits << step * (times - 1) if times % 2 else whole


def _ones(bits: int) -> list[int]:
    raw = np.frombuffer(bits.to_bytes(bits.bit_length() // 8 + 1, "little"), np.uint8)
    found: list[int] = np.flatnonzero(np.unpackbits(raw, bitorder="little")).tolist()
    return found


def _node(program: Program, at: int) -> int:
    step = program.instructions[at]
    return step.node if isinstance(step, (Launch, Copy)) else -1
