"""A second judge of races, which shares nothing with the first: sets of bytes, and the order as a graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import networkx as nx
import numpy as np
import torch

from nanort.edges import Access
from nanort.programs.accesses import accesses
from nanort.programs.memory import MemoryPlan
from nanort.programs.program import Copy, Launch, Program, Record, View, Wait

Place = tuple[object, ...]
Bytes = set[tuple[Place, int]]


def touched(program: Program, memory: MemoryPlan | None) -> list[tuple[Bytes, Bytes]]:
    """For every instruction, the bytes or cells that it reads and those that it writes, and whose contents they are."""
    indexed = {
        access.root
        for step in program.instructions
        if isinstance(step, (Launch, Copy))
        for access in (*step.reads, *(step.writes if isinstance(step, Launch) else ()))
        if access.region.cells is not None
    }
    every = {
        cell
        for step in program.instructions
        if isinstance(step, (Launch, Copy))
        for access in (*step.reads, *(step.writes if isinstance(step, Launch) else ()))
        for low, high in access.region.cells or ()
        for cell in range(low, high)
    }

    def where(view: View, stated: Sequence[Access]) -> Bytes:
        buffer = program.buffers[view.buffer]
        if buffer.root in indexed:
            cells = set[int]()
            for access in stated:
                if access.root == buffer.root:
                    parts = access.region.cells
                    cells |= every if parts is None else {c for low, high in parts for c in range(low, high)}
            return {(("cell", buffer.index, cell), buffer.index) for cell in cells}
        size = view.offset + sum(s * (n - 1) for s, n in zip(view.strides, view.shape, strict=True)) + 1
        numbers = torch.arange(max(size, 1)).as_strided(view.shape, view.strides, view.offset).flatten().tolist()
        base: Place = ("own", buffer.index)
        shift = 0
        for arena, offsets in (("device", memory.device), ("host", memory.host)) if memory else ():
            if (offset := offsets[buffer.index]) is not None:
                base, shift = (arena,), offset
        item = buffer.dtype.itemsize
        return {((*base, shift + n * item + k), buffer.index) for n in numbers for k in range(item)}

    found = []
    for step in program.instructions:
        reads, writes = set[tuple[Place, int]](), set[tuple[Place, int]]()
        if isinstance(step, Copy):
            reads, writes = where(step.source, step.reads), where(step.target, ())
        elif isinstance(step, Launch):
            for at, view in enumerate(step.args):
                if isinstance(view, View):
                    if at in step.op.writes:
                        writes |= where(view, step.writes)
                        if program.buffers[view.buffer].kind in ("result", "join", "empty"):
                            reads |= where(view, step.writes)
                    else:
                        reads |= where(view, step.reads)
            for view in step.outs:
                writes |= where(view, ())
        found.append((reads, writes))
    return found


def order(program: Program) -> nx.DiGraph:
    """Which instruction is over before which one starts, and nothing else."""
    graph = nx.DiGraph()
    last: dict[str, int] = {}
    recorded: dict[int, int] = {}
    for at, step in enumerate(program.instructions):
        graph.add_node(at)
        if step.stream in last:
            graph.add_edge(last[step.stream], at)
        last[step.stream] = at
        if isinstance(step, Record):
            recorded[step.event] = at
        elif isinstance(step, Wait) and step.event in recorded:
            graph.add_edge(recorded[step.event], at)
    return graph


def is_racy(program: Program, memory: MemoryPlan | None = None) -> bool:
    """Whether some outputs could differ from run to run, or from what the graph means."""
    before = {at: nx.ancestors(order(program), at) for at in range(len(program.instructions))}
    sets = touched(program, memory)
    made = {b.index for b in program.buffers if b.kind in ("result", "join", "empty")}
    steps = [at for at, s in enumerate(program.instructions) if isinstance(s, (Launch, Copy))]
    node = {at: program.instructions[at].node for at in steps}  # type: ignore[union-attr]
    contents: dict[Place, int] = {}

    def is_spoilt(shown: Bytes) -> bool:
        return any(contents.get(byte, -1 if buffer in made else buffer) != buffer for byte, buffer in shown)

    for place, later in enumerate(steps):
        reads, writes = sets[later]
        for earlier in steps[:place]:
            old_reads, old_writes = sets[earlier]
            for ours, theirs in ((reads, old_writes), (writes, old_reads), (writes, old_writes)):
                if earlier not in before[later] and {p for p, _ in ours} & {p for p, _ in theirs}:
                    return True
                if node[earlier] > node[later] and ours & theirs:
                    return True
        if is_spoilt(reads) or ({p for p, _ in reads - writes} & {p for p, _ in writes - reads}):
            return True
        contents.update(writes)
    for view in program.outputs.values():
        shown, _ = touched(_with(program, Copy(0, "", "", view, view, (), "")), memory)[0]
        if is_spoilt({(place, buffer) for place, buffer in shown if place[0] != "cell"}):
            return True
    return False


def sanitizer_errors(program: Program, memory: MemoryPlan | None = None) -> int:
    """Races that PyTorch's CUDA sanitizer sees; it is told one pointer for each range that accesses have in common."""
    from torch.cuda._sanitizer import EventHandler

    found = accesses(program, memory)
    ends = [np.stack([found.space, end], axis=1) for end in (found.low, found.high)]
    atoms, places = np.unique(np.concatenate(ends), axis=0, return_inverse=True)
    first, last = places.reshape(2, -1)
    handler, errors = EventHandler(), 0
    for pointer in range(1, len(atoms) + 1):
        handler._handle_memory_allocation(pointer)
    streams = {stream.name: number for number, stream in enumerate(program.streams, 1)}
    for number in streams.values():
        handler._handle_stream_creation(number)
    for event in range(program.events):
        handler._handle_event_creation(event)
    for at, step in enumerate(program.instructions):
        stream = streams[step.stream]
        if isinstance(step, Record):
            handler._handle_event_record(step.event, stream)
        elif isinstance(step, Wait):
            handler._handle_event_wait(step.event, stream)
        else:
            reads, writes = (
                {
                    atom + 1
                    for k in np.flatnonzero((found.step == at) & (found.writes == kind))
                    for atom in range(first[k], last[k])
                }
                for kind in (0, 1)
            )
            named = {pointer: ["x"] for pointer in reads | writes}
            errors += len(handler._handle_kernel_launch(stream, reads - writes, writes, set(), step.name, named))
    return errors


def _with(program: Program, step: Copy) -> Program:
    return replace(program, instructions=(step, *program.instructions))
