"""Lower bounds: seconds that no schedule of a graph can beat, and seconds that none of a mechanism can.

Every bound but the longest path prices each node in seconds of something that only one node can have whole: a
bandwidth, the device's arithmetic, its SMs. What must happen before the first and after the last of them adds to it.

Where all nodes but one come before that one or after it, as in a decoder that is not cut, nothing overlaps across it:
the graph falls into stretches, and a bound is the sum of what each of them takes at least.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from nanort.compiled import Floats, Ints
from nanort.costs.roofline import Cost, Costs, rounds
from nanort.graph import Graph
from nanort.nodes import Node
from nanort.partition import Group
from nanort.scheduling.coresident import prices
from nanort.timeline.units import duration

LINKS = ("hbm", "h2d", "d2h", "net")
UNITS = ("compute", *LINKS)
PHYSICAL = ("critical_path", *UNITS)
NAMES = {
    "critical_path": "longest path",
    "compute": "compute",
    "hbm": "device memory",
    "h2d": "PCIe down",
    "d2h": "PCIe up",
    "net": "network",
    "sms": "SMs",
    "coresident": "shared SMs",
}
THRESHOLDS = 64
"""Heads, and tails, of which every two make a window; more of them raise a bound by little."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Seconds that a makespan cannot be below, each for its own reason; prints both families.

    Attributes:
        critical_path: the longest path, every node on the SMs that suit it best.
        compute: FLOPs at the device's rate for their dtype.
        hbm, h2d, d2h, net: bytes at full bandwidth.
        sms: device-seconds of disjoint groups of SMs, each node in the group where it takes fewest.
        coresident: streams that share SMs, at the slowdowns that were measured; 0 where no group has two lanes.
        own: which of the last two holds on the groups that were asked about; "" if neither is known to.

    The physical family, all but the last two, holds for every mechanism: what fusion or co-residency could reach. All
    but the first are the best over windows: the work of the nodes that cannot start before some time and must end some
    time before the end, and both times, in which a stretch of the graph takes as long as its longest path or that work.
    """

    critical_path: float
    compute: float
    hbm: float
    h2d: float
    d2h: float
    net: float
    sms: float
    coresident: float
    own: str = ""

    def __str__(self) -> str:
        rows = [(family, *self.largest(names)) for family, names in self.families.items()]
        return "\n".join(f"{family:<12} {duration(seconds)}: {NAMES[name]}" for family, name, seconds in rows)

    @property
    def seconds(self) -> dict[str, float]:
        """All of them, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "own"}

    @property
    def families(self) -> dict[str, tuple[str, ...]]:
        """The bounds in each family; the physical ones hold in all."""
        families = {"physical": PHYSICAL, "partitioned": (*PHYSICAL, "sms")}
        return families | ({"co-resident": (*PHYSICAL, "coresident")} if self.own == "coresident" else {})

    @property
    def physical(self) -> tuple[str, float]:
        """Name and seconds of the bound for every mechanism: what fusion or co-residency could reach."""
        return self.largest(PHYSICAL)

    @property
    def partitioned(self) -> tuple[str, float]:
        """Name and seconds of the bound for one node at a time on each SM: what disjoint SM groups could reach."""
        return self.largest((*PHYSICAL, "sms"))

    @property
    def limit(self) -> str:
        """The name of the largest that applies."""
        return self.largest((*PHYSICAL, self.own) if self.own else PHYSICAL)[0]

    @property
    def best(self) -> float:
        """The largest that applies."""
        return float(getattr(self, self.limit))

    def largest(self, names: Sequence[str]) -> tuple[str, float]:
        """Name and seconds of the largest of ``names``."""
        name = max(names, key=lambda name: getattr(self, name))
        return name, float(getattr(self, name))


def bounds(graph: Graph, costs: Costs, groups: Sequence[Group] = ()) -> Bounds:
    """Lower bounds for the schedules of ``graph``, not cut further, on ``groups`` of SMs.

    Groups of one lane run a node at a time on each SM: the partitioned family applies. Lanes that share SMs are
    co-resident. Of schedules on other groups than these, only the physical family is known to hold.
    """
    examples, kinds = _kinds(graph, costs)
    works = [_work(node, costs) for node in examples]
    table = {name: np.array([work[name] for work in works]) for name in ("seconds", *UNITS, "sms")}
    table["compute"] /= _overrun(examples, works, costs, groups)
    own = "coresident" if any(group.lanes > 1 for group in groups) else "sms" if groups else ""
    table["coresident"] = np.zeros(len(works))
    if own == "coresident":
        table["coresident"] = _shared(examples, works, np.bincount(kinds, minlength=len(works)), costs, groups)
    if not works:
        return Bounds(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, own)
    seconds = table.pop("seconds")[kinds]
    heads, tails = _paths(graph, seconds.tolist())
    stretches = _Stretches(graph, heads, seconds)
    found = {name: _windows(*stretches.lifted(work[kinds], heads, tails)) for name, work in table.items()}
    return Bounds(critical_path=float((heads + seconds).max()), own=own, **found)


def ideal(graph: Graph, costs: Costs) -> tuple[float, str]:
    """Seconds that the busiest unit needs for the work alone, were launches free and all else hidden, and its name.

    Of the uncut graph it holds for every cut as well: pieces may overtake each other, but move no byte less.
    """
    examples, kinds = _kinds(graph, costs)
    works = [_work(node, costs) for node in examples]
    counts = np.bincount(kinds, minlength=len(works)).tolist()
    sums = {name: sum(work[name] * count for work, count in zip(works, counts, strict=True)) for name in UNITS}
    name = max(sums, key=lambda unit: sums[unit])
    return sums[name], name


def fewest_sms(node: Node, costs: Costs) -> float:
    """Seconds of the whole device that a node needs at least; 0 where a profile says that nodes share SMs well."""
    if costs.profile is not None and costs.profile.pairs:
        return 0.0
    return _energy({sms: costs.solo(node, sms) for sms in _telling_sms(node, costs)}, costs)


def _kinds(graph: Graph, costs: Costs) -> tuple[list[Node], Ints]:
    """A node of every kind, and the kind of every node; nodes of one kind cost the same."""
    seen: dict[Hashable, int] = {}
    examples, kinds = list[Node](), list[int]()
    for node in graph.nodes:
        kind = seen.setdefault(costs.key(node), len(seen))
        if kind == len(examples):
            examples.append(node)
        kinds.append(kind)
    return examples, np.array(kinds, dtype=np.int64)


def _work(node: Node, costs: Costs) -> dict[str, float]:
    """The fewest seconds that a node can take, and the seconds of each whole resource that it needs at least."""
    found = {sms: costs.solo(node, sms) for sms in _telling_sms(node, costs)}
    fastest = min(found.values(), key=lambda cost: cost.seconds)
    work = {name: getattr(fastest, name) * fastest.seconds for name in LINKS}
    work["seconds"] = fastest.seconds
    work["compute"] = min(node.demand.flops / costs.device.rate(node.dtype), _energy(found, costs))
    work["sms"] = _grouped(node, costs)
    return work


def _energy(found: dict[int, Cost], costs: Costs) -> float:
    """The fewest device-seconds, were SMs given one by one."""
    return min(sms * cost.seconds for sms, cost in found.items()) / costs.device.sms


def _grouped(node: Node, costs: Costs) -> float:
    """The fewest device-seconds of a node that has the whole device, or a group of it, for itself.

    A group holds a multiple of the granularity, and all groups together no more than the partitionable SMs. A node that
    can use fewer SMs than its group has keeps the others from everyone else.
    """
    device, least = costs.device, node.span[0]
    if node.demand.engine:
        return 0.0
    alone = costs.solo(node, device.sms).seconds
    grain, usable = device.sm_granularity, device.partitionable_sms
    smallest = -(-max(least, device.sm_minimum) // grain) * grain
    if smallest > usable:
        return alone
    sizes = range(smallest, usable + 1, grain)
    return min(alone, *(sms * costs.solo(node, sms).seconds / usable for sms in sizes))


def _telling_sms(node: Node, costs: Costs) -> set[int]:
    """SM counts among which the least seconds and the least SM-seconds are.

    Seconds fall and SM-seconds rise with the SMs in the cost model, and change one way between measured counts; so the
    extremes lie at the ends of the node's range and at measured counts. Where arithmetic is done in rounds of tiles,
    they lie at the fewest SMs that save a round as well.
    """
    least, most = node.span_on(costs.device.kind)
    most = costs.device.sms if most is None else min(most, costs.device.sms)
    measured = costs.profile.measured_sms(node) if costs.profile else set()
    tiles = node.demand.tiles if costs.device.kind == "cuda" and least else 0
    saving = {-(-tiles // rounds(tiles, sms)) for sms in range(least, most + 1)} if tiles else set()
    return {least, most} | {sms for sms in measured | saving if least <= sms <= most}


def _overrun(
    examples: Sequence[Node], works: Sequence[dict[str, float]], costs: Costs, groups: Sequence[Group]
) -> float:
    """How many times the device's arithmetic the nodes on the same SMs do at once, by their measured slowdowns.

    More than once where rates are stated too low, or where the slowdowns were measured on smaller calls.
    """
    if costs.profile is None or not costs.profile.pairs:
        return 1.0
    busy: dict[str, float] = {}
    for node, work in zip(examples, works, strict=True):
        if work["seconds"]:
            busy[node.op.name] = max(busy.get(node.op.name, 0.0), work["compute"] / work["seconds"])
    crowd = sum(group.lanes for group in groups if group.lanes > 1)
    if crowd > 2:  # pairs tell nothing of three at once, but none of them is faster than alone
        return float(crowd)
    pairs = costs.profile.pairs
    return max(
        1.0,
        *(busy.get(p.first, 0.0) / p.first_slowdown + busy.get(p.second, 0.0) / p.second_slowdown for p in pairs),
    )


def _shared(
    examples: Sequence[Node], works: Sequence[dict[str, float]], counts: Ints, costs: Costs, groups: Sequence[Group]
) -> Floats:
    """Seconds that a node of each kind adds at least where lanes share SMs; pairs tell nothing of three at once."""
    if len(groups) == 1 and groups[0].units is None and groups[0].lanes == 2:
        return np.array(prices(examples, [work["seconds"] for work in works], counts.tolist(), costs))
    return np.array([fewest_sms(node, costs) for node in examples])


def _waists(graph: Graph) -> npt.NDArray[np.bool_]:
    """For each node, whether every other one must run before it or after it."""
    count = len(graph.nodes)
    first, last = [count] * count, [-1] * count  # of its successors, of its predecessors
    for index, node in enumerate(graph.nodes):
        for pred, _ in node.preds:
            first[pred] = min(first[pred], index)
            last[index] = max(last[index], pred)
    # All before a node come to it if each of them comes to one that is no later, and all after it alike.
    places = np.arange(count)
    ended = np.maximum.accumulate([0, *first[:-1]]) <= places
    begun = np.minimum.accumulate([count, *last[:0:-1]])[::-1] >= places
    found: npt.NDArray[np.bool_] = ended & begun
    return found


class _Stretches:
    """The parts of a graph that run one after the other: each waist is one, and so is what lies between two of them.

    Args:
        graph: not empty.
        heads, seconds: of its nodes, the longest path before each, and the least that it takes.
    """

    def __init__(self, graph: Graph, heads: Floats, seconds: Floats) -> None:
        waists = _waists(graph)
        begins = waists | np.concatenate(([True], waists[:-1]))
        self._starts, self._number = np.flatnonzero(begins), np.cumsum(begins) - 1
        self._longest = np.maximum.reduceat(heads + seconds, self._starts) - heads[self._starts]

    def lifted(self, work: Floats, heads: Floats, tails: Floats) -> tuple[Floats, Floats, Floats]:
        """``work`` on one resource, and heads and tails with what stretches take longer by it than by their paths."""
        more = np.maximum(0.0, np.add.reduceat(work, self._starts) - self._longest)
        until = np.cumsum(more)
        return work, heads + (until - more)[self._number], tails + (until[-1] - until)[self._number]


def _paths(graph: Graph, seconds: Sequence[float]) -> tuple[Floats, Floats]:
    """For each node, the longest path that must run before it and after it."""
    heads, tails = [0.0] * len(seconds), [0.0] * len(seconds)
    for index, node in enumerate(graph.nodes):
        head = 0.0
        for pred, _ in node.preds:
            if (reached := heads[pred] + seconds[pred]) > head:
                head = reached
        heads[index] = head
    for index in range(len(seconds) - 1, -1, -1):
        reached = tails[index] + seconds[index]
        for pred, _ in graph.nodes[index].preds:
            if reached > tails[pred]:
                tails[pred] = reached
    return np.array(heads), np.array(tails)


def _windows(work: Floats, heads: Floats, tails: Floats) -> float:
    """The most seconds of head, work and tail over all windows: the work whose heads and tails are no shorter."""
    users = work > 0
    work, heads, tails = work[users], heads[users], tails[users]
    if not len(work):
        return 0.0
    starts, ends = _thresholds(heads), _thresholds(tails)
    row = np.searchsorted(starts, heads, side="right") - 1
    column = np.searchsorted(ends, tails, side="right") - 1
    cells = np.zeros((len(starts), len(ends)))
    np.add.at(cells, (row, column), work)
    inside = cells[::-1, ::-1].cumsum(0).cumsum(1)[::-1, ::-1]
    return float(np.where(inside > 0, starts[:, None] + inside + ends, 0.0).max())


def _thresholds(times: Floats) -> Floats:
    """Some of ``times``, evenly spread over them, the smallest among them."""
    distinct = np.unique(times)
    picked = np.linspace(0, len(distinct) - 1, min(len(distinct), THRESHOLDS)).astype(np.int64)
    return distinct[picked]
