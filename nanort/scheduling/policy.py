"""Policy: how SMs are cut into groups and which ready node runs next on which; the built-in ones are written so too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from heapq import heappop, heappush
from typing import Protocol

from nanort.errors import PolicyError, SimulationError
from nanort.partition import Stream
from nanort.scheduling.structures import Structure
from nanort.scheduling.waits import exclusive
from nanort.scheduling.workload import Workload
from nanort.simulation.fluid import Crossings, Trace, simulate


class Dispatch(Protocol):
    """What decides within one simulation. Nodes and streams are given by index."""

    def ready(self, node: int) -> None:
        """All that ``node`` waits for has ended. Told once for each node, in the order in which it happens."""
        ...

    def next(self, stream: int, running: Sequence[int], left: Sequence[float]) -> int:
        """The ready node that the idle ``stream`` starts now, or -1 to leave it idle until something ends.

        ``running`` has each stream's node, or -1, and ``left`` the solo seconds that it still needs. A stream is not
        asked while one runs whose SMs overlap its own without being the same.
        """
        ...


class Policy(Protocol):
    """A way to plan. ``co_schedule(graph, device, policy=mine)`` judges what it makes by the simulator.

    Attributes:
        name: how plans and messages call it.
    """

    @property
    def name(self) -> str: ...

    def structures(self, work: Workload) -> Iterable[Structure]:
        """The ways to cut the device into groups that are to be tried; the best is kept."""
        ...

    def dispatch(self, work: Workload, structure: Structure) -> Dispatch:
        """What decides in one of them."""
        ...


class Greedy:
    """The dispatch that gives an idle stream the most urgent of the ready nodes that may run there.

    Args:
        work: the graph.
        structure: its streams.
        keys: by node, the smaller the more urgent; ties go to the node that comes first in the graph.
        homes: by node, the streams on which it may run, most often of few kinds; a node that is not told may run on
            every stream that fits it, a transfer on its copy engine where there is a stream for that.
    """

    def __init__(
        self,
        work: Workload,
        structure: Structure,
        keys: Sequence[float],
        homes: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        self.keys = keys
        fitting = _Fitting(work, structure.streams)
        self.homes = [tuple((homes or {}).get(node) or fitting.streams(node)) for node in range(len(work))]
        self.queues: dict[tuple[int, ...], list[tuple[float, int]]] = {home: [] for home in self.homes}
        self.serves = [
            [queue for home, queue in self.queues.items() if stream in home] for stream in range(len(structure.streams))
        ]

    def ready(self, node: int) -> None:
        """Queues it."""
        heappush(self.queues[self.homes[node]], (self.keys[node], node))

    def next(self, stream: int, running: Sequence[int], left: Sequence[float]) -> int:
        """The most urgent node."""
        queue = min((queue for queue in self.serves[stream] if queue), key=lambda queue: queue[0], default=None)
        return heappop(queue)[1] if queue else -1


def plan(policy: Policy, work: Workload, structure: Structure) -> Trace:
    """What ``policy`` makes of ``work`` in one structure, every answer of it judged.

    Raises:
        PolicyError: an answer that breaks a constraint; the message names the policy, the node and the constraint.
    """
    flat = work.flat
    _refuse_crowds(policy, structure)
    referee = _Referee(policy, work, structure)
    modes = [flat.modes(work.saturation, stream.sms) for stream in structure.streams]
    together = flat.coresidence(work.saturation, structure.streams) if structure.shares_sms else None
    try:
        return simulate(len(flat), modes, referee, together, Crossings(flat.preds, flat.device.event_seconds))
    except SimulationError as stuck:
        raise referee.leftovers() from stuck


def _refuse_crowds(policy: Policy, structure: Structure) -> None:
    """Refuses more streams on a group than it has lanes: they would hold its SMs at once, and nobody would know."""
    for group in structure.groups:
        on = [stream.name for stream in structure.streams if stream.group == group]
        if len(on) > group.lanes:
            raise PolicyError(
                f"policy {policy.name!r}: streams {on} are on group {group.name!r}, which has {group.lanes} lanes: "
                f"give the group lanes={len(on)}, or a stream a group of its own"
            )


class _Fitting:
    """On which streams a node may run."""

    def __init__(self, work: Workload, streams: Sequence[Stream]) -> None:
        self.work = work
        self.all = streams
        self.engines = {stream.engine: at for at, stream in enumerate(streams) if stream.engine}
        self.kernels = [at for at, stream in enumerate(streams) if not stream.engine]
        self.names = {stream.name: at for at, stream in enumerate(streams)}
        self._known: dict[tuple[int, str | None], tuple[int, ...]] = {}

    def streams(self, node: int) -> tuple[int, ...]:
        what = self.work.graph.nodes[node]
        key = (self.work.flat.kinds[node], what.stream)
        if key not in self._known:
            engine = self.engines.get(what.demand.engine)
            able = [engine] if engine is not None else [at for at in self.kernels if what.span[0] <= self.all[at].sms]
            if what.stream is not None:
                able = [at for at in able if at == self.names.get(what.stream)]
            self._known[key] = tuple(able)
        return self._known[key]


class _Referee:
    """A dispatch as the simulator's policy: it learns which nodes are ready, and its answers are judged."""

    def __init__(self, policy: Policy, work: Workload, structure: Structure) -> None:
        self.policy, self.work, self.structure = policy, work, structure
        self.dispatch = policy.dispatch(work, structure)
        self.rivals = exclusive(structure.streams)
        self.fitting = _Fitting(work, structure.streams)
        self.missing = [len(preds) for preds in work.preds]
        self.waiting: set[int] = set()
        for node, missing in enumerate(self.missing):
            if not missing:
                self._tell(node)

    def done(self, node: int) -> None:
        """Tells of those that waited for ``node`` alone."""
        for succ in self.work.succs[node]:
            self.missing[succ] -= 1
            if not self.missing[succ]:
                self._tell(succ)

    def next(self, stream: int, running: Sequence[int], left: Sequence[float]) -> int:
        if any(running[rival] >= 0 for rival in self.rivals[stream]):
            return -1
        node = self.dispatch.next(stream, running, left)
        if node is None or isinstance(node, bool) or not isinstance(node, int) or not -1 <= node < len(self.work):
            raise self._error(
                f"answered {node!r} for stream {self._called(stream)}: give the index of a ready node, or -1"
            )
        if node >= 0:
            self._judge(node, stream)
            self.waiting.remove(node)
        return node

    def _judge(self, node: int, stream: int) -> None:
        name = self.work.graph.nodes[node].name
        if node not in self.waiting:
            why = "what it reads has not ended" if self.missing[node] else "it has started already"
            raise self._error(f"starts {name!r} on stream {self._called(stream)}, and {why}")
        if stream not in (able := self.fitting.streams(node)):
            fit = [self.structure.streams[at].name for at in able] or "none of its streams"
            raise self._error(f"starts {name!r} on stream {self._called(stream)}: it may run on {fit}")

    def leftovers(self) -> PolicyError:
        """That it starts nothing while nodes are left."""
        ready = [self.work.graph.nodes[node].name for node in sorted(self.waiting)[:3]]
        return self._error(f"leaves every stream idle while {len(self.waiting)} nodes are ready, the first are {ready}")

    def _tell(self, node: int) -> None:
        self.waiting.add(node)
        self.dispatch.ready(node)

    def _called(self, stream: int) -> str:
        return repr(self.structure.streams[stream].name)

    def _error(self, what: str) -> PolicyError:
        return PolicyError(f"policy {self.policy.name!r}, {self.structure}: it {what}")
