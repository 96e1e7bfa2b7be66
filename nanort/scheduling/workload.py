"""Workload: a graph on a device where so many SMs saturate its memory; what a policy may know before it plans."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from math import inf

import numpy as np

from nanort.compiled import Floats
from nanort.devices import Device
from nanort.graph import Graph
from nanort.partition import ENGINES
from nanort.scheduling import structures
from nanort.scheduling.flat import Flat
from nanort.scheduling.structures import Structure

EVEN = 1e-9
"""Nodes that are shorter than the mean by no more than this fraction are as long as the mean."""

LIGHT, COMPUTE, MEMORY = "light", structures.COMPUTE, structures.MEMORY


class Workload:
    """The nodes of a graph by index, what they wait for, and what each takes on so many SMs.

    Attributes:
        flat: the graph as flat lists.
        saturation: SMs that saturate device memory.
        preds, succs: by node, the indices of those before and after it.
        operators: by node, the name of its operator.
        pieces: by node, the nano-batch that it belongs to.
        engines: the copy engines that some node uses.
        roles: by kind of node, ``LIGHT`` if it is shorter than the mean node, otherwise ``MEMORY`` or ``COMPUTE`` by
            what bounds it on the whole device.
        counts: how many nodes there are of each kind.
        path: by node, seconds of the longest path from its start to the end, on the whole device.
    """

    def __init__(self, flat: Flat, saturation: int) -> None:
        self.flat = flat
        self.saturation = saturation
        self.preds, self.succs, self.operators = flat.preds, flat.succs, flat.operators
        used = {node.demand.engine for node in flat.examples}
        self.engines = tuple(engine for engine in ENGINES if engine in used)
        sms = flat.device.sms
        seconds, alone = flat.modes(saturation, sms).seconds, flat.kind_costs(saturation, sms)
        self.counts = Counter(flat.kinds)
        kernels = [
            (alone[kind].seconds, count) for kind, count in self.counts.items() if not flat.examples[kind].demand.engine
        ]
        total = 0.0
        for each, count in kernels:  # sum() rounds otherwise from Python 3.12 on
            total += each * count
        mean = total / max(1, sum(count for _, count in kernels))
        heavy = [COMPUTE if node.bound_by(flat.device) == "compute" else MEMORY for node in flat.examples]
        self.roles = [
            LIGHT if cost.seconds < mean * (1 - EVEN) else role for cost, role in zip(alone, heavy, strict=True)
        ]
        self.path = [0.0] * len(flat)
        for node in range(len(flat) - 1, -1, -1):
            self.path[node] = seconds[node] + max((self.path[succ] for succ in flat.succs[node]), default=0.0)
        self._feeds: dict[int, Floats] = {}

    def __len__(self) -> int:
        return len(self.flat)

    @property
    def graph(self) -> Graph:
        """The graph that is planned, cut already."""
        return self.flat.graph

    @property
    def device(self) -> Device:
        """What it is planned for."""
        return self.flat.device

    @cached_property
    def pieces(self) -> list[int]:
        return [node.piece for node in self.graph.nodes[: len(self)]]

    def engine(self, node: int) -> str:
        """The copy engine that carries ``node``: ``"h2d"``, ``"d2h"``, or ``""`` for a kernel."""
        return self.graph.nodes[node].demand.engine

    def seconds(self, node: int, sms: int) -> float:
        """What ``node`` takes alone on ``sms`` SMs; infinite where it does not fit."""
        return self.flat.kind_costs(self.saturation, sms)[self.flat.kinds[node]].seconds

    def bound_by(self, node: int) -> str:
        """What limits ``node`` alone on the whole device: "compute", "memory", "pcie", "network" or "launch"."""
        return self.graph.nodes[node].bound_by(self.device)

    def feed(self, sms: int) -> Floats:
        """Seconds from the start of each node to the next long memory-bound one, on ``sms`` SMs; inf without one."""
        if sms not in self._feeds:
            flat, seconds = self.flat, self.flat.modes(self.saturation, sms).seconds
            heavy = [self.roles[kind] == MEMORY for kind in flat.kinds]
            feed = [inf] * len(flat)
            for node in range(len(flat) - 1, -1, -1):
                feed[node] = seconds[node] + min((0.0 if heavy[s] else feed[s] for s in flat.succs[node]), default=inf)
            self._feeds[sms] = np.array(feed, np.float64)
        return self._feeds[sms]

    def after(self, sms: int) -> Floats:
        """Seconds from the end of each node on ``sms`` SMs to the start of the next long memory-bound one."""
        with np.errstate(invalid="ignore"):  # infinite less infinite, where a node does not fit
            found: Floats = self.feed(sms) - self.flat.table(self.saturation, sms)[0][self.flat.arrays.kinds]
        return found

    @cached_property
    def path_keys(self) -> Floats:
        """What sorts nodes by the longest path to the end, the longest first."""
        return -np.array(self.path, np.float64)

    def feed_keys(self, sms: int) -> Floats:
        """What sorts nodes by what feeds a long memory-bound node soonest, and the rest by their path after those."""
        feed, path = self.feed(sms), self.path_keys
        last = np.max(feed, where=feed < inf, initial=0.0) + np.max(-path, initial=0.0)
        keys: Floats = np.where(feed < inf, feed, last + path)
        return keys

    def serial(self) -> Structure:
        """One stream for everything, transfers included."""
        return structures.serial(self.device)

    def copies(self) -> Structure:
        """The whole device, and a stream for each copy engine that is used."""
        return structures.copies(self.device, self.engines)

    def coresident(self, lanes: int = 2) -> Structure:
        """So many streams on the whole device, and one for each copy engine that is used."""
        return structures.coresident(
            self.device, self.engines, [MEMORY if lane == 1 else COMPUTE for lane in range(lanes)]
        )

    def isolated(self, *sizes: int) -> Structure:
        """Disjoint groups of ``sizes`` SMs, a stream on each, one on the whole device, and one for each copy engine.

        Raises:
            CapacityError: the device cannot be split so.
        """
        return structures.isolated(self.device, sizes, self.engines)
