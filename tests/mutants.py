"""Programs and memory plans that were broken on purpose, each in one place."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations, pairwise

from nanort.programs.memory import ALIGNMENT, MemoryPlan
from nanort.programs.program import Copy, Instruction, Launch, Program, Record, View, Wait
from nanort.values import contiguous

Mutant = tuple[Program, MemoryPlan]
Kind = Callable[[Program, MemoryPlan], Iterator[Mutant]]


def dropped_waits(program: Program, memory: MemoryPlan) -> Iterator[Mutant]:
    """Each wait left out."""
    return _dropped(program, memory, Wait)


def dropped_records(program: Program, memory: MemoryPlan) -> Iterator[Mutant]:
    """Each record left out, so that waits for its event order nothing."""
    return _dropped(program, memory, Record)


def dropped_launches(program: Program, memory: MemoryPlan) -> Iterator[Mutant]:
    """Each launch or copy left out."""
    return _dropped(program, memory, (Launch, Copy))


def late_waits(program: Program, memory: MemoryPlan) -> Iterator[Mutant]:
    """Each wait after the next step of its stream instead of before it."""
    steps = program.instructions
    for at, step in enumerate(steps):
        if isinstance(step, Wait):
            own = (other for other in range(at + 1, len(steps)) if steps[other].stream == step.stream)
            if (after := next((o for o in own if isinstance(steps[o], (Launch, Copy))), None)) is not None:
                moved = (*steps[:at], *steps[at + 1 : after + 1], step, *steps[after + 1 :])
                yield replace(program, instructions=moved), memory


def early_records(program: Program, memory: MemoryPlan) -> Iterator[Mutant]:
    """Each record before the last step of its stream instead of after it."""
    steps = program.instructions
    for at, step in enumerate(steps):
        if isinstance(step, Record):
            own = (other for other in reversed(range(at)) if steps[other].stream == step.stream)
            before = next(o for o in own if isinstance(steps[o], (Launch, Copy)))
            moved = (*steps[:before], step, *steps[before:at], *steps[at + 1 :])
            yield replace(program, instructions=moved), memory


def other_events(program: Program, memory: MemoryPlan) -> Iterator[Mutant]:
    """Each wait for every other event."""
    events = sorted({step.event for step in program.instructions if isinstance(step, Record)})
    for at, step in enumerate(program.instructions):
        if isinstance(step, Wait):
            for event in events:
                if event != step.event:
                    yield _with(program, at, replace(step, event=event)), memory


def other_streams(program: Program, memory: MemoryPlan) -> Iterator[Mutant]:
    """Each launch or copy on every other stream, waits and records left where they are."""
    for at, step in enumerate(program.instructions):
        if isinstance(step, (Launch, Copy)):
            for stream in program.streams:
                if stream.name != step.stream:
                    yield _with(program, at, replace(step, stream=stream.name)), memory


def swapped_launches(program: Program, memory: MemoryPlan) -> Iterator[Mutant]:
    """Each two neighbours of a stream in each other's place; records and waits stay where they are."""
    steps = program.instructions
    for stream in program.streams:
        own = [at for at, s in enumerate(steps) if isinstance(s, (Launch, Copy)) and s.stream == stream.name]
        for one, other in pairwise(own):
            yield _with(_with(program, one, steps[other]), other, steps[one]), memory


def swapped_buffers(program: Program, memory: MemoryPlan) -> Iterator[Mutant]:
    """Each two buffers in each other's place."""
    for one, other in combinations(_placed(memory), 2):
        here, there = memory.device[one], memory.device[other]
        if here != there and here is not None and there is not None:
            yield program, _moved(_moved(memory, one, there), other, here)


def shortened_lives(program: Program, memory: MemoryPlan) -> Iterator[Mutant]:
    """Each buffer in the place of another, as if that one were over sooner or had begun later."""
    places = _placed(memory)
    for one in places:
        for other in places:
            if memory.device[one] != memory.device[other]:
                yield program, _moved(memory, one, memory.device[other] or 0)


def shifted_buffers(program: Program, memory: MemoryPlan) -> Iterator[Mutant]:
    """Each buffer a little further on, by an alignment or by one element."""
    for at, offset in enumerate(memory.device):
        for far in (ALIGNMENT, -ALIGNMENT, program.buffers[at].dtype.itemsize):
            if offset is not None and offset + far >= 0:
                yield program, _moved(memory, at, offset + far)


def widened_writes(program: Program, memory: MemoryPlan) -> Iterator[Mutant]:
    """Each result one row longer than it is, where it has rows."""
    for at, step in enumerate(program.instructions):
        if isinstance(step, Launch):
            for number, view in enumerate(step.outs):
                if view.shape and math.prod(view.shape) and view.strides == contiguous(view.shape):
                    longer = View(view.buffer, view.offset, (view.shape[0] + 1, *view.shape[1:]), view.strides)
                    outs = (*step.outs[:number], longer, *step.outs[number + 1 :])
                    yield _with(program, at, replace(step, outs=outs)), memory


KINDS: dict[str, Kind] = {
    "dropped wait": dropped_waits,
    "dropped record": dropped_records,
    "dropped launch": dropped_launches,
    "late wait": late_waits,
    "early record": early_records,
    "other event": other_events,
    "other stream": other_streams,
    "swapped launches": swapped_launches,
    "swapped buffers": swapped_buffers,
    "shortened life": shortened_lives,
    "shifted buffer": shifted_buffers,
    "widened write": widened_writes,
}


def drawn(program: Program, memory: MemoryPlan, rng: random.Random, kind: str, most: int) -> list[Mutant]:
    """Mutants of that kind, chosen at random: so many, or all there are."""
    found = list(KINDS[kind](program, memory))
    return rng.sample(found, min(most, len(found)))


def _dropped(program: Program, memory: MemoryPlan, kind: type | tuple[type, ...]) -> Iterator[Mutant]:
    steps = program.instructions
    for at, step in enumerate(steps):
        if isinstance(step, kind):
            yield replace(program, instructions=steps[:at] + steps[at + 1 :]), memory


def _with(program: Program, at: int, step: Instruction) -> Program:
    """The program with another instruction in that place."""
    steps = program.instructions
    return replace(program, instructions=(*steps[:at], step, *steps[at + 1 :]))


def _placed(memory: MemoryPlan) -> list[int]:
    return [at for at, offset in enumerate(memory.device) if offset is not None]


def _moved(memory: MemoryPlan, buffer: int, offset: int) -> MemoryPlan:
    device = (*memory.device[:buffer], offset, *memory.device[buffer + 1 :])
    return replace(memory, device=device)
