"""MemoryPlan: where in one arena each buffer that a program makes lies, its bytes reused where the order allows it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nanort.compiled import Ints
from nanort.errors import CapacityError
from nanort.programs.program import Copy, Launch, Program, Record, View, Wait
from nanort.timeline.units import percent

ALIGNMENT = 256
"""Bytes of which all offsets and both arenas are multiples, as the driver aligns what it allocates."""

PLANNED = ("result", "join", "empty")
"""The kinds of buffers that a program makes itself; all others are bound from outside."""

PROMOTIONS = 16
"""How often what lies at the top of an arena is tried at its bottom."""


@dataclass(frozen=True, slots=True, eq=False)
class Lives:
    """Which part of a run buffers are in use: its steps as streams, records and waits order them, never as time does.

    A buffer lives from before the first launch or copy that touches it until after the last one, be it by reading or
    by writing, in part or in place; an output lives until the end of the run.

    Attributes:
        buffers: their indices in the program.
        sizes: bytes of each, rounded up to the alignment.
        since: [buffers, streams] how many steps of each stream are surely over before anything touches the buffer.
        until: [buffers, streams] which step of each stream touches it last, counted from one; 0 where none does.
    """

    buffers: Sequence[int]
    sizes: Ints
    since: Ints
    until: Ints

    def rivals(self) -> list[Ints]:
        """For each buffer, itself and those that may be in use while it is: neither is surely over before the other."""
        return [
            np.flatnonzero(~((self.until <= since).all(1) | (until <= self.since).all(1)))
            for since, until in zip(self.since, self.until, strict=True)
        ]

    def order(self) -> npt.NDArray[np.bool_]:
        """[buffers, buffers] whether the first is over before the second begins: a strict partial order."""
        return np.array([(until <= self.since).all(1) for until in self.until], dtype=np.bool_)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Offsets, in bytes, of the buffers that a program makes, in an arena of the device and one of pinned host memory.

    Attributes:
        device: by buffer, where it begins in the device's arena; None for what is not in it.
        host: the same for the host's arena.
        device_bytes: the size of the device's arena.
        host_bytes: the size of the host's arena.
        lives: of the buffers in the device's arena.
    """

    device: tuple[int | None, ...] = field(repr=False)
    host: tuple[int | None, ...] = field(repr=False)
    device_bytes: int
    host_bytes: int
    lives: Lives = field(repr=False, compare=False)

    def __str__(self) -> str:
        saved = 1 - self.device_bytes / self.separate_bytes if self.separate_bytes else 0.0
        return (
            f"device memory: {self.device_bytes:,} bytes for {self.lower_bound:,} in use at once, {percent(saved)} less"
            f" than without reuse\npinned host memory: {self.host_bytes:,} bytes"
        )

    @property
    def separate_bytes(self) -> int:
        """Bytes of the device that its buffers would take without reuse."""
        return int(self.lives.sizes.sum())

    @property
    def lower_bound(self) -> int:
        """Bytes of the device that no plan of this program can do without: the most that may be in use at once.

        Computed whenever it is asked for, which takes longer than the plan.
        """
        return heaviest_antichain(self.lives.order(), self.lives.sizes)


def plan_memory(program: Program, budget: int | None = None, *, slots: Collection[int] = ()) -> MemoryPlan:
    """Where the buffers of ``program`` lie; two share bytes only if its order has one over before the other begins.

    So sharing adds no wait. Inputs, constants and states are bound from outside and have no place; nor do buffers that
    nothing touches. Views and the parts of joins lie in their buffer and need none of their own.

    Args:
        program: what runs, each run after the end of the one before.
        budget: the most bytes that the device's arena may have.
        slots: buffers that exist twice, so that the host may read one while the next run writes the other: outputs and
            what the host stages. They are left out, and whoever asks for them allocates both.

    Raises:
        CapacityError: the budget is too small; it says which would do.
    """
    since, until = _touches(program)
    made = [b for b in program.buffers if b.kind in PLANNED and b.index not in slots and until[b.index].any()]
    arenas = []
    for on_host in (False, True):
        buffers = [buffer for buffer in made if (buffer.device == "host") == on_host]
        indices = [buffer.index for buffer in buffers]
        sizes = np.array([-(-buffer.nbytes // ALIGNMENT) * ALIGNMENT for buffer in buffers], dtype=np.int64)
        arenas.append(Lives(indices, sizes, since[indices], until[indices]))
    places = [_pack(lives) for lives in arenas]
    device_bytes, host_bytes = (_top(offsets, lives.sizes) for offsets, lives in zip(places, arenas, strict=True))
    if budget is not None and device_bytes > budget:
        raise CapacityError(
            f"{program.name}: what its operators make needs {device_bytes:,} bytes of device memory, the budget is"
            f" {budget:,}: {device_bytes:,} would do, and a smaller batch needs less"
        )
    device, host = (_by_buffer(program, lives, offsets) for lives, offsets in zip(arenas, places, strict=True))
    return MemoryPlan(device, host, device_bytes, host_bytes, arenas[0])


def _touches(program: Program) -> tuple[Ints, Ints]:
    """``since`` and ``until`` of Lives, for every buffer of the program.

    By vector clocks: for each stream, how many steps of every stream are over before its next one starts.
    """
    lanes = {stream.name: lane for lane, stream in enumerate(program.streams)}
    end = len(program.instructions)
    clocks = np.zeros((len(lanes), len(lanes)), dtype=np.int64)
    events: dict[int, Ints] = {}
    since = np.full((len(program.buffers), len(lanes)), end, dtype=np.int64)
    until = np.zeros_like(since)
    for step in program.instructions:
        lane = lanes[step.stream]
        clock = clocks[lane]
        if isinstance(step, Record):
            events[step.event] = clock.copy()
        elif isinstance(step, Wait):
            np.maximum(clock, events.get(step.event, 0), out=clock)  # an event that is not recorded orders nothing
        else:
            touched = _touched(step)
            since[touched] = np.minimum(since[touched], clock)
            clock[lane] += 1
            until[touched, lane] = clock[lane]
    until[[view.buffer for view in program.outputs.values()]] = end + 1
    return since, until


def _touched(step: Launch | Copy) -> list[int]:
    """The buffers that a step reads or writes."""
    views = (step.source, step.target) if isinstance(step, Copy) else (*step.args, *step.outs)
    return list({view.buffer for view in views if isinstance(view, View)})


def _pack(lives: Lives) -> Ints:
    """Offsets of the buffers by first fit: the lowest arena that a few orders find.

    The best of them is then changed: what lay at the top is placed before all others, again and again.
    """
    sizes, rivals = lives.sizes, lives.rivals()
    crowd = np.array([float(sizes[others].sum()) for others in rivals])
    orders = (np.argsort(-sizes, kind="stable"), np.argsort(-sizes * crowd, kind="stable"), np.arange(len(sizes)))
    found = [(_first_fit(order, sizes, rivals), order) for order in orders]
    best, order = min(found, key=lambda one: _top(one[0], sizes))
    offsets = best
    for _ in range(PROMOTIONS):
        highest = (offsets + sizes)[order] == _top(offsets, sizes)
        order = np.concatenate([order[highest], order[~highest]])
        offsets = _first_fit(order, sizes, rivals)
        best = min(best, offsets, key=lambda one: _top(one, sizes))
    return best


def _first_fit(order: Ints, sizes: Ints, rivals: Sequence[Ints]) -> Ints:
    """Offsets of the buffers, each placed in ``order`` at the lowest that its rivals leave free."""
    offsets = np.full(len(sizes), -1, dtype=np.int64)
    for buffer in order:
        near = rivals[buffer]
        near = near[offsets[near] >= 0]
        near = near[np.argsort(offsets[near], kind="stable")]
        begins = offsets[near]
        floors = np.maximum.accumulate(np.concatenate([[0], begins + sizes[near]]))  # above 0, 1, 2, ... of them
        fits = begins - floors[:-1] >= sizes[buffer]
        offsets[buffer] = floors[fits.argmax() if fits.any() else -1]
    return offsets


def _top(offsets: Ints, sizes: Ints) -> int:
    return int((offsets + sizes).max(initial=0))


def _by_buffer(program: Program, lives: Lives, offsets: Ints) -> tuple[int | None, ...]:
    places = dict(zip(lives.buffers, offsets.tolist(), strict=True))
    return tuple(places.get(buffer.index) for buffer in program.buffers)


def heaviest_antichain(order: npt.NDArray[np.bool_], weights: Ints) -> int:
    """The most that items weigh of which none comes before another, in a strict partial order.

    By Dilworth's theorem: all weights less what a maximum flow takes from items to later ones. The flow goes along the
    transitive reduction, on through items between, so that its network stays sparse.

    Args:
        order: [items, items] whether the first comes before the second.
        weights: of the items, 0 or more.
    """
    import networkx as nx  # late: only this needs it

    dense = order.astype(np.float32)
    network = nx.DiGraph()
    network.add_nodes_from(("source", "sink"))
    for item, weight in enumerate(weights.tolist()):
        network.add_edge("source", ("from", item), capacity=weight)
        network.add_edge(("to", item), "sink", capacity=weight)
        network.add_edge(("to", item), ("from", item))
    for earlier, later in np.argwhere(order & ~(dense @ dense > 0)).tolist():
        network.add_edge(("from", earlier), ("to", later))
    return int(weights.sum()) - int(nx.maximum_flow_value(network, "source", "sink"))
