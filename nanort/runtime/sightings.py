"""Sightings: what an Observer saw of a run, told in the program's own buffers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch

from nanort.programs.accesses import ranges, touched
from nanort.programs.audit import merged, outside
from nanort.programs.hazards import Hazard
from nanort.programs.program import Copy, Launch, Program, View
from nanort.programs.record import Done, RunRecord, Spot, Touch
from nanort.runtime.observer import Observer, Rows, address, begin, spans_of

CALLER = "whoever gave it"


class Sightings:
    """Where the buffers of one run lie, and what of them its steps touched.

    Values are kept until it is thrown away, so that no two of a run are ever at the same address unless the program
    puts them there.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.tensors: dict[int, torch.Tensor] = {}
        self._there: dict[int, list[tuple[int, int, int]]] = {}  # by address of a storage: low, high, buffer
        self._strange: list[tuple[int, int, int, bool, Launch]] = []  # address, low, high, whether written, by whom
        self._kept: list[object] = []  # what lies at those addresses, and may not make room for anything else

    @classmethod
    def of(cls, program: Program, tensors: Mapping[int, torch.Tensor]) -> Sightings:
        """A run whose buffers all have their places before it begins."""
        made = cls(program)
        for buffer, tensor in tensors.items():
            made.place(buffer, tensor)
        return made

    @property
    def memories(self) -> Collection[int]:
        """Addresses of the storages in which buffers lie."""
        return self._there.keys()

    def place(self, buffer: int, tensor: torch.Tensor) -> None:
        """Says where a buffer lies."""
        self.tensors[buffer] = tensor
        if there := address(tensor):
            low = begin(tensor)
            self._there.setdefault(there, []).append((low, low + tensor.nbytes, buffer))

    def adopt(self, step: Launch | Copy, buffer: int, tensor: torch.Tensor) -> Iterator[Hazard]:
        """Places a result that a step returned; it may not lie where something lies already."""
        low = begin(tensor)
        for found in self._meeting(address(tensor), low, low + tensor.nbytes, ()):
            start = self._start(found)
            maker = self._maker(found)
            first, where = (CALLER, "") if maker is None else (maker.name, maker.where)
            name, span = self.program.buffers[found].name, (low - start, low - start + tensor.nbytes)
            yield Hazard("aliased", name, first, step.name, "return a copy", (where, step.where), span)
            break
        self.place(buffer, tensor)

    def given(self, step: Launch | Copy) -> tuple[Touch, ...]:
        """What a step touches if it keeps to what it declares."""
        buffers = self.program.buffers
        return tuple(
            Touch(view.buffer, low, high, bool(writes))
            for view, _, writes in touched(step, buffers, ())
            for low, high in ranges(view, buffers[view.buffer].dtype.itemsize)
        )

    def of_tensor(self, tensor: torch.Tensor, mine: Collection[int], writes: bool) -> Iterator[Touch]:
        """The bytes of a tensor, if they are the program's: of the buffers ``mine`` where those lie there."""
        for low, high in spans_of(tensor):
            if (found := next(self._meeting(address(tensor), low, high, mine), None)) is not None:
                start = self._start(found)
                yield Touch(found, low - start, high - start, writes)

    def seen(self, step: Launch, observed: Observer) -> Done:
        """What a launch touched, and what is wrong with it by itself."""
        views = [argument for argument in (*step.args, *step.outs) if isinstance(argument, View)]
        mine = {view.buffer for view in views}
        self._kept.append(observed.kept)
        spans = defaultdict[tuple[int, bool], list[tuple[int, int]]](list)
        for writes, memories in ((False, observed.reads), (True, observed.writes)):
            for memory, pieces in memories.items():
                there = self._there.get(memory, ())
                if len(there) == 1:  # as on the cpu: no need to look which of several it is
                    ((low, high, only),) = there
                    inside = [piece for piece in pieces if piece[0] < high and low < piece[1]]
                    spans[only, writes] += [(begins - low, ends - low) for begins, ends in inside]
                    pieces = pieces.difference(inside)
                for low, high in pieces:
                    if (found := next(self._meeting(memory, low, high, mine), None)) is not None:
                        start = self._start(found)
                        spans[found, writes].append((low - start, high - start))
                    else:
                        self._strange.append((memory, low, high, writes, step))
        touches = [
            Touch(buffer, low, high, writes)
            for (buffer, writes), pieces in sorted(spans.items(), key=lambda item: (item[0][1], item[0][0]))
            for low, high in merged(pieces)
        ]
        return Done(step, tuple(touches), tuple(self._repeated(step, observed.rows, mine))[:1])

    def record(self, steps: Collection[Done], ended: bool) -> RunRecord:
        """The run, as far as it came."""
        strangers, told = self._strangers(), list[Done]()
        for done in steps:
            shared = strangers.get(done.step.node, ()) if isinstance(done.step, Launch) else ()
            told.append(replace(done, found=done.found + shared))
        return RunRecord(self.program, tuple(told), tuple(self._spots()), ended)

    def _start(self, buffer: int) -> int:
        return begin(self.tensors[buffer])

    def _meeting(self, memory: int, low: int, high: int, first: Collection[int]) -> Iterator[int]:
        """The buffers that a range meets, those that are asked for ``first`` before the others."""
        met = [b for begin, end, b in tuple(self._there.get(memory, ())) if begin < high and low < end]
        yield from sorted(met, key=lambda buffer: buffer not in first)

    def _maker(self, buffer: int) -> Launch | Copy | None:
        """The step whose result a buffer is."""
        for step in self.program.instructions:
            outs = step.outs if isinstance(step, Launch) else (step.target,) if isinstance(step, Copy) else ()
            if isinstance(step, (Launch, Copy)) and any(view.buffer == buffer for view in outs):
                return step
        return None

    def _repeated(self, step: Launch, found: Collection[Rows], mine: Collection[int]) -> Iterator[Hazard]:
        """Rows that an index sends to the same place, unless it is scratch."""
        for rows in found:
            starts = rows.starts[:, :1].reshape(-1)
            order = np.argsort(starts, kind="stable")
            for at in np.flatnonzero(np.diff(starts[order]) == 0).tolist():
                one, other = sorted(order[at : at + 2].tolist())
                low = int(starts[one])
                buffer = next(self._meeting(rows.memory, low, low + rows.nbytes, mine), None)
                if buffer is None:
                    continue
                span = low - self._start(buffer), low - self._start(buffer) + rows.nbytes
                if outside(span, [scratch_bytes(self.program, buffer)]) is not None:
                    advice = f"its rows {one} and {other} name one place; only rows that are scratch= may be shared"
                    name = self.program.buffers[buffer].name
                    yield Hazard("repeated", name, "", step.name, advice, (step.where,), span)
                    break

    def _strangers(self) -> dict[int, tuple[Hazard, ...]]:
        """By node: that it shares memory with another one which is none of the program's, and one of them writes it."""
        by_memory = defaultdict[int, list[tuple[int, int, bool, Launch]]](list)
        for memory, low, high, writes, step in self._strange:
            by_memory[memory].append((low, high, writes, step))
        found: dict[int, tuple[Hazard, ...]] = {}
        for sightings in by_memory.values():
            for low, high, _, writer in (sighting for sighting in sightings if sighting[2]):
                for start, end, _, other in sightings:
                    if other.node != writer.node and start < high and low < end:
                        first, second = sorted((writer, other), key=lambda step: step.node)
                        where, what = (first.where, second.where), "memory that is none of the program's"
                        found[second.node] = (Hazard("shared", what, first.name, second.name, "", where),)
        return found

    def _spots(self) -> Iterator[Spot]:
        """Where every buffer lay, and where the run itself: bound ones that overlap are one."""
        first: dict[int, int] = {}  # by address: the first buffer there
        bound = list[tuple[int, int, int, int]]()
        for buffer in self.program.buffers:
            tensor = self.tensors.get(buffer.index)
            there = 0 if tensor is None else address(tensor)
            if tensor is None or not there:
                yield Spot(buffer.index, 0, buffer.index)
                continue
            space, start, same = first.setdefault(there, buffer.index), self._start(buffer.index), buffer.index
            if buffer.kind in ("input", "constant", "state"):
                end = start + tensor.nbytes
                same = next((b for s, low, high, b in bound if s == space and low < end and start < high), same)
                bound.append((space, start, end, same))
            yield Spot(space, start, same)
        yield Spot(len(self.program.buffers), 0, len(self.program.buffers))


def scratch_bytes(program: Program, buffer: int) -> tuple[int, int]:
    """The bytes of a buffer that are scratch rows of a state."""
    whole = program.buffers[buffer]
    low, high = program.graph.roots[whole.root].scratch
    row = whole.nbytes // whole.shape[0] if high else 0
    return low * row, high * row
