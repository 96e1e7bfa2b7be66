"""Waits: the fewest events that keep every order which a plan relies on, whatever the streams' real speeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nanort.graph import Graph
from nanort.partition import Stream


@dataclass(frozen=True, slots=True)
class Wait:
    """Node ``node`` starts after node ``on`` of another stream has ended.

    The reason is "data", "state" or "after", as the graph has it, or "resource": the two would hold the same SMs.
    """

    node: int
    on: int
    reason: str


def exclusive(streams: Sequence[Stream]) -> list[tuple[int, ...]]:
    """For each stream, the others whose groups overlap its own without being the same: only one of them may run."""
    groups = [stream.group for stream in streams]
    return [
        tuple(
            other
            for other, rival in enumerate(groups)
            if group and rival and group.name != rival.name and group.overlaps(rival)
        )
        for group in groups
    ]


def waits(graph: Graph, streams: Sequence[Stream], order: Sequence[int], lane: Sequence[int]) -> tuple[Wait, ...]:
    """The transitive reduction of all orders across streams, given that each stream runs its nodes in ``order``.

    Args:
        graph: its edges must be kept.
        streams: what runs it; those whose groups overlap exclude each other.
        order: every node, in order of its planned start.
        lane: the stream of each node.

    A vector clock says, for each stream, how many of its nodes have ended before a node starts; an edge that a clock
    implies already needs no event. Linear in the edges.
    """
    rivals, nodes = exclusive(streams), graph.nodes
    position, clocks = [0] * len(nodes), [list[int]()] * len(nodes)
    last, found = [-1] * len(streams), list[Wait]()
    for node in order:
        own = lane[node]
        clock = clocks[last[own]].copy() if last[own] >= 0 else [0] * len(streams)
        needed: dict[int, Wait] = {}  # by stream: the latest node there that this one must wait for
        for other in rivals[own]:
            if last[other] >= 0 and position[last[other]] > clock[other]:
                needed[other] = Wait(node, last[other], "resource")
        for pred, reason in nodes[node].preds:
            other = lane[pred]
            latest = position[needed[other].on] if other in needed else clock[other] + 1
            if other != own and position[pred] >= latest:
                needed[other] = Wait(node, pred, reason)
        for other, wait in needed.items():
            if not any(clocks[rest.on][other] >= position[wait.on] for at, rest in needed.items() if at != other):
                found.append(wait)
        for wait in needed.values():
            clock = list(map(max, clock, clocks[wait.on]))
        position[node] = clock[own] = clock[own] + 1
        clocks[node] = clock
        last[own] = node
    return tuple(found)
