"""What two streams on the same SMs can do at most: a price for each node that no moment can earn more than its length.

Let a moment run two nodes, each at some part of its speed alone. If prices per second of solo work are such that no two
nodes which can run at once earn more than a second a second, then all nodes together take as many seconds as they cost.
The best prices are the solution of a small linear program, the dual of spreading the work over alone and together; any
others give a bound as well, only a lower one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement

import numpy as np

from nanort.compiled import Floats
from nanort.costs.roofline import Costs
from nanort.nodes import Node

CLASSES = 64
"""Of operators, in the linear program: the ones that take longest; what is left costs nothing."""

PIVOTS = 2_000
"""After so many steps the prices found so far are used."""

TINY = 1e-12


def prices(nodes: Sequence[Node], seconds: Sequence[float], counts: Sequence[int], costs: Costs) -> list[float]:
    """For a node of each kind, the seconds that it adds at least to any schedule on two streams of the whole device.

    A node holds all SMs that it can use. Two whose operators were measured together run at their slowdowns; otherwise
    the later one has the SMs that the first leaves over. Copies run beside everything and cost nothing.

    Args:
        nodes: one of each kind.
        seconds: the fewest that it takes alone.
        counts: how many there are.
        costs: seconds on fewer SMs, and the measured pairs.
    """
    total = costs.device.sms
    classes: dict[tuple[str, int], list[int]] = {}
    for kind, node in enumerate(nodes):
        if not node.demand.engine:
            most = node.span_on(costs.device.kind)[1]
            held = total if most is None else min(most, total)
            classes.setdefault((node.op.name, held), []).append(kind)
    work = {key: sum(seconds[kind] * counts[kind] for kind in members) for key, members in classes.items()}
    heaviest = sorted(classes, key=lambda key: -work[key])[:CLASSES]
    slowdowns = costs.profile.slowdowns if costs.profile else {}

    def left_over(key: tuple[str, int], free: int) -> float:
        """The part of its speed that a node of this class can have on ``free`` SMs."""
        if free >= key[1]:
            return 1.0
        able = [kind for kind in classes[key] if nodes[kind].span[0] <= free]
        speeds = (seconds[kind] / costs.solo(nodes[kind], free).seconds for kind in able if seconds[kind])
        return min(1.0, max(speeds, default=0.0))

    moments = [np.eye(len(heaviest))]
    for (one, a), (other, b) in combinations_with_replacement(enumerate(heaviest), 2):
        if (pair := slowdowns.get((a[0], b[0]))) is not None:
            speeds = [(1 / pair[0], 1 / pair[1])]
        elif (pair := slowdowns.get((b[0], a[0]))) is not None:
            speeds = [(1 / pair[1], 1 / pair[0])]
        else:
            speeds = [(1.0, left_over(b, total - a[1])), (left_over(a, total - b[1]), 1.0)]
        for first, second in speeds:
            moment = np.zeros((1, len(heaviest)))
            moment[0, one] += first
            moment[0, other] += second
            moments.append(moment)
    rates = best_prices(np.concatenate(moments), np.array([work[key] for key in heaviest]))
    found = [0.0] * len(nodes)
    for key, rate in zip(heaviest, rates.tolist(), strict=True):
        for kind in classes[key]:
            found[kind] = rate * seconds[kind]
    return found


def best_prices(moments: Floats, work: Floats) -> Floats:
    """The prices of zero or more that make ``work`` cost most while no row of ``moments`` earns more than 1.

    The simplex method, from all prices zero; whatever rounding does, the prices it returns keep to every row.
    """
    rows, columns = moments.shape
    table = np.block([[moments, np.ones((rows, 1))], [-work[None, :], np.zeros((1, 1))]])
    outside, inside = np.arange(columns), np.arange(columns, columns + rows)
    for _ in range(PIVOTS):
        column = int(np.argmin(table[-1, :-1])) if columns else 0
        if not columns or table[-1, column] >= -TINY * max(work.max(), TINY):
            break
        entering = table[:-1, column]
        usable = entering > TINY
        ratios = np.full(rows, np.inf)
        ratios[usable] = table[:-1, -1][usable] / entering[usable]
        row = int(np.argmin(ratios))
        _pivot(table, row, column)
        inside[row], outside[column] = outside[column], inside[row]
    found = np.zeros(columns)
    priced = inside < columns
    found[inside[priced]] = np.maximum(table[:-1, -1][priced], 0.0)
    return found / max(1.0, float((moments @ found).max(initial=0.0)))


def _pivot(table: Floats, row: int, column: int) -> None:
    """Exchanges the variable of a row with that of a column, in place."""
    pivot, entering = table[row, column], table[:, column].copy()
    leaving = table[row] / pivot
    table -= np.outer(entering, leaving)
    table[row] = leaving
    table[:, column] = -entering / pivot
    table[row, column] = 1 / pivot
