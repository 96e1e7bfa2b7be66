"""List scheduling inside the fluid simulation: whenever a stream is idle, the most urgent node that suits it starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import accumulate
from math import inf

from nanort.errors import CapacityError, PolicyError
from nanort.scheduling.flat import Flat
from nanort.scheduling.structures import CORESIDENT, Structure
from nanort.simulation.fluid import Trace, simulate

PATH, FEED = "path", "feed"
ORDERS = (PATH, FEED)
"""What makes a node urgent: a long path to the end, or a short one to the next long memory-bound node."""

LIGHT, COMPUTE, MEMORY = "light", "compute", "memory"


def serial(flat: Flat, saturation: int) -> Trace:
    """Every node after the one before it, in graph order, on the whole device."""
    end = list(accumulate(flat.modes(saturation, flat.device.sms).seconds))
    return Trace([0.0, *end[:-1]][: len(end)], end, [0] * len(end), list(range(len(end))))


class Outline:
    """What list scheduling knows of a graph before it has a structure.

    Attributes:
        roles: of each kind: ``LIGHT`` if it is shorter than the mean node, otherwise ``MEMORY`` or ``COMPUTE`` by what
            bounds it on the whole device.
        counts: how many nodes there are of each kind.
        path: seconds of the longest path from each node to the end, on the whole device.
    """

    def __init__(self, flat: Flat, saturation: int) -> None:
        self.flat = flat
        self.saturation = saturation
        costs, sms = flat.costs(saturation), flat.device.sms
        seconds, alone = flat.modes(saturation, sms).seconds, flat.kind_costs(saturation, sms)
        kernels = [alone[kind].seconds for kind in flat.kinds if not flat.examples[kind].demand.engine]
        mean = sum(kernels) / len(kernels) if kernels else 0.0
        self.roles = [
            LIGHT if cost.seconds < mean else COMPUTE if costs.bound_by(node) == "compute" else MEMORY
            for node, cost in zip(flat.examples, alone, strict=True)
        ]
        self.path = [0.0] * len(flat)
        for node in range(len(flat) - 1, -1, -1):
            self.path[node] = seconds[node] + max((self.path[succ] for succ in flat.succs[node]), default=0.0)
        self.counts = Counter(flat.kinds)
        self._feeds: dict[int, list[float]] = {}

    def feed(self, sms: int) -> list[float]:
        """Seconds from the start of each node to the next long memory-bound one, on ``sms`` SMs; inf without one."""
        if sms not in self._feeds:
            flat, seconds = self.flat, self.flat.modes(self.saturation, sms).seconds
            heavy = [self.roles[kind] == MEMORY for kind in flat.kinds]
            feed = self._feeds[sms] = [inf] * len(flat)
            for node in range(len(flat) - 1, -1, -1):
                feed[node] = seconds[node] + min((0.0 if heavy[s] else feed[s] for s in flat.succs[node]), default=inf)
        return self._feeds[sms]


def dispatch(
    outline: Outline, structure: Structure, order: str = PATH, borrow: bool = False, offsets: Sequence[float] = ()
) -> Trace:
    """The plan of list scheduling in one structure.

    Args:
        outline: the graph.
        structure: its streams.
        order: one of ``ORDERS``.
        borrow: whether an idle memory group may take compute-bound nodes.
        offsets: for each kind of node, seconds by which it is less urgent than its order says.

    Raises:
        PolicyError: a node is pinned to a stream that the structure does not have.
        CapacityError: a node needs more SMs than its stream has.
    """
    flat, policy = outline.flat, _Dispatch(outline, structure, order, borrow, offsets)
    shared = flat.coresidence(outline.saturation, structure.streams) if structure.mechanism == CORESIDENT else None
    return simulate(len(flat), policy.modes, policy, shared)


class _Dispatch:
    """The policy of one structure.

    Long memory-bound nodes go to the memory stream, long compute-bound ones to the compute stream, and light ones to
    whichever of the two is idle: a norm must not queue behind a long read of the KV cache. A node that is ready alone
    while both are idle gets the whole device. With ``borrow``, an idle memory stream takes a compute-bound node if that
    ends no later than it would on the compute stream, and before the next long memory-bound node can be ready.
    """

    def __init__(
        self, outline: Outline, structure: Structure, order: str, borrow: bool, offsets: Sequence[float]
    ) -> None:
        flat = outline.flat
        self.modes = [flat.modes(outline.saturation, stream.sms) for stream in structure.streams]
        self.compute, self.memory, self.alone = structure.compute, structure.memory, structure.alone
        self.pinned: set[int] = set()
        self.homes = _homes(flat, structure, outline.roles, self.pinned)
        feed = outline.feed(structure.streams[self.compute].sms)
        self.keys = _keys(outline.path, feed, order)
        if offsets:
            self.keys = [key + offsets[kind] for key, kind in zip(self.keys, flat.kinds, strict=True)]
        self.after = [f - s for f, s in zip(feed, self.modes[self.compute].seconds, strict=True)]
        self.borrow = borrow
        self.succs = flat.succs
        self.missing = [len(preds) for preds in flat.preds]
        self.queues: list[list[tuple[float, int]]] = [[] for _ in range(len(structure.streams) + 1)]
        self.light = self.queues[-1]
        for node, missing in enumerate(self.missing):
            if not missing:
                heappush(self.queues[self.homes[node]], (self.keys[node], node))

    def done(self, node: int) -> None:
        """Queues what was waiting for ``node`` alone."""
        for succ in self.succs[node]:
            self.missing[succ] -= 1
            if not self.missing[succ]:
                heappush(self.queues[self.homes[succ]], (self.keys[succ], succ))

    def next(self, lane: int, running: Sequence[int], left: Sequence[float]) -> int:
        """The most urgent node for this stream."""
        own, alone = self.queues[lane], self.alone
        if lane != self.compute and lane != self.memory:
            return self._alone(running) if lane == alone else heappop(own)[1] if own else -1
        if alone >= 0 and (running[alone] >= 0 or self.queues[alone]):
            return -1
        if self.light and (not own or self.light[0] < own[0]):
            return heappop(self.light)[1]
        if own:
            return heappop(own)[1]
        return self._borrowed(running, left) if self.borrow and lane == self.memory else -1

    def _alone(self, running: Sequence[int]) -> int:
        """A node for the whole device, once both groups are idle: one that fits nowhere else, or the only one ready."""
        if running[self.compute] >= 0 or running[self.memory] >= 0:
            return -1
        if own := self.queues[self.alone]:
            return heappop(own)[1]
        ready = [queue for queue in (self.queues[self.compute], self.queues[self.memory], self.light) if queue]
        if len(ready) != 1 or len(ready[0]) != 1:
            return -1
        node = ready[0][0][1]
        here, *there = (self.modes[lane].seconds[node] for lane in (self.alone, self.compute, self.memory))
        return ready[0].pop()[1] if here < min(there) and node not in self.pinned else -1

    def _borrowed(self, running: Sequence[int], left: Sequence[float]) -> int:
        queue, busy = self.queues[self.compute], running[self.compute]
        if not queue or busy < 0 or (node := queue[0][1]) in self.pinned:
            return -1
        here, there = self.modes[self.memory].seconds[node], self.modes[self.compute].seconds[node]
        now = left[self.compute]
        return heappop(queue)[1] if here <= min(now + there, now + self.after[busy]) else -1


def _keys(path: list[float], feed: list[float], order: str) -> list[float]:
    """What sorts ready nodes, the most urgent first."""
    if order == PATH:
        return [-seconds for seconds in path]
    last = max((seconds for seconds in feed if seconds < inf), default=0.0) + max(path, default=0.0)
    return [near if near < inf else last - far for near, far in zip(feed, path, strict=True)]


def _homes(flat: Flat, structure: Structure, roles: list[str], pinned: set[int]) -> list[int]:
    """The queue of each node: a stream's, or the last for light ones; ``pinned`` gets those that the user placed."""
    saturation = flat.device.hbm_saturation_sms[1]
    names = {stream.name: lane for lane, stream in enumerate(structure.streams)}
    fits = [[cost.seconds < inf for cost in flat.kind_costs(saturation, stream.sms)] for stream in structure.streams]
    shared = len(structure.streams) if structure.compute != structure.memory else structure.compute
    homes = []
    for kind, (node, role) in enumerate(zip(flat.examples, roles, strict=True)):
        if engine := node.demand.engine:
            homes.append(names[engine])
            continue
        able = [lane for lane in (structure.compute, structure.memory) if fits[lane][kind]]
        if role == LIGHT and len(able) == 2:
            homes.append(shared)
        else:
            choice = structure.memory if role == MEMORY else structure.compute
            homes.append(choice if choice in able else able[0] if able else structure.alone)
    found = [homes[kind] for kind in flat.kinds]
    for index, node in enumerate(flat.graph.nodes):
        if node.stream is not None:
            if node.stream not in names:
                raise PolicyError(
                    f"{node.where}: {node.name} is pinned to stream {node.stream!r}, which {structure} plans lack"
                )
            found[index] = names[node.stream]
            pinned.add(index)
            if not fits[found[index]][flat.kinds[index]]:
                least, have = node.span[0], structure.streams[found[index]].sms
                raise CapacityError(f"{node.where}: {node.name} needs {least} SMs, stream {node.stream!r} has {have}")
    return found
