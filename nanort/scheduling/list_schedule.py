"""List scheduling inside the fluid simulation: whenever a stream is idle, the most urgent node that suits it starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import accumulate, zip_longest
from math import inf

import numpy as np

from nanort.compiled import Floats, Ints
from nanort.errors import CapacityError, PolicyError
from nanort.scheduling import structures
from nanort.scheduling.flat import Flat
from nanort.scheduling.structures import ALONE, BOTH, COMPUTE, COPY, MEMORY, Structure
from nanort.scheduling.workload import LIGHT, Workload
from nanort.simulation.fluid import Trace

PATH, FEED = "path", "feed"
ROLES = (COMPUTE, MEMORY, LIGHT, ALONE)
PLACES = {role: place for place, role in enumerate((*ROLES, ""))}
ORDERS = (PATH, FEED)
"""What makes a node urgent: a long path to the end, or a short one to the next long memory-bound node."""


def serial(flat: Flat, saturation: int) -> Trace:
    """Every node after the one before it, in graph order, on the whole device."""
    end = list(accumulate(flat.modes(saturation, flat.device.sms).seconds))
    return Trace([0.0, *end[:-1]][: len(end)], end, [0] * len(end), list(range(len(end))))


@dataclass(frozen=True, slots=True)
class ListPolicy:
    """Long memory-bound nodes go to the memory stream, long compute-bound ones to a compute stream.

    Light ones go to whichever is idle: a norm must not queue behind a long read of the KV cache. A node that is ready
    alone while all groups are idle gets the whole device.

    Attributes:
        order: one of ``ORDERS``.
        borrow: whether an idle memory stream takes a compute-bound node, if that ends no later than it would on the
            compute stream, and before the next long memory-bound node can be ready.
        offsets: by class of nodes, seconds by which it is less urgent than its order says.
        homes: by class, the role of the streams that it goes to, ``COMPUTE``, ``MEMORY``, ``LIGHT`` for either, or
            ``ALONE`` for the whole device; "" leaves it as above.
        quick: whether only the most promising structure of each mechanism is tried.
    """

    order: str = PATH
    borrow: bool = False
    offsets: tuple[float, ...] = ()
    homes: tuple[str, ...] = ()
    quick: bool = False

    @property
    def name(self) -> str:
        return (
            f"list by {self.order}"
            + (", borrowing" if self.borrow else "")
            + (", tuned" if self.offsets or self.homes else "")
        )

    def structures(self, work: Workload) -> Iterable[Structure]:
        """Every structure, the most promising of each mechanism in turn."""
        rows = ranked(work)
        return [one for row in rows[: 1 if self.quick else None] for one in row if not self.borrow or one.lanes(ALONE)]

    def dispatch(self, work: Workload, structure: Structure) -> ListDispatch:
        """Raises CapacityError or PolicyError where a pin cannot be kept."""
        return ListDispatch(self, work, structure)

    def urgency(self, work: Workload, structure: Structure) -> Floats:
        """What sorts ready nodes, the most urgent first."""
        keys = work.path_keys
        if self.order == FEED:
            keys = work.feed_keys(structure.streams[structure.lanes(COMPUTE, BOTH)[0]].sms)
        return keys + np.array(self.offsets)[work.flat.arrays.classes] if self.offsets else keys


def ranked(work: Workload) -> list[list[Structure]]:
    """Every structure with overlap: the most promising of each mechanism, the second of each, and so on."""
    by_mechanism: dict[str, list[Structure]] = {}
    profile = work.flat.profile
    for structure in structures.overlapping(work.device, work.engines, crowds=not (profile and profile.pairs)):
        by_mechanism.setdefault(structure.mechanism, []).append(structure)
    for alike in by_mechanism.values():
        alike.sort(key=lambda structure: estimate(work, structure))
    return [[one for one in row if one is not None] for row in zip_longest(*by_mechanism.values())]


def estimate(work: Workload, structure: Structure) -> float:
    """Seconds that a structure needs were nothing to wait for anything, and nodes divisible between two groups.

    Those that gain most from the larger group go there, until both groups are busy as long as each other.
    """
    counts = np.bincount(work.flat.arrays.kinds, minlength=len(work.flat.examples))
    lanes = (structure.lanes(COMPUTE, BOTH)[0], structure.lanes(MEMORY, BOTH)[-1])  # of the first split, if nested
    loads = [work.flat.table(work.saturation, structure.streams[lane].sms)[0] * counts for lane in lanes]
    kernels = np.array([not node.demand.engine for node in work.flat.examples], bool)
    if lanes[0] == lanes[1] or structure.shares_sms:
        return float(np.sum(loads[0], where=kernels))
    here, there = (np.where(kernels, load, 0.0) for load in loads)
    if structure.lanes(ALONE):  # what fits neither group holds both up
        alone = work.flat.table(work.saturation, work.device.sms)[0] * counts
        neither = np.isinf(here) & np.isinf(there)
        here, there = (np.where(neither, alone, load) for load in (here, there))
        both = float(np.sum(alone, where=neither))
    else:
        both = 0.0
        neither = np.zeros(len(here), bool)
    only_here, only_there = np.isinf(there) & ~neither, np.isinf(here) & ~neither
    fixed = float(np.sum(here, where=only_here)), float(np.sum(there, where=only_there))
    free = ~(neither | only_here | only_there) & (here > 0)
    return both + _balanced(here[free], there[free], *fixed)


def _balanced(here: Floats, there: Floats, first: float, second: float) -> float:
    """The least time in which divisible work is done on two groups, which have so much to do besides."""
    order = np.argsort(here / there, kind="stable")  # what gains most from the first group goes there
    here, there = here[order], there[order]
    done, left = first + np.cumsum(here), second + float(np.sum(there)) - np.cumsum(there)
    split = int(np.searchsorted(done - left, 0.0))  # what both groups share
    if split == len(order):
        return max(first + float(np.sum(here)), second)
    part = (left[split] + there[split] - done[split] + here[split]) / (here[split] + there[split])
    return float(done[split] + (part - 1.0) * here[split]) if part > 0 else max(first, second + float(np.sum(there)))


class Homes:
    """The queue of every node: one for each role that nodes have, one for what fits nowhere else, one for each stream.

    Attributes:
        queue: of each node, as its role has it.
        able: by kind and queue of a role, whether its nodes fit on all streams of that role.
        pins: the queues of nodes that the user put on a stream.
        serves: by stream, the queues that it takes nodes from.

    Raises:
        PolicyError, CapacityError: a pin cannot be kept.
    """

    def __init__(self, work: Workload, structure: Structure) -> None:
        flat, streams = work.flat, structure.streams
        self.work = work
        self.first = len(ROLES)  # of the streams' own queues
        lanes = {role: structure.lanes(role, BOTH) for role in (COMPUTE, MEMORY)}
        lanes |= {LIGHT: structure.lanes(COMPUTE, MEMORY, BOTH), ALONE: structure.lanes(ALONE)}
        self.serves = [
            [at for at, role in enumerate(ROLES) if lane in lanes[role]] + [self.first + lane]
            for lane in range(len(streams))
        ]
        least = {role: min((streams[at].sms for at in on), default=0) for role, on in lanes.items()}
        engines = {stream.engine: lane for lane, stream in enumerate(streams) if stream.engine}
        by_kind, self.able = list[int](), np.zeros((len(flat.examples), len(PLACES)), bool)
        for kind, (node, role) in enumerate(zip(flat.examples, work.roles, strict=True)):
            if (engine := node.demand.engine) in engines:
                by_kind.append(self.first + engines[engine])
                continue
            self.able[kind, :-1] = [bool(lanes[one]) and node.span[0] <= least[one] for one in ROLES]
            fitting = [at for at in (ROLES.index(role), 0, 1) if self.able[kind, at]]
            by_kind.append(fitting[0] if fitting else ROLES.index(ALONE))
        names = {stream.name: lane for lane, stream in enumerate(streams)}
        self.pins: dict[int, int] = {}
        for index in flat.pinned:
            node = flat.graph.nodes[index]
            if node.stream not in names:
                raise PolicyError(
                    f"{node.where}: {node.name} is pinned to stream {node.stream!r}, which {structure} plans lack"
                )
            stream = streams[lane := names[node.stream]]
            if not stream.engine and node.span[0] > stream.sms:
                raise CapacityError(
                    f"{node.where}: {node.name} needs {node.span[0]} SMs, stream {node.stream!r} has {stream.sms}"
                )
            self.pins[index] = self.first + lane
        self.queue = np.array(by_kind, np.int64)[flat.arrays.kinds]
        self.queue[list(self.pins)] = list(self.pins.values())

    def queues(self, homes: Sequence[str]) -> Ints:
        """The queue of each node, classes put where ``homes`` says as far as their nodes fit there."""
        if not homes:
            return self.queue
        wanted = np.array([PLACES[role] for role in homes])[self.work.flat.arrays.classes]
        found: Ints = np.where(self.able[self.work.flat.arrays.kinds, wanted], wanted, self.queue)
        found[list(self.pins)] = list(self.pins.values())
        return found


class ListDispatch:
    """The dispatch of one structure; nanort/scheduling/machine.py has the same in machine code."""

    def __init__(self, policy: ListPolicy, work: Workload, structure: Structure) -> None:
        self.homes = Homes(work, structure)
        self.queue = self.homes.queues(policy.homes).tolist()
        self.keys = policy.urgency(work, structure).tolist()
        self.modes = [work.flat.modes(work.saturation, stream.sms) for stream in structure.streams]
        self.queues: list[list[tuple[float, int]]] = [[] for _ in range(self.homes.first + len(structure.streams))]
        self.roles = structure.roles
        self.compute, self.memory = structure.lanes(COMPUTE), structure.lanes(MEMORY)
        self.alone = next(iter(structure.lanes(ALONE)), -1)
        if policy.borrow and self.compute:
            compute = self.compute[0]
            self.after = work.after(structure.streams[compute].sms).tolist()
        self.borrow = policy.borrow

    def ready(self, node: int) -> None:
        """Queues it."""
        heappush(self.queues[self.queue[node]], (self.keys[node], node))

    def next(self, stream: int, running: Sequence[int], left: Sequence[float]) -> int:
        """The most urgent node for this stream."""
        role = self.roles[stream]
        if role == ALONE:
            return self._alone(stream)
        if role != COPY and self.alone >= 0 and any(self.queues[at] for at in self.homes.serves[self.alone]):
            return -1  # something waits for the whole device
        best, least = -1, (inf, -1)
        for at in self.homes.serves[stream]:
            if (queue := self.queues[at]) and (best < 0 or queue[0] < least):
                best, least = at, queue[0]
        if best >= 0:
            return heappop(self.queues[best])[1]
        return self._borrowed(stream, running, left) if self.borrow and role == MEMORY else -1

    def _alone(self, stream: int) -> int:
        """A node for the whole device: one that fits nowhere else, or the only one that is ready."""
        for at in self.homes.serves[stream]:
            if self.queues[at]:
                return heappop(self.queues[at])[1]
        ready = [queue for queue in self.queues[: self.homes.first] if queue]
        if len(ready) != 1 or len(ready[0]) != 1:
            return -1
        node = ready[0][0][1]
        here = self.modes[stream].seconds[node]
        there = min(self.modes[lane].seconds[node] for lane in (*self.compute, *self.memory))
        return heappop(ready[0])[1] if here < there else -1

    def _borrowed(self, stream: int, running: Sequence[int], left: Sequence[float]) -> int:
        queue = self.queues[0]  # of COMPUTE
        busy = min(self.compute, key=lambda lane: left[lane])
        if not queue or running[busy] < 0:
            return -1
        node = queue[0][1]
        here, there = self.modes[stream].seconds[node], self.modes[busy].seconds[node]
        soon = left[busy] + min(there, self.after[running[busy]])
        return heappop(queue)[1] if here <= soon else -1
