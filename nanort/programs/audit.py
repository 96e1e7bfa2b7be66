"""breaches: where a run did other than its program says, whatever the order was."""

from __future__ import annotations

from bisect import bisect
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from operator import itemgetter

from nanort.layout import Cells
from nanort.programs.accesses import ranges, touched
from nanort.programs.hazards import Hazard
from nanort.programs.program import Copy, Launch, Record, Wait
from nanort.programs.record import Done, RunRecord, Touch

Sign = tuple[str, int]
"""What tells steps of a stream apart: "touch" and a node, "record" or "wait" and an event."""


def breaches(record: RunRecord) -> Iterator[Hazard]:
    """Bytes touched that are not declared, and writes that broke their promises."""
    for done in record.steps:
        yield from done.found
        yield from _undeclared(record, done)
    yield from _crossed(record)


def skipped(record: RunRecord) -> Iterator[Hazard]:
    """On each stream of a run that ended, the first step that is not the one of the program."""
    program = record.program
    names = {step.node: step for step in program.instructions if isinstance(step, (Launch, Copy))}
    marked: dict[int, Launch | Copy] = {}  # by event: what it comes after
    last: dict[str, Launch | Copy] = {}
    for step in program.instructions:
        if isinstance(step, (Launch, Copy)):
            last[step.stream] = step
        elif isinstance(step, Record) and step.stream in last:
            marked[step.event] = last[step.stream]

    def named(sign: Sign | None) -> tuple[str, str]:
        """What a sign stands for, and the line of its node."""
        if sign is None:
            return "its end", ""
        kind, number = sign
        step = names[number] if kind == "touch" else marked.get(number)
        if step is None:
            return f"the {kind} of event {number}", ""
        said = {"touch": "", "record": "the record of the end of ", "wait": "a wait for "}[kind]
        return f"{said}{step.name}", step.where

    asked, happened = _by_stream(program.instructions), _by_stream([done.step for done in record.steps])
    for stream, expected in asked.items() if record.ended else ():
        known = set(expected)
        found = [sign for sign in happened.get(stream, ()) if sign in known]
        for should, did in zip([*expected, None], [*found, None], strict=False):
            if should != did:
                (first, one), (second, other) = named(should), named(did)
                yield Hazard("skipped", "", first, f"{second} on {stream}", "", (one, other))
                break


def _by_stream(steps: Iterable[object]) -> dict[str, list[Sign]]:
    """What each stream was given, in order."""
    signs = defaultdict[str, list[Sign]](list)
    for step in steps:
        if isinstance(step, (Launch, Copy)):
            signs[step.stream].append(("touch", step.node))
        elif isinstance(step, (Record, Wait)):
            signs[step.stream].append(("record" if isinstance(step, Record) else "wait", step.event))
    return signs


def _undeclared(record: RunRecord, done: Done) -> Iterator[Hazard]:
    """Bytes that a step touched and did not declare; what it writes it may read."""
    step, buffers = done.step, record.program.buffers
    if not isinstance(step, (Launch, Copy)):
        return
    stated = defaultdict[tuple[int, bool], list[tuple[int, int]]](list)
    for view, _, writes in touched(step, buffers, ()):
        for writing in (False, True)[: 1 + writes]:
            stated[view.buffer, writing] += ranges(view, buffers[view.buffer].dtype.itemsize)
    declared = {key: merged(spans) for key, spans in stated.items()}
    for touch in sorted(done.touched, key=lambda touch: not touch.writes):
        if touch.buffer < len(buffers):
            span = outside((touch.low, touch.high), declared.get((touch.buffer, touch.writes), ()))
            if span is not None:  # what is told of as written needs no second telling
                declared[touch.buffer, False] = merged([*declared.get((touch.buffer, False), ()), span])
                yield _told(record, done, touch, span)


def _told(record: RunRecord, done: Done, touch: Touch, span: tuple[int, int]) -> Hazard:
    """What is said of bytes that a step did not declare, beside someone for whom it matters."""
    kind = "undeclared write" if touch.writes else "undeclared read"
    advice = "name the argument in writes=, or change a copy" if touch.writes else "make it an argument"
    others = (
        other.step
        for other in record.steps
        if other.step != done.step and not isinstance(other.step, (Record, Wait))
        for theirs in other.touched
        if theirs.buffer == touch.buffer and (touch.writes or theirs.writes)
        if max(theirs.low, span[0]) < min(theirs.high, span[1])
    )
    other = next(others, None)
    first, where = ("", "") if other is None else (other.name, other.where)
    assert isinstance(done.step, (Launch, Copy))
    name = record.program.buffers[touch.buffer].name
    return Hazard(kind, name, first, done.step.name, advice, (where, done.step.where), span)


def outside(span: tuple[int, int], allowed: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """The first part of a range that none of the others, which are :func:`merged`, covers; None if they cover it.

    >>> outside((0, 10), [(0, 4), (6, 12)])
    (4, 6)
    """
    low, high = span
    after = bisect(allowed, low, key=itemgetter(0))
    if after:
        low = max(low, allowed[after - 1][1])
    if low >= high:
        return None
    return low, min([high, *(begin for begin, _ in allowed[after : after + 1])])


def merged(spans: Collection[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same bytes in as few ranges as there may be, in order.

    >>> merged([(4, 6), (0, 2), (2, 4), (9, 10)])
    [(0, 6), (9, 10)]
    """
    found = list[tuple[int, int]]()
    for low, high in sorted(spans):
        if found and low <= found[-1][1]:
            found[-1] = found[-1][0], max(high, found[-1][1])
        else:
            found.append((low, high))
    return found


def _crossed(record: RunRecord) -> Iterator[Hazard]:
    """Bytes that two launches write though they declare different cells, which promise different rows."""
    spans = defaultdict[int, list[tuple[int, int, Launch, Cells]]](list)
    roots = {buffer.root: buffer.index for buffer in record.program.buffers}
    for done in record.steps:
        if isinstance(done.step, Launch):
            for access in done.step.writes:
                index, cells = roots[access.root], access.region.cells
                if cells is not None:
                    mine = (touch for touch in done.touched if touch.writes and touch.buffer == index)
                    spans[index] += [(touch.low, touch.high, done.step, cells) for touch in mine]
    for index, written in spans.items():
        buffer = record.program.buffers[index]
        rows = record.program.graph.roots[buffer.root].scratch
        free = tuple(row * (buffer.nbytes // buffer.shape[0]) for row in rows) if buffer.shape else (0, 0)
        yield from _crossings(buffer.name, sorted(written, key=lambda span: span[:2]), (free[0], free[1]))


def _crossings(name: str, written: Sequence[tuple[int, int, Launch, Cells]], free: tuple[int, int]) -> Iterator[Hazard]:
    """Neighbours of a sorted list that overlap, but for bytes that are free."""
    open_ = list[tuple[int, int, Launch, Cells]]()
    for span in written:
        low, high, step, cells = span
        open_ = [other for other in open_ if other[1] > low]
        for _, end, other, theirs in open_:
            apart = other.node != step.node and all(max(a, c) >= min(b, d) for a, b in cells for c, d in theirs)
            if apart and outside((low, min(high, end)), [free]) is not None:
                first, second = sorted((other, step), key=lambda node: node.node)
                where = (first.where, second.where)
                advice = "rows of different pieces need different places"
                yield Hazard("crossed", name, first.name, second.name, advice, where, (low, min(high, end)))
        open_.append(span)
