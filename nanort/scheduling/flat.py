"""Flat: a graph as flat lists, compiled once for all the schedules of it that are judged."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import inf

from nanort.costs.profile import Profile
from nanort.costs.roofline import Cost, Costs
from nanort.devices import Device
from nanort.graph import Graph
from nanort.partition import Stream
from nanort.simulation.fluid import Modes
from nanort.simulation.interference import Coresidence, coresidence

LINKS = ("h2d", "d2h", "net")


class Flat:
    """The nodes of ``graph`` by index: edges, and the kind of each, which decides what it costs.

    Attributes:
        preds, succs: indices of what runs before and after each node.
        kinds: the kind of each node; nodes of one kind cost the same everywhere.
        operators: the name of each node's operator.
        examples: a node of each kind.
    """

    def __init__(self, graph: Graph, device: Device, profile: Profile | None = None) -> None:
        self.graph = graph
        self.device = device
        self.profile = profile
        self.preds = [tuple(pred for pred, _ in node.preds) for node in graph.nodes]
        self.succs: list[list[int]] = [[] for _ in graph.nodes]
        for index, preds in enumerate(self.preds):
            for pred in preds:
                self.succs[pred].append(index)
        self._costs: dict[int, Costs] = {}
        self._kind_costs: dict[tuple[int, int], list[Cost]] = {}
        self._modes: dict[tuple[int, int], Modes] = {}
        key, seen = self.costs(device.hbm_saturation_sms[1]).key, dict[Hashable, int]()
        self.kinds = [seen.setdefault(key(node), len(seen)) for node in graph.nodes]
        first = dict(zip(reversed(self.kinds), reversed(graph.nodes), strict=True))
        self.examples = [first[kind] for kind in range(len(seen))]
        self.operators = [node.op.name for node in graph.nodes]
        self.resources = ("hbm", *(link for link in LINKS if self._contended(link)))

    def __len__(self) -> int:
        return len(self.preds)

    def costs(self, saturation: int) -> Costs:
        """The costs where so many SMs saturate device memory."""
        if saturation not in self._costs:
            self._costs[saturation] = Costs(self.device, self.profile, saturation)
        return self._costs[saturation]

    def kind_costs(self, saturation: int, sms: int) -> list[Cost]:
        """What a node of each kind costs alone on a stream of ``sms`` SMs; infinite seconds where it does not fit."""
        key = (saturation, sms)
        if key not in self._kind_costs:
            costs = self.costs(saturation)
            self._kind_costs[key] = [
                costs.solo(node, sms) if node.span[0] <= sms else Cost(inf) for node in self.examples
            ]
        return self._kind_costs[key]

    def modes(self, saturation: int, sms: int) -> Modes:
        """What every node takes on a stream of ``sms`` SMs, as the simulator wants it."""
        key = (saturation, sms)
        if key not in self._modes:
            costs = self.kind_costs(saturation, sms)
            held = [sms if (most := node.span[1]) is None else min(sms, most) for node in self.examples]
            self._modes[key] = Modes(
                [costs[kind].seconds for kind in self.kinds],
                [held[kind] for kind in self.kinds],
                tuple([getattr(costs[kind], name) for kind in self.kinds] for name in self.resources),
            )
        return self._modes[key]

    def placed(self, saturation: int, streams: Sequence[Stream], lane: Sequence[int]) -> Modes:
        """What every node takes on the one of ``streams`` that ``lane`` has for it."""
        modes = [self.modes(saturation, stream.sms) for stream in streams]
        on = list(enumerate(lane))
        return Modes(
            [modes[at].seconds[node] for node, at in on],
            [modes[at].sms[node] for node, at in on],
            tuple([modes[at].shares[link][node] for node, at in on] for link in range(len(self.resources))),
        )

    def coresidence(self, saturation: int, streams: Sequence[Stream]) -> Coresidence | None:
        """How nodes share SMs on these streams; None where they share none."""

        def seconds_on(node: int, sms: int) -> float:
            return self.kind_costs(saturation, sms)[self.kinds[node]].seconds

        return coresidence(streams, self.operators, seconds_on, self.profile.slowdowns if self.profile else None)

    def _contended(self, link: str) -> bool:
        """Whether anything but the link's own copy engine, which is a queue, draws on it."""
        return any(
            (getattr(node.demand, f"{link}_bytes") or getattr(node.demand, link, 0.0))
            and (node.demand.engine != link or node.stream not in (None, link))
            for node in (*self.examples, *(node for node in self.graph.nodes if node.stream))
        )
