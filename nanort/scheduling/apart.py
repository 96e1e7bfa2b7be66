"""Apart: two parts of a graph that need nothing of each other, each on a group of SMs of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from nanort.compiled import Ints
from nanort.scheduling import structures
from nanort.scheduling.structures import ALONE, COMPUTE, COPY, MEMORY, Structure
from nanort.scheduling.workload import Workload

TRIED = 4
"""Splits that are simulated, the best by an estimate; of a LLaMA-3-8B step on an H200 no other is better by 1 %."""


@dataclass(frozen=True, slots=True)
class Apart:
    """Nodes made in ``g.scope(part=...)`` keep to the group of their part, in the order of their calls.

    The most promising splits of the device in two are tried. Once one part is done the rest of the other has the whole
    device, as have nodes of no part. A graph without two parts is left to the serial schedule.

    Attributes:
        label: of the scopes that tell the parts.

    >>> import torch, nanort as nr
    >>> from nanort import ops
    >>> g = nr.Graph("two parts")
    >>> for part in ("one", "other"):
    ...     x = g.input(part, (128, 4096), torch.bfloat16)
    ...     weight = g.constant(f"{part}.weight", (4096, 4096), torch.bfloat16)
    ...     with g.scope(part=part):
    ...         for _ in range(4):
    ...             x = ops.linear(x, weight)
    >>> nr.co_schedule(g, nr.device("h200"), policy=nr.Apart()).mechanism
    'isolated 56+72 SMs'
    """

    label: str = "part"

    @property
    def name(self) -> str:
        return f"apart by {self.label}"

    def parts(self, work: Workload) -> list[object]:
        """The part of each node; None of a node that is in none."""
        return [dict(node.scope).get(self.label) for node in work.graph.nodes]

    def structures(self, work: Workload) -> list[Structure]:
        """The device in two groups, in the ways that look best."""
        parts = self.parts(work)
        named = list(dict.fromkeys(part for part in parts if part is not None))
        if len(named) != 2:
            return []
        usable, least = work.device.partitionable_sms, structures.least_group(work.device)
        sizes = [(sms, usable - sms) for sms in structures.sizes(work.device) if usable - sms >= least]
        kinds = work.flat.arrays.kinds
        counts = [
            np.bincount(kinds[[part == name for part in parts]], minlength=len(work.flat.examples)) for name in named
        ]
        sizes.sort(key=lambda split: _estimate(work, counts, split))
        return [work.isolated(*split) for split in sizes[:TRIED]]

    def dispatch(self, work: Workload, structure: Structure) -> ApartDispatch:
        """One queue for each stream."""
        return ApartDispatch(work, structure, self.parts(work))


def _estimate(work: Workload, counts: Sequence[Ints], split: tuple[int, int]) -> float:
    """Seconds until both parts are done, if they were divisible and bandwidth were not shared."""
    here, there = (_load(work, count, sms) for count, sms in zip(counts, split, strict=True))
    first, last = sorted((here, there))
    alone = _load(work, counts[here < there], work.device.sms)
    return first + (1.0 - first / last) * alone if last else 0.0


def _load(work: Workload, counts: Ints, sms: int) -> float:
    """Seconds that so many nodes of each kind take one after the other; what does not fit has the whole device."""
    seconds, alone = (work.flat.table(work.saturation, size)[0] for size in (sms, work.device.sms))
    return float(np.sum(np.where(np.isinf(seconds), alone, seconds) * counts))


class ApartDispatch:
    """The dispatch of one split.

    Args:
        work: the graph.
        structure: its streams.
        parts: the part of each node, one of two or None.
    """

    def __init__(self, work: Workload, structure: Structure, parts: Sequence[object]) -> None:
        self.whole = structure.lanes(ALONE)[0]
        self.groups = (structure.lanes(MEMORY)[0], structure.lanes(COMPUTE)[0])
        named = dict(zip(dict.fromkeys(part for part in parts if part is not None), self.groups, strict=True))
        engines = {structure.streams[lane].engine: lane for lane in structure.lanes(COPY)}
        self.homes = list[int]()
        for node, part in zip(work.graph.nodes, parts, strict=True):
            home = engines.get(node.demand.engine, named.get(part, self.whole))
            fits = home in engines.values() or node.span[0] <= structure.streams[home].sms
            self.homes.append(home if fits else self.whole)
        self.queues: list[list[int]] = [[] for _ in structure.streams]
        self.left = Counter(self.homes)  # nodes that have not started, by stream

    def ready(self, node: int) -> None:
        """Queues it, in the order of the calls."""
        heappush(self.queues[self.homes[node]], node)

    def next(self, stream: int, running: Sequence[int], left: Sequence[float]) -> int:
        """The first node of the stream's part."""
        queue = self.queues[stream]
        if stream in self.groups and (self.queues[self.whole] or self._last() == stream):
            return -1  # the whole device takes it, or something else, as soon as nothing runs
        if stream == self.whole and not queue and (last := self._last()) is not None:
            queue = self.queues[last]
        if not queue:
            return -1
        node = heappop(queue)
        self.left[self.homes[node]] -= 1
        return node

    def _last(self) -> int | None:
        """The group whose part alone has nodes left to start."""
        groups = [group for group in self.groups if self.left[group]]
        return groups[0] if len(groups) == 1 else None
