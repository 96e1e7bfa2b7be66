"""Peers: how other systems overlap nodes, each as a policy of our own making, so that one simulator judges all.

They get what their authors intend, and a little more: every peer may cut the graph as nanort does and keep what is
better; copies go to copy engines beside everything; all splits of SMs that a peer may use are judged; a node that is
ready need not wait for one launched before it on its stream; and nodes shorter than the mean, which nobody's category
was made for, go to whichever stream is idle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import cycle
from math import inf

from nanort.scheduling.policy import Dispatch, Greedy, Policy
from nanort.scheduling.structures import ALONE, COMPUTE, COPY, MEMORY, Structure, sizes
from nanort.scheduling.workload import LIGHT, Workload
from nanort.simulation.fluid import Jobs, Modes, replay

Stage = tuple[tuple[int, ...], ...]
"""Groups of nodes that run side by side, each in order."""

LANES = (2, 4, 8)
"""Streams that those peers may use which are free to choose; a GPU has 8 queues unless it is told otherwise."""


class NanoFlow:
    """NanoFlow (OSDI 2025; efeslab/Nanoflow, auto_search/new_search.py): one stream for each category of nano-operator.

    Operators bound by compute, by memory and by links each have a queue. Stage one orders the queues for the shortest
    step if every operator had the whole device. Stage two keeps the order and chooses the SMs of each.

    Adapted: stage one is the better of two list schedules, where NanoFlow solves a mixed-integer program for one layer
    with Gurobi. In stage two an operator has all SMs if no other is ready, and otherwise those of its category: one
    split for all layers, every one of which is judged, besides all SMs for each operator in turn.
    """

    name = "NanoFlow"

    def structures(self, work: Workload) -> Iterable[Structure]:
        """Every split into SMs for memory and for compute, and none."""
        yield work.copies()
        yield from splits(work)

    def dispatch(self, work: Workload, structure: Structure) -> Dispatch:
        """Categories' streams in the order of stage one."""
        found = categories(work)
        orders = work.path_keys.tolist(), work.feed_keys(work.device.sms).tolist()
        _, starts = min(full_device(work, found, urgency) for urgency in orders)
        return Divided(work, structure, starts, found)


class Opara:
    """Opara (2023; OparaSys/Opara, StreamAllocator.py, OperatorLauncher.py): greedy streams, resource-aware launches.

    A node inherits the stream of the first node it reads from whose first reader it is; if there is none, it gets a new
    stream. Ready nodes are launched least demand first, those bound by memory and by compute in turn.

    Adapted: new streams come from a pool of 2, 4 or 8, whichever is best; its own come from PyTorch's pool of 32. A
    node's demand is the SMs that it can hold, then its seconds: our nodes state no shared memory per block.
    """

    name = "Opara"

    def structures(self, work: Workload) -> Iterable[Structure]:
        """Pools of streams on the whole device."""
        return pools(work)

    def dispatch(self, work: Workload, structure: Structure) -> Dispatch:
        """Streams and launches as they were decided beforehand."""
        lanes = structure.lanes(COMPUTE, MEMORY)
        lane = [lanes[stream] for stream in inherited(work, len(lanes))]
        return Greedy(work, structure, launches(work), on_lanes(work, lane))


class RoundRobin:
    """torchsched (NVIDIA/apex, contrib/torchsched/inductor/scheduler.py): round-robin beside a critical path.

    The nodes of the longest path, counted in nodes, have the first stream for themselves. All others take the other
    streams in turn, in the order of the graph, whatever they read. Launches keep the order of the graph.

    Adapted: 2, 4 or 8 streams, whichever is best; its default is 8.
    """

    name = "torchsched"

    def structures(self, work: Workload) -> Iterable[Structure]:
        """So many streams on the whole device."""
        return pools(work)

    def dispatch(self, work: Workload, structure: Structure) -> Dispatch:
        """Streams as they were decided beforehand."""
        critical, lanes = deepest_path(work), structure.lanes(COMPUTE, MEMORY)
        others = cycle(lanes[1:])
        lane = [lanes[0] if node in critical else next(others) for node in range(len(work))]
        return Greedy(work, structure, range(len(work)), on_lanes(work, lane))


class TwoBatch:
    """Two-batch overlap (SGLang, batch_overlap/operations.py): the second nano-batch runs one phase behind the first.

    A phase ends where computing gives way to communication, or the other way round. Phases are launched alternately:
    the first of the one batch, the second of it and the first of the other, and so on, so that one batch computes while
    the other communicates. Communication has a stream of its own, and SMs set aside for it.

    Adapted: on a single GPU what is bound by memory takes the place of communication; the SMs set aside may be any
    number, or none. The uncut graph, where it is better, has phases too, and nothing beside them.
    """

    name = "two-batch"

    def structures(self, work: Workload) -> Iterable[Structure]:
        """Two streams on the whole device, and every split."""
        yield work.coresident()
        yield from splits(work)

    def dispatch(self, work: Workload, structure: Structure) -> Dispatch:
        """Launches by phase."""
        found = categories(work)
        steps = [phase + piece for phase, piece in zip(phases(work, found), work.pieces, strict=True)]
        return Divided(work, structure, steps, found)


class PrefillDecode:
    """Prefill and decode on a fixed table of splits (SGLang, multiplex/pdmux_context.py; so do Bullet and MuxWise).

    A table lists some six splits, all of them with at least half of the SMs for prefill and 16 for decode; the number
    of decoding requests picks a row for the whole step. Prefill and decode each run in order on their part, or on the
    whole device while the other has nothing to do.

    Adapted: our steps mix both kinds of rows, so what is bound by memory, attention of decode rows above all, stands
    for decode, and the rest for prefill. Every row of the table is judged instead of picked by a threshold.
    """

    name = "prefill/decode"

    def structures(self, work: Workload) -> Iterable[Structure]:
        """The rows of the table."""
        decode = range(16, work.device.sms // 2 + 1)
        return [one for one in splits(work) if one.streams[one.lanes(MEMORY)[0]].sms in decode]

    def dispatch(self, work: Workload, structure: Structure) -> Dispatch:
        """Both in the order of the graph."""
        return Divided(work, structure, range(len(work)), categories(work))


class Ios:
    """IOS (MLSys 2021; mit-han-lab/inter-operator-scheduler, optimizer.py): stages, by dynamic programming.

    Within a stage, groups of connected operators run side by side, each in order; the next stage waits for all of them.
    What operators take is what their last stage takes, any ending of them, and the best for those before it; each stage
    is measured once. Endings are pruned to at most 8 groups of at most 3 operators.

    Adapted: a stage is measured in the simulator. Parts of 8 nodes, in the order of the graph, are optimized one by one
    and equal ones once; its own have up to 100 nodes and take hours. It merges convolutions, and we have none.
    """

    name = "IOS"
    group, groups, part = 3, 8, 8

    def structures(self, work: Workload) -> Iterable[Structure]:
        """As many streams on the whole device as a stage may have groups."""
        yield work.coresident(self.groups)

    def dispatch(self, work: Workload, structure: Structure) -> Dispatch:
        """The stages of all parts, one after the other."""
        known: dict[object, list[Stage]] = {}
        stages: list[Stage] = []
        for first in range(0, len(work), self.part):
            nodes = range(first, min(first + self.part, len(work)))
            edges = [tuple(p - first for p in work.preds[node] if p >= first) for node in nodes]
            likeness = (tuple(work.flat.kinds[node] for node in nodes), tuple(edges))
            if likeness not in known:
                _, found = self.best(work, structure, nodes)
                known[likeness] = [tuple(tuple(at - first for at in group) for group in stage) for stage in found]
            stages += [tuple(tuple(at + first for at in group) for group in stage) for stage in known[likeness]]
        return Staged(work, structure, stages)

    def best(self, work: Workload, structure: Structure, nodes: Sequence[int]) -> tuple[float, list[Stage]]:
        """Seconds and stages of the best schedule of ``nodes``, whose predecessors outside have ended."""
        place = {node: at for at, node in enumerate(nodes)}
        after = [sum(1 << place[succ] for succ in work.succs[node] if succ in place) for node in nodes]
        known: dict[int, tuple[float, Stage]] = {}  # stages, and what is best for the nodes still to run; sets as bits
        cost, last = {0: 0.0}, dict[int, int]()

        def measured(bits: int) -> float:
            if bits not in known:
                stage = tuple(tuple(nodes[at] for at in group) for group in self.connected(bits, after))
                allowed = len(stage) <= self.groups and all(len(group) <= self.group for group in stage)
                known[bits] = stage_seconds(work, structure, stage) if allowed else inf, stage
            return known[bits][0]

        def search(left: int) -> float:
            if left not in cost:
                cost[left] = inf
                ending = left
                while ending:  # every subset of what is left, those that are no ending passed over
                    rest = left & ~ending
                    if not any(after[at] & rest for at in _members(ending)) and (seconds := measured(ending)) < inf:
                        seconds += search(rest)
                        if seconds < cost[left]:
                            cost[left], last[left] = seconds, ending
                    ending = (ending - 1) & left
            return cost[left]

        left, stages = (1 << len(nodes)) - 1, list[Stage]()
        seconds = search(left)
        while left:
            stages.append(known[last[left]][1])
            left &= ~last[left]
        return seconds, stages[::-1]

    @staticmethod
    def connected(bits: int, after: Sequence[int]) -> list[tuple[int, ...]]:
        """The groups of a stage: nodes that are connected within it."""
        groups: list[int] = []
        for at in _members(bits):
            joined = 1 << at
            for group in [one for one in groups if any(after[member] >> at & 1 for member in _members(one))]:
                groups.remove(group)
                joined |= group
            groups.append(joined)
        return [tuple(_members(group)) for group in groups]


PEERS: tuple[Policy, ...] = (NanoFlow(), Opara(), RoundRobin(), Ios(), TwoBatch(), PrefillDecode())


# What peers share: where nodes may run.


def splits(work: Workload) -> Iterator[Structure]:
    """Every split of the device into SMs for memory, then for compute."""
    usable = work.device.partitionable_sms
    for sms in sizes(work.device):
        if usable - sms >= work.device.sm_minimum:
            yield work.isolated(sms, usable - sms)


def pools(work: Workload) -> Iterator[Structure]:
    """2, 4 and 8 streams on the whole device."""
    return map(work.coresident, LANES)


def categories(work: Workload) -> list[str]:
    """``COMPUTE`` or ``MEMORY`` for each node; light ones follow the last kernel that they read."""
    found: list[str] = []
    for node in range(len(work)):
        role = work.roles[work.flat.kinds[node]]
        if role == LIGHT:
            read = [found[pred] for pred in work.preds[node] if not work.engine(pred)]
            role = read[-1] if read else MEMORY if work.bound_by(node) == "memory" else COMPUTE
        found.append(role)
    return found


class Divided(Greedy):
    """Each category on its own stream, light nodes on any, and on the whole device one that is ready alone.

    ``keys`` are those of :class:`Greedy`.
    """

    def __init__(self, work: Workload, structure: Structure, keys: Sequence[float], category: Sequence[str]) -> None:
        self.whole = next(iter(structure.lanes(ALONE)), -1)
        kernels, homes = structure.lanes(COMPUTE, MEMORY), {}
        for node in _free_kernels(work):
            fits = [lane for lane in kernels if work.graph.nodes[node].span[0] <= structure.streams[lane].sms]
            light = work.roles[work.flat.kinds[node]] == LIGHT
            own = [lane for lane in fits if light or lane in structure.lanes(category[node])]
            homes[node] = (*structure.lanes(ALONE), *(own or fits))
        super().__init__(work, structure, keys, homes)
        self.work, self.streams, self.waiting = work, structure.streams, set[int]()
        self.kernels = frozenset(at for at, role in enumerate(structure.roles) if role != COPY)

    def ready(self, node: int) -> None:
        """Queues it."""
        super().ready(node)
        if self.kernels.intersection(self.homes[node]):
            self.waiting.add(node)

    def next(self, stream: int, running: Sequence[int], left: Sequence[float]) -> int:
        """The most urgent node for this stream."""
        if stream == self.whole and not self._alone():
            return -1
        node = super().next(stream, running, left)
        self.waiting.discard(node)
        return node

    def _alone(self) -> bool:
        """Whether the whole device has a node: one that fits nowhere else, or the only one, if it gains by that."""
        if self.queues.get((self.whole,)):
            return True
        if len(self.waiting) != 1:
            return False
        (node,) = self.waiting
        seconds = [self.work.seconds(node, self.streams[at].sms) for at in self.homes[node]]
        return self.homes[node][0] == self.whole and seconds[0] < min(seconds[1:], default=inf)


def on_lanes(work: Workload, lane: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """The home of each kernel that is free to go where ``lane`` says."""
    return {node: (lane[node],) for node in _free_kernels(work)}


def _free_kernels(work: Workload) -> Iterator[int]:
    """Nodes that are no transfers and that the user put on no stream."""
    return (node for node in range(len(work)) if not work.engine(node) and work.graph.nodes[node].stream is None)


# What single peers decide beforehand.


def full_device(work: Workload, category: Sequence[str], urgency: Sequence[float]) -> tuple[float, list[float]]:
    """When the last node would end, and each start, if every category were a queue with a whole device of its own."""
    queue = [work.engine(node) or category[node] for node in range(len(work))]
    ready: dict[str, list[tuple[float, int]]] = {name: [] for name in queue}
    missing, start, now = [len(preds) for preds in work.preds], [0.0] * len(work), 0.0
    idle, running = sorted(ready), list[tuple[float, int]]()
    for node in (node for node, count in enumerate(missing) if not count):
        heappush(ready[queue[node]], (urgency[node], node))
    while True:
        for name in [name for name in idle if ready[name]]:
            _, node = heappop(ready[name])
            start[node] = now
            heappush(running, (now + work.seconds(node, work.device.sms), node))
            idle.remove(name)
        if not running:
            return now, start
        now, ended = heappop(running)
        idle.append(queue[ended])
        for succ in work.succs[ended]:
            missing[succ] -= 1
            if not missing[succ]:
                heappush(ready[queue[succ]], (urgency[succ], succ))


def inherited(work: Workload, pool: int) -> list[int]:
    """The stream of each node: that of a predecessor whose first successor it is, or a new one, from a pool in turn."""
    streams, fresh = list[int](), cycle(range(pool))
    for node in range(len(work)):
        heir = (streams[pred] for pred in work.preds[node] if work.succs[pred][0] == node)
        stream = next(heir, None)
        streams.append(next(fresh) if stream is None else stream)
    return streams


def launches(work: Workload) -> list[int]:
    """The place of each node in the launch order: least demand first, memory-bound and other ones in turn."""
    ready: tuple[list[tuple[int, float, int]], ...] = ([], [])
    missing, place, turn = [len(preds) for preds in work.preds], [0] * len(work), 0

    def queue(node: int) -> None:
        span, seconds = work.graph.nodes[node].span, work.seconds(node, work.device.sms)
        sms = work.device.sms if span[1] is None else span[1]
        heappush(ready[work.bound_by(node) == "memory"], (sms, seconds, node))

    for node in (node for node, count in enumerate(missing) if not count):
        queue(node)
    for launched in range(len(work)):
        turn = turn if ready[turn] else 1 - turn
        node = heappop(ready[turn])[-1]
        place[node], turn = launched, 1 - turn
        for succ in work.succs[node]:
            missing[succ] -= 1
            if not missing[succ]:
                queue(succ)
    return place


def deepest_path(work: Workload) -> set[int]:
    """The nodes of a path that no other has more nodes than; the first of several."""
    depth = [1] * len(work)
    for node in range(len(work) - 1, -1, -1):
        depth[node] = 1 + max((depth[succ] for succ in work.succs[node]), default=0)
    path: set[int] = set()
    choices: Sequence[int] = range(len(work))
    while choices:
        node = max(choices, key=lambda one: depth[one])
        path.add(node)
        choices = work.succs[node]
    return path


def phases(work: Workload, category: Sequence[str]) -> list[int]:
    """How many changes of category lie between a node and the start of its nano-batch, on the path with the most."""
    found: list[int] = []
    kinds = [work.engine(node) or category[node] for node in range(len(work))]
    for node, preds in enumerate(work.preds):
        mine = (pred for pred in preds if work.pieces[pred] == work.pieces[node])
        found.append(max((found[pred] + (kinds[pred] != kinds[node]) for pred in mine), default=0))
    return found


# Stages.


class Staged:
    """One stage after the other: in each, every stream runs its nodes in the order of the graph."""

    def __init__(self, work: Workload, structure: Structure, stages: Sequence[Stage]) -> None:
        self.lanes = iter([stage_lanes(work, structure, stage) for stage in stages])
        self.queues: dict[int, deque[int]] = {}
        self.waiting: set[int] = set()

    def ready(self, node: int) -> None:
        """Marks it."""
        self.waiting.add(node)

    def next(self, stream: int, running: Sequence[int], left: Sequence[float]) -> int:
        """The next node of this stream in the current stage, which ends when all its nodes have."""
        if not any(self.queues.values()) and max(running) < 0:
            self.queues = {}
            for node, lane in sorted(next(self.lanes, {}).items()):
                self.queues.setdefault(lane, deque()).append(node)
        queue = self.queues.get(stream)
        if not queue or queue[0] not in self.waiting:
            return -1
        return queue.popleft()


def stage_lanes(work: Workload, structure: Structure, stage: Stage) -> dict[int, int]:
    """The stream of each node of a stage: one for each group, but copies and pinned nodes go to theirs."""
    names = {stream.name: at for at, stream in enumerate(structure.streams)}
    lanes = structure.lanes(COMPUTE, MEMORY)
    return {
        node: names.get(work.graph.nodes[node].stream or work.engine(node), lane)
        for lane, group in zip(lanes, stage, strict=False)
        for node in group
    }


def stage_seconds(work: Workload, structure: Structure, stage: Stage) -> float:
    """What a stage takes by itself in the simulator."""
    lane = stage_lanes(work, structure, stage)
    nodes, used, flat = sorted(lane), sorted(set(lane.values())), work.flat
    streams = [structure.streams[at] for at in used]
    alone = [(flat.modes(work.saturation, structure.streams[lane[node]].sms), node) for node in nodes]
    jobs = Jobs(
        [used.index(lane[node]) for node in nodes],
        Modes(
            [mode.seconds[node] for mode, node in alone],
            [mode.sms[node] for mode, node in alone],
            tuple([mode.shares[link][node] for mode, node in alone] for link in range(len(flat.resources))),
        ),
        [work.operators[node] for node in nodes],
        lambda job, sms: work.seconds(nodes[job], sms),
    )
    awaited = [
        [at for at, pred in enumerate(nodes) if pred in work.preds[node] and lane[pred] != lane[node]] for node in nodes
    ]
    pairs = flat.profile.slowdowns if flat.profile else None
    _, end = replay(jobs, streams, awaited, pairs, work.device.event_seconds)
    return max(end)


def _members(bits: int) -> Iterator[int]:
    """The places of the bits that are set, the lowest first."""
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low
