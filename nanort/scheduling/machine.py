"""The fluid simulator and list scheduling in machine code: bit for bit what fluid.py and list_schedule.py compute.

Everything here is arrays and integers, since that is what a compiler takes; the modules named above say what it means.
``tests/test_machine.py`` holds the two together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nanort.compiled import Floats, Floats2, Floats3, Ints, Ints2, compiled
from nanort.scheduling.heaps import add, take
from nanort.simulation.fluid import TINY

BOTH, COMPUTE, MEMORY, ALONE, COPY = range(5)
QUEUES_OF_ROLES = 4


class Tables(NamedTuple):
    """What nodes take: each by its ``kind``, and by the ``row`` of its stream."""

    kind: Ints  # [nodes]
    row: Ints  # [streams]
    seconds: Floats  # [rows, kinds]
    sms: Ints  # [rows, kinds]
    shares: Floats  # [links, rows, kinds]


class Edges(NamedTuple):
    """How many nodes each waits for, which is counted down, those that wait for it, and those that it waits for.

    A node takes ``event`` seconds longer if one that it waits for ran on another stream.
    """

    missing: Ints  # [nodes]
    ptr: Ints  # [nodes + 1]
    succs: Ints
    pred_ptr: Ints  # [nodes + 1]
    preds: Ints
    event: float


class Sharing(NamedTuple):
    """How streams share SMs, if they do; streams that share are bits, a slowdown of 0 was not measured."""

    used: bool
    with_: Ints  # [streams]
    sms: Ints  # [streams], of their groups
    operator: Ints  # [nodes]
    slowdown: Floats  # [2, operators, operators], of the one and of the other
    kind: Ints  # [nodes]
    solo: Floats  # [kinds, SMs + 1], seconds


class Lists(NamedTuple):
    """What decides, where it is not decided yet; queues and streams that exclude each other are bits."""

    used: bool
    queue: Ints  # [nodes]
    rank: Ints  # [nodes]
    by_rank: Ints  # [nodes]
    serves: Ints  # [streams]
    rivals: Ints  # [streams]
    roles: Ints  # [streams]
    alone: int
    borrow: bool
    after: Floats  # [nodes]


class Queues(NamedTuple):
    """What is decided: the nodes of each stream, from ``head`` to ``tail``."""

    head: Ints  # [streams]
    tail: Ints  # [streams]
    node: Ints  # [nodes]


class Written(NamedTuple):
    """A fluid.Trace."""

    start: Floats
    end: Floats
    lane: Ints
    order: Ints


@compiled
def water_fill(drawn: Floats, weights: Ints, got: Floats) -> None:
    """See fluid.water_fill; ``got`` is written."""
    lanes, copies, holders, kernels = len(drawn), 0.0, 0, 0
    for lane in range(lanes):
        got[lane] = 1.0
        holders += weights[lane]
        if weights[lane] == 0:
            copies += drawn[lane]
        else:
            kernels += 1
    if copies > 1.0:
        for lane in range(lanes):
            if drawn[lane] != 0.0:
                got[lane] = 0.0 if weights[lane] else 1.0 / copies
        return
    free, last, level = 1.0 - copies, -1, -1.0
    for _ in range(kernels):  # by share per SM, ties by lane
        best = -1
        for lane in range(lanes):
            if weights[lane] and (best < 0 or drawn[lane] / weights[lane] < drawn[best] / weights[best]):
                per_sm = drawn[lane] / weights[lane]
                if per_sm > level or (per_sm == level and lane > last):
                    best = lane
        share, weight = drawn[best], weights[best]
        last, level = best, share / weight
        if level * holders > free:
            got[best] = free * weight / holders / share
        free -= share * got[best]
        holders -= weight


@compiled
def listed(
    lane: int, running: Ints, left: Floats, heaps: Ints2, sizes: Ints, filled: Ints, by_rank: Ints, serves: Ints,
    roles: Ints, alone: int, borrow: bool, after: Floats, seconds: Floats2, row: Ints, kind: Ints,
) -> int:  # fmt: skip  # a line an argument would be a page
    """See ListDispatch.next: the node that ``lane`` starts, or -1."""
    role, waiting = roles[lane], serves[lane] & filled[0]
    if role == ALONE:
        for queue in range(len(sizes)):
            if waiting >> queue & 1:
                return take(queue, heaps, sizes, filled, by_rank)
        only = -1
        for queue in range(QUEUES_OF_ROLES):
            if sizes[queue] > 1 or (sizes[queue] and only >= 0):
                return -1
            if sizes[queue]:
                only = queue
        if only < 0:
            return -1
        node, there = by_rank[heaps[only, 0]], np.inf
        for other in range(len(roles)):
            if roles[other] == COMPUTE or roles[other] == MEMORY:
                there = min(there, seconds[row[other], kind[node]])
        return take(only, heaps, sizes, filled, by_rank) if seconds[row[lane], kind[node]] < there else -1
    if role != COPY and alone >= 0 and serves[alone] & filled[0]:
        return -1
    if waiting:
        best = -1
        for queue in range(len(sizes)):
            if waiting >> queue & 1 and (best < 0 or heaps[queue, 0] < heaps[best, 0]):
                best = queue
        return take(best, heaps, sizes, filled, by_rank)
    if not borrow or role != MEMORY or not sizes[0]:
        return -1
    busy = -1
    for other in range(len(roles)):
        if roles[other] == COMPUTE and (busy < 0 or left[other] < left[busy]):
            busy = other
    if busy < 0 or running[busy] < 0:
        return -1
    node = by_rank[heaps[0, 0]]
    soon = left[busy] + min(seconds[row[busy], kind[node]], after[running[busy]])
    return take(0, heaps, sizes, filled, by_rank) if seconds[row[lane], kind[node]] <= soon else -1


@compiled
def share_sms(
    busy: Ints, count: int, running: Ints, sms: Ints, with_: Ints, group: Ints, operator: Ints, slowdown: Floats3,
    kind: Ints, solo: Floats2, speeds: Floats, held: Ints,
) -> None:  # fmt: skip  # a line an argument would be a page
    """See Coresidence.speeds; ``speeds`` and ``held`` are written."""
    for lane in range(len(sms)):
        speeds[lane], held[lane] = 1.0, sms[lane]
    for place in range(count):
        lane = busy[place]
        if sms[lane] == 0:
            continue
        free = group[lane]
        for before in range(place):
            other = busy[before]
            if with_[lane] >> other & 1 and held[other]:
                mine, theirs = operator[running[lane]], operator[running[other]]
                if slowdown[0, mine, theirs] == 0.0:
                    free -= held[other]
                else:
                    speeds[lane] /= slowdown[0, mine, theirs]
                    speeds[other] /= slowdown[1, mine, theirs]
        if free < sms[lane]:
            held[lane] = max(free, 0)
            mine = kind[running[lane]]
            speeds[lane] *= solo[mine, sms[lane]] / solo[mine, free] if free > 0 else 0.0


def play(tables: Tables, edges: Edges, sharing: Sharing, lists: Lists, queues: Queues, trace: Written) -> int:
    """Plays all nodes and writes ``trace``; how many have ended: fewer than all where they wait in a circle."""
    fields: tuple[Any, ...] = (*tables, *edges, *sharing, *lists, *queues, *trace)
    return _play(*fields)


@compiled
def _play(
    kind: Ints, row: Ints, seconds: Floats2, asks: Ints2, shares: Floats3,
    missing: Ints, ptr: Ints, succs: Ints, pred_ptr: Ints, preds: Ints, event: float,
    sharing: bool, with_: Ints, group: Ints, operator: Ints, slowdown: Floats3, solo_kind: Ints, solo: Floats2,
    listing: bool, queue: Ints, rank: Ints, by_rank: Ints, serves: Ints, rivals: Ints, roles: Ints, alone: int,
    borrow: bool, after: Floats,
    head: Ints, tail: Ints, queued: Ints,
    start: Floats, end: Floats, on: Ints, order: Ints,
) -> int:  # fmt: skip  # a line an argument would be a page; tuples would be pickled by name into the compiler's cache
    """The fields of the tuples above, in their order."""
    lanes, links, nodes = len(row), len(shares), len(kind)
    running, busy = np.full(lanes, -1, np.int64), np.empty(lanes, np.int64)
    left, slack = np.full(lanes, np.inf), np.zeros(lanes)
    sms, held = np.zeros(lanes, np.int64), np.zeros(lanes, np.int64)
    draws, drawn = np.zeros((links, lanes)), np.zeros(lanes)
    speeds, rates, filled = np.ones(lanes), np.ones(lanes), np.ones(lanes)
    heaps = np.empty((lanes + QUEUES_OF_ROLES, nodes if listing else 0), np.int64)
    sizes, full = np.zeros(len(heaps), np.int64), np.zeros(1, np.int64)
    if listing:
        for node in range(nodes):
            if missing[node] == 0:
                add(queue[node], rank[node], heaps, sizes, full)
    now, active, started, done = 0.0, 0, 0, 0
    while True:
        for lane in range(lanes):
            if running[lane] >= 0:
                continue
            node, free = -1, True
            if listing:
                for other in range(lanes):
                    if rivals[lane] >> other & 1 and running[other] >= 0:
                        free = False
                if free:
                    node = listed(
                        lane, running, left, heaps, sizes, full, by_rank, serves,
                        roles, alone, borrow, after, seconds, row, kind,
                    )  # fmt: skip
            elif head[lane] < tail[lane] and missing[queued[head[lane]]] == 0:
                node = queued[head[lane]]
                head[lane] += 1
            if node < 0:
                continue
            mode, crossed = kind[node], False
            running[lane], left[lane], sms[lane] = node, seconds[row[lane], mode], asks[row[lane], mode]
            if listing:
                for at in range(pred_ptr[node], pred_ptr[node + 1]):
                    crossed = crossed or on[preds[at]] != lane
            scale = 1.0
            if crossed:
                left[lane] += event
                scale = seconds[row[lane], mode] / left[lane]
            slack[lane] = left[lane] * TINY
            for link in range(links):
                draws[link, lane] = shares[link, row[lane], mode] * scale
            start[node], on[node], order[started] = now, lane, node
            started += 1
            busy[active] = lane
            active += 1
        if active == 0:
            return done
        if sharing:
            share_sms(busy, active, running, sms, with_, group, operator, slowdown, solo_kind, solo, speeds, held)
        plain = not sharing
        for lane in range(lanes):
            rates[lane] = speeds[lane]
        for link in range(links):
            total = 0.0
            for lane in range(lanes):
                drawn[lane] = draws[link, lane] * speeds[lane]
                total += drawn[lane]
            if total > 1.0:
                plain = False
                water_fill(drawn, held if sharing else sms, filled)
                for lane in range(lanes):
                    rates[lane] = min(rates[lane], speeds[lane] * filled[lane])
        step = np.inf
        for place in range(active):
            lane = busy[place]
            if plain:
                step = min(step, left[lane])
            elif rates[lane] > 0.0:
                step = min(step, left[lane] / rates[lane])
        if step == np.inf:
            return done
        for place in range(active):
            lane = busy[place]
            left[lane] -= step if plain else step * rates[lane]
        now += step
        kept = 0
        for place in range(active):
            lane = busy[place]
            if left[lane] > slack[lane]:
                busy[kept] = lane
                kept += 1
                continue
            node = running[lane]
            running[lane], left[lane], sms[lane] = -1, np.inf, 0
            for link in range(links):
                draws[link, lane] = 0.0
            end[node] = now
            done += 1
            for at in range(ptr[node], ptr[node + 1]):
                succ = succs[at]
                missing[succ] -= 1
                if listing and missing[succ] == 0:
                    add(queue[succ], rank[succ], heaps, sizes, full)
        active = kept
