"""Scattered: a policy that places nodes anyhow, since any valid schedule has to give the right values."""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import inf

from nanort.scheduling.policy import Greedy
from nanort.scheduling.structures import COMPUTE, MEMORY, Structure
from nanort.scheduling.workload import Workload


@dataclass(frozen=True, slots=True)
class Scattered:
    """Nodes in an order that ``seed`` draws, on streams that share all SMs or have groups of their own."""

    seed: int

    @property
    def name(self) -> str:
        return f"scattered by {self.seed}"

    def structures(self, work: Workload) -> list[Structure]:
        """One, which the seed draws."""
        chance = random.Random(self.seed)
        if chance.random() < 0.5:
            return [work.coresident(chance.randint(2, 4))]
        device = work.device
        least = chance.randrange(device.sm_minimum, device.partitionable_sms // 2, device.sm_granularity)
        return [work.isolated(least, device.partitionable_sms - least)]

    def dispatch(self, work: Workload, structure: Structure) -> Greedy:
        """The most urgent of the ready nodes of each stream; the seed draws how urgent, and which stream."""
        chance, lanes = random.Random(self.seed), structure.lanes(COMPUTE, MEMORY)
        homes: dict[int, tuple[int, ...]] = {}
        for node in range(len(work)):
            home = chance.choice(lanes)
            if not work.engine(node) and work.seconds(node, structure.streams[home].sms) < inf:
                homes[node] = (home,)
        return Greedy(work, structure, [chance.random() for _ in range(len(work))], homes)
