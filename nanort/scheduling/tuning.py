"""Tuning: the classes of nodes of a list policy made more or less urgent, and moved, by simulated annealing."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from nanort.scheduling.flat import Flat
from nanort.scheduling.list_schedule import ROLES, ListPolicy
from nanort.scheduling.players import Player
from nanort.scheduling.structures import Structure
from nanort.scheduling.workload import Workload

PREFIX = 300
"""Nodes on which a long graph is tuned: some layers of a model; what holds for them holds for the rest."""

WARMTH = 0.001
"""The fraction of the makespan by which a step may be worse and still be likely to be taken at first."""

TOGETHER = 0.3
"""How often a change is one for the same operator in all nano-batches."""

MOVES = ("", *ROLES)


class Tuning:
    """A list policy in one structure, whose decisions are varied a step at a time.

    A class is what nodes of all layers have in common, so that a decision for a few layers is one for all: a graph of
    many nodes is tuned on its first ones, and judged as a whole in the end.

    Attributes:
        policy: the best so far.
        gain: how many times faster than the policy that it began with it makes the nodes that it is tuned on.
    """

    def __init__(self, work: Workload, structure: Structure, policy: ListPolicy, seed: int) -> None:
        if (count := part(work.flat)) < len(work):
            work = Workload(work.flat.prefix(count), work.saturation)
        self.player = Player(work, structure)
        self.random = random.Random(seed)
        self.classes = sorted(set(work.flat.classes))
        kin: dict[str, list[int]] = {}
        for one in self.classes:
            kin.setdefault(_uncut(work.flat.class_names[one]), []).append(one)
        self.kin = {one: alike for alike in kin.values() for one in alike}
        self.policy = self._at = policy
        self._first = self._seconds = self._best = self.player.seconds(policy)
        self._reach = _longest(work)

    @property
    def gain(self) -> float:
        return self._first / self._best if self._best else 1.0

    def step(self, warmth: float) -> None:
        """Tries one change; a worse one is kept for a while if ``warmth``, of 0 to 1, makes that likely enough."""
        if not self.classes:
            return
        policy = self._changed()
        seconds = self.player.seconds(policy)
        if seconds > self._seconds:
            scale = self._first * WARMTH * warmth
            if not scale or self.random.random() >= math.exp((self._seconds - seconds) / scale):
                return
        self._at, self._seconds = policy, seconds
        if seconds < self._best:
            self.policy, self._best = policy, seconds

    def _changed(self) -> ListPolicy:
        count = len(self.player.work.flat.class_names)
        offsets, homes = list(self._at.offsets or [0.0] * count), list(self._at.homes or [""] * count)
        for _ in range(self.random.choice((1, 1, 2))):
            which = self.classes[self.random.randrange(len(self.classes))]
            changed = self.kin[which] if self.random.random() < TOGETHER else [which]
            if self.random.random() < 0.5:
                home = MOVES[self.random.randrange(len(MOVES))]
                for one in changed:
                    homes[one] = home
            else:
                later = self.random.gauss(0.0, self._reach)
                for one in changed:
                    offsets[one] += later
        return replace(self._at, offsets=tuple(offsets), homes=tuple(homes))


def _uncut(name: str) -> str:
    """The name of a class without the number of its nano-batch."""
    return name.partition("/")[0]


def part(flat: Flat) -> int:
    """How many of the first nodes a graph is tuned on: some scopes of a long graph that has them, otherwise all."""
    nodes = flat.graph.nodes
    scopes = len({node.scope for node in nodes[:PREFIX]})
    if len(nodes) <= PREFIX * 3 // 2 or not 2 < scopes < PREFIX // 4:
        return len(nodes)
    last = nodes[PREFIX].scope
    return next((at for at in range(PREFIX, len(nodes)) if nodes[at].scope != last), len(nodes))


def _longest(work: Workload) -> float:
    costs = work.flat.kind_costs(work.saturation, work.device.sms)
    return max((costs[kind].seconds for kind in set(work.flat.kinds) if costs[kind].seconds < math.inf), default=0.0)
