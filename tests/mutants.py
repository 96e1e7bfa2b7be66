"""Programs and memory plans that were broken on purpose, each in one place."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

from nanort.programs.memory import ALIGNMENT, MemoryPlan
from nanort.programs.program import Copy, Launch, Program, View, Wait
from nanort.values import contiguous

Mutant = tuple[Program, MemoryPlan]


def dropped_waits(program: Program, memory: MemoryPlan) -> Iterator[Mutant]:
    """Each wait left out."""
    steps = program.instructions
    for at, step in enumerate(steps):
        if isinstance(step, Wait):
            yield replace(program, instructions=steps[:at] + steps[at + 1 :]), memory


def swapped_launches(program: Program, memory: MemoryPlan) -> Iterator[Mutant]:
    """Each two neighbours of a stream in each other's place; records and waits stay where they are."""
    steps = program.instructions
    for stream in program.streams:
        own = [at for at, s in enumerate(steps) if isinstance(s, (Launch, Copy)) and s.stream == stream.name]
        for one, other in pairwise(own):
            changed = list(steps)
            changed[one], changed[other] = steps[other], steps[one]
            yield replace(program, instructions=tuple(changed)), memory


def shortened_lives(program: Program, memory: MemoryPlan) -> Iterator[Mutant]:
    """Each buffer in the place of another, as if that one were over sooner or had begun later."""
    places = [at for at, offset in enumerate(memory.device) if offset is not None]
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
                    changed = (*program.instructions[:at], replace(step, outs=outs), *program.instructions[at + 1 :])
                    yield replace(program, instructions=changed), memory


KINDS: dict[str, Callable[[Program, MemoryPlan], Iterator[Mutant]]] = {
    "dropped wait": dropped_waits,
    "swapped launches": swapped_launches,
    "shortened life": shortened_lives,
    "shifted buffer": shifted_buffers,
    "widened write": widened_writes,
}


def drawn(program: Program, memory: MemoryPlan, rng: random.Random) -> Mutant | None:
    """One mutant of a random kind; None where there is none of it."""
    found = list(KINDS[rng.choice(list(KINDS))](program, memory))
    return rng.choice(found) if found else None


def _moved(memory: MemoryPlan, buffer: int, offset: int) -> MemoryPlan:
    device = (*memory.device[:buffer], offset, *memory.device[buffer + 1 :])
    return replace(memory, device=device)
