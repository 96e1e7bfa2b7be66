"""Player: list schedules and replays, by machine code where there is a compiler, otherwise by the simulator itself."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING

import numpy as np

from nanort.compiled import COMPILES
from nanort.errors import SimulationError
from nanort.scheduling.flat import Flat
from nanort.scheduling.list_schedule import Homes, ListPolicy
from nanort.scheduling.policy import plan
from nanort.scheduling.structures import ALONE, COMPUTE, Structure
from nanort.scheduling.waits import exclusive
from nanort.scheduling.workload import Workload
from nanort.simulation import fluid
from nanort.simulation.fluid import Trace, simulate, with_events

if TYPE_CHECKING:
    from nanort.scheduling import machine

NONE, NOTHING = np.zeros(1, np.int64), np.zeros(1)


class Player:
    """List policies in one structure, one after the other: what they have in common is made once."""

    def __init__(self, work: Workload, structure: Structure) -> None:
        """Raises PolicyError or CapacityError where a pin cannot be kept."""
        self.work, self.structure = work, structure
        self.homes = Homes(work, structure)
        if not COMPILES:
            return
        from nanort.scheduling import machine

        flat, streams = work.flat, structure.streams
        counts = sorted({stream.sms for stream in streams})
        rows = [flat.table(work.saturation, sms) for sms in counts]
        self.tables = machine.Tables(
            flat.arrays.kinds,
            np.array([counts.index(stream.sms) for stream in streams], np.int64),
            np.stack([seconds for seconds, _, _ in rows]),
            np.stack([sms for _, sms, _ in rows]),
            np.stack([shares for _, _, shares in rows], axis=1),
        )
        self.sharing = _sharing(flat, work.saturation, structure)
        arrays, event = flat.arrays, work.device.event_seconds
        self.edges = machine.Edges(arrays.missing, arrays.ptr, arrays.succs, arrays.pred_ptr, arrays.preds, event)
        self.queues = machine.Queues(NONE, NONE, NONE)
        self.places = np.arange(len(flat))
        self.serves = np.array([_bits(queues) for queues in self.homes.serves], np.int64)
        self.rivals = np.array([_bits(rivals) for rivals in exclusive(streams)], np.int64)
        self.roles = np.array([getattr(machine, role.upper()) for role in structure.roles], np.int64)
        self.alone = next(iter(structure.lanes(ALONE)), -1)
        compute = structure.lanes(COMPUTE)
        self.after = work.after(streams[compute[0]].sms) if compute else NOTHING

    def seconds(self, policy: ListPolicy) -> float:
        """The makespan of what ``policy`` makes."""
        if not COMPILES:
            return plan(policy, self.work, self.structure).makespan
        written = self._written(policy)
        return float(written.end.max(initial=0.0)) if written else self.trace(policy).makespan

    def trace(self, policy: ListPolicy) -> Trace:
        """What ``policy`` makes: the same as ``plan``, sooner.

        Raises:
            PolicyError: a node fits on none of the streams.
        """
        written = self._written(policy) if COMPILES else None
        return (
            _trace(written) if written else plan(policy, self.work, self.structure)
        )  # which says what is left, and why

    def _written(self, policy: ListPolicy) -> machine.Written | None:
        from nanort.scheduling import machine

        by_rank = np.argsort(policy.urgency(self.work, self.structure), kind="stable")
        rank = np.empty_like(by_rank)
        rank[by_rank] = self.places
        lists = machine.Lists(
            True, self.homes.queues(policy.homes), rank, by_rank, self.serves, self.rivals, self.roles, self.alone,
            policy.borrow and self.after is not NOTHING, self.after,
        )  # fmt: skip  # a line a field would be a page
        edges = self.edges._replace(missing=self.edges.missing.copy())
        return _played(self.tables, edges, self.sharing, lists, self.queues)


def replayed(
    flat: Flat,
    structure: Structure,
    order: Sequence[int],
    lane: Sequence[int],
    awaited: Sequence[Sequence[int]],
    at: int,
) -> Trace:
    """What becomes of a plan where ``at`` SMs saturate device memory: streams keep its nodes' order and its waits.

    Args:
        flat: the graph.
        structure: its streams.
        order: every node, by start.
        lane: the stream of each.
        awaited: for each node, those on other streams that it waits for.
        at: the saturation point.
    """
    queues: list[list[int]] = [[] for _ in structure.streams]
    for node in order:
        queues[lane[node]].append(node)
    event = flat.device.event_seconds
    if not COMPILES:
        modes = with_events(flat.placed(at, structure.streams, lane), awaited, event)
        together = flat.coresidence(at, structure.streams) if structure.shares_sms else None
        return simulate(len(flat), [modes] * len(queues), fluid.Queues(queues, awaited), together)
    from nanort.scheduling import machine

    counts = sorted({stream.sms for stream in structure.streams})
    rows = np.array([counts.index(stream.sms) for stream in structure.streams])[np.array(lane, np.int64)]
    found = [flat.table(at, sms) for sms in counts]
    kinds = flat.arrays.kinds
    before = np.stack([seconds for seconds, _, _ in found])[rows, kinds]
    missing = np.array([len(waited) for waited in awaited], np.int64)
    after = np.where(missing > 0, before + event, before)
    scale = np.divide(before, after, out=np.ones_like(before), where=after > before)
    tables = machine.Tables(
        np.arange(len(flat)),
        np.zeros(len(queues), np.int64),
        after[None],
        np.stack([sms for _, sms, _ in found])[rows, kinds][None],
        np.ascontiguousarray(np.stack([shares for _, _, shares in found], axis=1)[:, rows, kinds] * scale)[:, None],
    )
    on = np.array([other for waited in awaited for other in waited], np.int64)
    waiters = np.repeat(np.arange(len(flat)), missing)[np.argsort(on, kind="stable")]
    ptr = np.zeros(len(flat) + 1, np.int64)
    np.cumsum(np.bincount(on, minlength=len(flat)), out=ptr[1:])
    lengths = np.array([len(queue) for queue in queues], np.int64)
    tail = np.cumsum(lengths)
    decided = machine.Queues(tail - lengths, tail, np.array([node for queue in queues for node in queue], np.int64))
    lists = machine.Lists(False, NONE, NONE, NONE, NONE, NONE, NONE, -1, False, NOTHING)
    edges = machine.Edges(missing, ptr, waiters, NONE, NONE, 0.0)
    written = _played(tables, edges, _sharing(flat, at, structure), lists, decided)
    if written is None:
        raise SimulationError("a plan's queues wait for each other in a circle")
    return _trace(written)


def _played(
    tables: machine.Tables,
    edges: machine.Edges,
    sharing: machine.Sharing,
    lists: machine.Lists,
    queues: machine.Queues,
) -> machine.Written | None:
    """What became of it; None if nodes are left."""
    from nanort.scheduling import machine

    count = len(tables.kind)
    written = machine.Written(
        np.full(count, np.nan), np.full(count, np.nan), np.full(count, -1, np.int64), np.empty(count, np.int64)
    )
    return written if machine.play(tables, edges, sharing, lists, queues, written) == count else None


def _trace(written: machine.Written) -> Trace:
    return Trace(written.start.tolist(), written.end.tolist(), written.lane.tolist(), written.order.tolist())


def _sharing(flat: Flat, saturation: int, structure: Structure) -> machine.Sharing:
    """How the streams of a structure share SMs, as arrays."""
    from nanort.scheduling import machine

    if not structure.shares_sms:
        return machine.Sharing(False, NONE, NONE, NONE, np.zeros((2, 1, 1)), NONE, np.zeros((1, 1)))
    together = flat.coresidence(saturation, structure.streams)
    assert together is not None  # lanes of one group share all their SMs
    names = {name: at for at, name in enumerate(dict.fromkeys(flat.operators))}
    slowdown = np.zeros((2, len(names), len(names)))
    for (first, second), slower in together.pairs.items():
        if first in names and second in names:
            slowdown[:, names[first], names[second]] = slower
    sms = [stream.sms for stream in structure.streams]
    solo = np.full((len(flat.examples), max(sms) + 1), inf)
    held = {int(count) for stream in structure.streams for count in flat.table(saturation, stream.sms)[1]}
    reached = set(sms) - {0}
    while more := {free - less for free in reached for less in (*held, *reached) if 0 < less < free} - reached:
        reached |= more  # what may be left over where some hold what others leave over
    for count in {*held, *reached} - {0}:
        solo[:, count] = [cost.seconds for cost in flat.kind_costs(saturation, count)]
    return machine.Sharing(
        True,
        np.array([_bits(lanes) for lanes in together.sharing], np.int64),
        np.array(sms, np.int64),
        np.array([names[name] for name in flat.operators], np.int64),
        slowdown,
        flat.arrays.kinds,
        solo,
    )


def _bits(places: Sequence[int] | frozenset[int]) -> int:
    return sum(1 << place for place in places)
