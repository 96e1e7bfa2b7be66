"""Lower bounds: seconds that no schedule of a graph can beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from nanort.costs.roofline import Costs
from nanort.graph import Graph
from nanort.nodes import Node

LINKS = ("hbm", "h2d", "d2h", "net")


@dataclass(frozen=True, slots=True)
class Bounds:
    """Seconds that a makespan cannot be below, each for its own reason.

    Attributes:
        critical_path: the longest path, every node on the SMs that suit it best.
        sms: SM-seconds of all nodes, each where it takes fewest, over all SMs; 0 where a profile says that nodes share
            SMs better than one after the other.
        hbm, h2d, d2h, net: bytes of all nodes at full bandwidth.

    The last five count what must happen before the first and after the last node that uses the resource.
    """

    critical_path: float
    sms: float
    hbm: float
    h2d: float
    d2h: float
    net: float

    @property
    def best(self) -> float:
        """The largest of them."""
        return float(getattr(self, self.limit))

    @property
    def limit(self) -> str:
        """The name of the largest of them."""
        return max((field.name for field in fields(self)), key=lambda name: getattr(self, name))


def bounds(graph: Graph, costs: Costs) -> Bounds:
    """Lower bounds for every schedule of ``graph`` that is not cut further."""
    kinds: dict[object, tuple[float, dict[str, float]]] = {}
    works = []
    for node in graph.nodes:
        key = costs.key(node)
        if key not in kinds:
            kinds[key] = _work(node, costs)
        works.append(kinds[key])
    preds = [[pred for pred, _ in node.preds] for node in graph.nodes]
    succs: list[list[int]] = [[] for _ in preds]
    for index, before in enumerate(preds):
        for pred in before:
            succs[pred].append(index)
    seconds = [shortest for shortest, _ in works]
    heads = _longest(seconds, preds, range(len(preds)))
    tails = _longest(seconds, succs, range(len(preds) - 1, -1, -1))
    found = {"critical_path": max(map(sum, zip(heads, seconds, strict=True)), default=0.0)}
    for name in ("sms", *LINKS):
        users = [index for index, (_, work) in enumerate(works) if work[name]]
        total = sum(works[index][1][name] for index in users)
        found[name] = total + min((heads[i] for i in users), default=0.0) + min((tails[i] for i in users), default=0.0)
    return Bounds(**found)


def _longest(seconds: Sequence[float], before: Sequence[Sequence[int]], order: range) -> list[float]:
    """For each node, the longest path that must have run before it; ``order`` is topological."""
    found = [0.0] * len(seconds)
    for node in order:
        found[node] = max((found[other] + seconds[other] for other in before[node]), default=0.0)
    return found


def ideal(graph: Graph, costs: Costs) -> tuple[float, str]:
    """Seconds that the busiest unit needs for the work alone, were launches free and all else hidden, and its name."""
    rates = {"compute": 0.0, "hbm": 0.0, "h2d": 0.0, "d2h": 0.0, "net": 0.0}
    for node in graph.nodes:
        cost = costs.solo(node, costs.device.sms)
        rates["compute"] += min(node.demand.flops / costs.device.rate(node.dtype), cost.seconds)
        for name in LINKS:
            rates[name] += getattr(cost, name) * cost.seconds
    name = max(rates, key=lambda unit: rates[unit])
    return rates[name], name


def _work(node: Node, costs: Costs) -> tuple[float, dict[str, float]]:
    """The fewest seconds that a node can take, and the seconds of each whole resource that it needs at least."""
    found = {sms: costs.solo(node, sms) for sms in _telling_sms(node, costs)}
    fastest = min(found.values(), key=lambda cost: cost.seconds)
    work = {name: getattr(fastest, name) * fastest.seconds for name in LINKS}
    shared = costs.profile is not None and costs.profile.pairs
    work["sms"] = 0.0 if shared else min(sms * cost.seconds for sms, cost in found.items()) / costs.device.sms
    return fastest.seconds, work


def fewest_sms(node: Node, costs: Costs) -> float:
    """Seconds of the whole device that a node needs at least; 0 where a profile says that nodes share SMs well."""
    return _work(node, costs)[1]["sms"]


def _telling_sms(node: Node, costs: Costs) -> set[int]:
    """SM counts among which the least seconds and the least SM-seconds are.

    Seconds fall and SM-seconds rise with the SMs in the cost model, and change one way between measured counts; so the
    extremes lie at the ends of the node's range and at measured counts.
    """
    least, most = node.span[0], costs.device.sms if node.span[1] is None else min(node.span[1], costs.device.sms)
    measured = costs.profile.measured_sms(node) if costs.profile else set()
    return {least, most} | {sms for sms in measured if least <= sms <= most}
