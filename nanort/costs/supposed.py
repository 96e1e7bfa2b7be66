"""supposed: which operators can share SMs, by what their kernels occupy, before any two were measured together."""

from __future__ import annotations

from collections import defaultdict

from nanort.costs.footprint import Footprint, fit_together, footprint
from nanort.costs.profile import Pair, Profile
from nanort.costs.roofline import Costs, kernel_beside_others
from nanort.devices import Device
from nanort.graph import Graph

SLOWDOWN = 1.15
"""Of a kernel that arithmetic binds, beside one that memory binds: the end of what is plausible, not a measurement."""


def supposed_pairs(graph: Graph, device: Device, profile: Profile | None = None) -> Profile | None:
    """``profile`` with slowdowns supposed of operators that can share SMs; None where no two of the graph can.

    They are those of which one is bound by arithmetic, the other by memory, and whose kernels leave room for each
    other on one SM: registers, shared memory and threads of both fit. The first is taken to be slowed by 1.15, the
    second only by the bandwidth that they share. Nothing of it is measured: plans made with it are to be tried, not
    trusted. A profile that has pairs of its own is better: then there is nothing to suppose.

    Args:
        graph: is sealed.
        device: what it would run on; None of a CPU can share anything.
        profile: measured costs of the device.
    """
    if profile is not None and profile.pairs:
        return None
    bound, occupied = _bound(graph, Costs(device, profile)), dict[str, Footprint]()
    for node in graph.nodes:
        found = footprint(node.op.name, kernel_beside_others(node.op), device.capability)
        if found is not None and not node.demand.engine:
            occupied[node.op.name] = found
    pairs = [
        Pair(busy, idle, SLOWDOWN, 1.0)
        for busy, one in occupied.items()
        for idle, other in occupied.items()
        if (bound[busy], bound[idle]) == ("compute", "memory") and fit_together(one, other, device.capability)
    ]
    if not pairs:
        return None
    if profile is None:
        return Profile(device.name, device.sms, "supposed, not measured", (), pairs)
    return profile.with_pairs(pairs, slowdowns="supposed, not measured")


def _bound(graph: Graph, costs: Costs) -> dict[str, str]:
    """What limits each operator for most of the time that its calls take alone."""
    seconds: dict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for node in graph.seal().nodes:
        seconds[node.op.name][node.bound_by(costs.device)] += costs.solo(node, costs.device.sms).seconds
    return {name: max(told, key=lambda bound: told[bound]) for name, told in seconds.items()}
