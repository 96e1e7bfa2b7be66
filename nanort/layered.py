"""Where the nodes of a DAG lie when it is drawn: in rows from top to bottom, with few edges that cross."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from nanort.errors import GraphError

LARGEST = 2000
"""Nodes of a DAG up to which a person can read it, and it is laid out in about a second."""
BENDS = 10_000  # in all: the longest edges of a graph that would need more are drawn straight
SWEEPS = 8
APART = (1.0, 0.6, 0.15)  # widths of a box between neighbours in a row, by how many of the two are bends
PULL = (1.0, 0.05, 4.0)  # of a link on its two ends, likewise: long edges are straight and pull no node aside

Chain = tuple[int, ...]
"""An edge as vertices: its source, a bend in every row on the way, its target. Bends are numbered on from the nodes."""


@dataclass(frozen=True, slots=True)
class Layered:
    """Places of nodes: ``x`` in widths of a box, ``y`` the row; an edge is ``(source, target, x of each bend)``.

    An edge has a bend in every row between its ends, or none at all where it is to be drawn straight.
    """

    x: tuple[float, ...]
    y: tuple[int, ...]
    edges: tuple[tuple[int, int, tuple[float, ...]], ...]


def layered(preds: Sequence[Sequence[int]]) -> Layered:
    """Places for nodes that have these predecessors, by Sugiyama's method.

    Rows are longest paths. Then every row is ordered by the mean place of its neighbours, down and up again, and of all
    orders the one is kept in which the fewest edges cross. At last nodes move towards their neighbours, as near as the
    order and the width of boxes allow.

    Raises:
        GraphError: there is a cycle.
    """
    row = _rows(preds)
    edges = [(pred, node) for node, before in enumerate(preds) for pred in dict.fromkeys(before)]
    chains = _chains(edges, row)
    rows = _members(chains, row)
    links = [pair for chain in chains for pair in pairwise(chain)]
    above, below = _neighbours(links, rows)
    rows = _uncrossed(rows, above, below)
    x = _placed(rows, above, below, len(preds))
    drawn = tuple((chain[0], chain[-1], tuple(x[bend] for bend in chain[1:-1])) for chain in chains)
    return Layered(tuple(x[: len(preds)]), tuple(row), drawn)


def _rows(preds: Sequence[Sequence[int]]) -> list[int]:
    """The row of each node: one below the lowest of its predecessors; one without any, right above its first reader."""
    readers: list[list[int]] = [[] for _ in preds]
    for node, before in enumerate(preds):
        for pred in before:
            readers[pred].append(node)
    row, missing = [0] * len(preds), [len(before) for before in preds]
    ready = [node for node, count in enumerate(missing) if not count]
    for node in ready:
        for reader in readers[node]:
            row[reader] = max(row[reader], row[node] + 1)
            missing[reader] -= 1
            if not missing[reader]:
                ready.append(reader)
    if len(ready) < len(preds):
        stuck = next(node for node, count in enumerate(missing) if count)
        raise GraphError(f"node {stuck} of {len(preds)} lies on a cycle: only a graph without one can be laid out")
    return [
        min((row[reader] for reader in after), default=1) - 1 if not before else at
        for before, after, at in zip(preds, readers, row, strict=True)
    ]


def _chains(edges: list[tuple[int, int]], row: list[int]) -> list[Chain]:
    """Every edge with its bends, the short ones first: those are given bends while there are any to give."""
    chains, made, count = list[Chain](), 0, len(row)
    for source, target in sorted(edges, key=lambda edge: row[edge[1]] - row[edge[0]]):
        between = row[target] - row[source] - 1
        if made + between > BENDS:
            between = 0
        chains.append((source, *range(count + made, count + made + between), target))
        made += between
    return chains


def _members(chains: list[Chain], row: list[int]) -> list[list[int]]:
    """The vertices of each row: its nodes, then the bends in it."""
    rows: list[list[int]] = [[] for _ in range(max(row, default=-1) + 1)]
    for node, at in enumerate(row):
        rows[at].append(node)
    for chain in chains:
        for at, bend in enumerate(chain[1:-1], row[chain[0]] + 1):
            rows[at].append(bend)
    return rows


def _neighbours(links: list[tuple[int, int]], rows: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Of every vertex, those above and those below that a link of two adjacent rows leads to."""
    at = {vertex: depth for depth, members in enumerate(rows) for vertex in members}
    above: list[list[int]] = [[] for _ in at]
    below: list[list[int]] = [[] for _ in at]
    for source, target in links:
        if at[target] - at[source] == 1:
            above[target].append(source)
            below[source].append(target)
    return above, below


def _uncrossed(rows: list[list[int]], above: list[list[int]], below: list[list[int]]) -> list[list[int]]:
    """The rows in an order in which few links cross."""
    place = [0.0] * len(above)
    for members in rows:
        for at, vertex in enumerate(members):
            place[vertex] = at
    best, least = rows, _crossings(rows, below, place)
    for sweep in range(SWEEPS):
        if not least:
            break
        rows, neighbours = [list(members) for members in rows], below if sweep % 2 else above
        for members in reversed(rows) if sweep % 2 else rows:
            wanted = {vertex: _mean(neighbours[vertex], place, place[vertex]) for vertex in members}
            members.sort(key=wanted.__getitem__)
            for at, vertex in enumerate(members):
                place[vertex] = at
        if (crossings := _crossings(rows, below, place)) < least:
            best, least = rows, crossings
    return best


def _crossings(rows: list[list[int]], below: list[list[int]], place: list[float]) -> int:
    """How many pairs of links cross."""
    count = 0
    for members in rows:
        passed: list[float] = []  # ends of the links that begin further left
        for vertex in members:
            ends = [place[other] for other in below[vertex]]
            count += sum(len(passed) - bisect_right(passed, end) for end in ends)
            for end in ends:
                insort(passed, end)
    return count


def _placed(rows: list[list[int]], above: list[list[int]], below: list[list[int]], nodes: int) -> list[float]:
    """The x of every vertex, from 0 on: near its neighbours, in the order of its row, no box on another."""
    x = [0.0] * len(above)
    pulls = [
        [(other, PULL[(vertex >= nodes) + (other >= nodes)]) for other in up + down]
        for vertex, (up, down) in enumerate(zip(above, below, strict=True))
    ]
    weights = [sum(pull for _, pull in of) or PULL[1] for of in pulls]
    gaps = [
        list(accumulate((APART[(a >= nodes) + (b >= nodes)] for a, b in pairwise(members)), initial=0.0))
        for members in rows
    ]
    for members, offsets in zip(rows, gaps, strict=True):
        for vertex, offset in zip(members, offsets, strict=True):
            x[vertex] = offset - offsets[-1] / 2
    for sweep in range(2 * SWEEPS):
        for depth in reversed(range(len(rows))) if sweep % 2 else range(len(rows)):
            members, offsets = rows[depth], gaps[depth]
            wanted = [
                (
                    sum(x[other] * pull for other, pull in pulls[vertex]) / weights[vertex]
                    if pulls[vertex]
                    else x[vertex]
                )
                - offset
                for vertex, offset in zip(members, offsets, strict=True)
            ]
            found = _ascending(wanted, [weights[vertex] for vertex in members])
            for vertex, at, offset in zip(members, found, offsets, strict=True):
                x[vertex] = at + offset
    left = min(x, default=0.0)
    return [round(at - left, 3) for at in x]


def _ascending(wanted: list[float], weights: list[float]) -> list[float]:
    """The figures in ascending order that are nearest to the wanted ones in the weighted sum of squares."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length: neighbours that must share one figure
    for value, weight in zip(wanted, weights, strict=True):
        mean, total, length = value, weight, 1
        while blocks and blocks[-1][0] > mean:
            other, more, longer = blocks.pop()
            mean, total, length = (mean * total + other * more) / (total + more), total + more, length + longer
        blocks.append((mean, total, length))
    return [mean for mean, _, length in blocks for _ in range(length)]


def _mean(vertices: list[int], of: list[float], default: float) -> float:
    return sum(of[vertex] for vertex in vertices) / len(vertices) if vertices else default
