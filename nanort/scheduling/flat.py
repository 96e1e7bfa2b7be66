"""Flat: a graph as flat lists, compiled once for all the schedules of it that are judged."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from math import inf

import numpy as np

from nanort.compiled import Floats, Ints
from nanort.costs.profile import Profile
from nanort.costs.roofline import Cost, Costs
from nanort.devices import Device
from nanort.graph import Graph
from nanort.nodes import Node
from nanort.partition import Stream
from nanort.simulation.fluid import Modes
from nanort.simulation.interference import Coresidence, coresidence

LINKS = ("h2d", "d2h", "net")


@dataclass(frozen=True, slots=True)
class Arrays:
    """The nodes by index: kinds, classes, how many nodes each waits for, and both ends of edges, from ptr to ptr."""

    kinds: Ints
    classes: Ints
    missing: Ints
    ptr: Ints
    succs: Ints
    pred_ptr: Ints
    preds: Ints


class Flat:
    """The nodes of ``graph`` by index: edges, and the kind of each, which decides what it costs.

    Attributes:
        preds, succs: indices of what runs before and after each node.
        kinds: the kind of each node; nodes of one kind cost the same everywhere.
        operators: the name of each node's operator.
        pinned: the nodes that the user put on a stream.
        classes, class_names: the class of each node; nodes called the same in different scopes, such as layers, are of
            one class.
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
        self._tables: dict[tuple[int, int], tuple[Floats, Ints, Floats]] = {}
        key, seen = self.costs(device.hbm_saturation_sms[1]).key, dict[Hashable, int]()
        self.kinds = [seen.setdefault(key(node), len(seen)) for node in graph.nodes]
        first = dict(zip(reversed(self.kinds), reversed(graph.nodes), strict=True))
        self.examples = [first[kind] for kind in range(len(seen))]
        self.operators = [node.op.name for node in graph.nodes]
        names = dict[str, int]()
        self.classes = [names.setdefault(_unscoped(node), len(names)) for node in graph.nodes]
        self.class_names = list(names)
        self.pinned = [node.index for node in graph.nodes if node.stream is not None]
        self.resources = ("hbm", *(link for link in LINKS if self._contended(link)))

    def __len__(self) -> int:
        return len(self.preds)

    def prefix(self, count: int) -> Flat:
        """The first ``count`` nodes: whatever they wait for is among them. Costs are shared with the whole."""
        part = copy(self)
        part.preds, part.kinds, part.classes = self.preds[:count], self.kinds[:count], self.classes[:count]
        part.succs = [[succ for succ in succs if succ < count] for succs in self.succs[:count]]
        part.operators = self.operators[:count]
        part.pinned = [node for node in self.pinned if node < count]
        part._modes = {}
        vars(part).pop("arrays", None)
        return part

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
            held = self._held(sms)
            self._modes[key] = Modes(
                [costs[kind].seconds for kind in self.kinds],
                [held[kind] for kind in self.kinds],
                tuple([getattr(costs[kind], name) for kind in self.kinds] for name in self.resources),
            )
        return self._modes[key]

    @cached_property
    def arrays(self) -> Arrays:
        """The same as arrays, for machine code."""
        ptr, pred_ptr = np.zeros((2, len(self) + 1), np.int64)
        np.cumsum([len(succs) for succs in self.succs], out=ptr[1:])
        np.cumsum([len(preds) for preds in self.preds], out=pred_ptr[1:])
        return Arrays(
            np.array(self.kinds, np.int64),
            np.array(self.classes, np.int64),
            np.array([len(preds) for preds in self.preds], np.int64),
            ptr,
            np.array([succ for succs in self.succs for succ in succs], np.int64),
            pred_ptr,
            np.array([pred for preds in self.preds for pred in preds], np.int64),
        )

    def table(self, saturation: int, sms: int) -> tuple[Floats, Ints, Floats]:
        """What nodes of each kind take on a stream of ``sms`` SMs: seconds, SMs held, and shares [links, kinds]."""
        key = (saturation, sms)
        if key not in self._tables:
            costs = self.kind_costs(saturation, sms)
            self._tables[key] = (
                np.array([cost.seconds for cost in costs], np.float64),
                np.array(self._held(sms), np.int64),
                np.array([[getattr(cost, name) for cost in costs] for name in self.resources], np.float64),
            )
        return self._tables[key]

    def _held(self, sms: int) -> list[int]:
        """SMs that a node of each kind holds on a stream of ``sms`` SMs."""
        spans = (node.span_on(self.device.kind) for node in self.examples)
        return [sms if most is None else min(sms, most) for _, most in spans]

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


def _unscoped(node: Node) -> str:
    """The name of a node without the labels of its scope, which graph.py puts before it."""
    return node.name.removeprefix("".join(f"{key}{label}." for key, label in node.scope))
