"""The demands of a graph as a table: what each operator asks for in all, and what binds it alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from nanort.devices import Device
from nanort.graph import Graph
from nanort.timeline.units import plain


@dataclass(frozen=True, slots=True)
class DemandTable:
    """One row per operator, largest work first; prints aligned.

    ``rows`` holds (operator, count, flops, hbm_bytes, pcie_bytes, what binds most of its calls alone on the device).
    """

    rows: tuple[tuple[str, int, float, float, float, str], ...]

    def __str__(self) -> str:
        head = f"{'operator':20} {'count':>6} {'GFLOP':>10} {'MB of HBM':>10} {'MB of PCIe':>10}  bound by"
        lines = [
            f"{plain(name, 20):20} {count:>6,} {flops / 1e9:>10,.2f} {hbm / 1e6:>10,.1f} {pcie / 1e6:>10,.1f}  {bound}"
            for name, count, flops, hbm, pcie, bound in self.rows
        ]
        return "\n".join([head, *lines])


def demand_table(graph: Graph, device: Device) -> DemandTable:
    """What each operator of ``graph`` asks for; ``device`` says what binds it."""
    graph.seal()
    bounds = dict[str, Counter[str]]()
    sums: dict[str, list[float]] = {}
    for node in graph.nodes:
        demand = node.demand
        row = sums.setdefault(node.op.name, [0, 0.0, 0.0, 0.0])
        for k, amount in enumerate((1, demand.flops, demand.hbm_bytes, demand.h2d_bytes + demand.d2h_bytes)):
            row[k] += amount
        bounds.setdefault(node.op.name, Counter())[node.bound_by(device)] += 1
    ordered = sorted(sums.items(), key=lambda item: (-item[1][1], -item[1][2], item[0]))
    return DemandTable(
        tuple(
            (name, int(n), flops, hbm, pcie, bounds[name].most_common(1)[0][0])
            for name, (n, flops, hbm, pcie) in ordered
        )
    )
