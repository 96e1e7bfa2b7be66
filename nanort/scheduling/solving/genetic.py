"""The search: a genetic algorithm on activity lists with two populations, one for each direction of time.

Children of forward schedules are scheduled backwards and the other way round, so that every schedule is also the
justification of what its parents have in common (Debels and Vanhoucke 2005). Half of the crossovers keep the mother's
busiest stretch (Valls, Ballestin and Quintanilla 2008). Some children go through the parallel scheme whatever their
parents did: it sees to it that nothing lies idle, and is what renews the population.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

import numpy as np

from nanort.compiled import COMPILES, Ints
from nanort.scheduling.solving import generation, vectorised
from nanort.scheduling.solving.arrays import SLACK, Arrays
from nanort.scheduling.solving.bounds import longest
from nanort.scheduling.solving.breeding import Population, breed, sample, settle
from nanort.scheduling.solving.generation import Side

SIZE = 1.8
"""Lists in a population, for the square root of the budget."""
AT_ONCE = 0.3
"""The share of children that go through the parallel scheme."""
SWAPS, FLIPS = 20, 150
"""Of 1,000 neighbours in a child's list, how many change places; of 1,000 of its tasks, how many change modes."""
STALE = 10
"""Generations without a new schedule among the good ones, after which the populations are sampled anew."""
TIE = 1e-3
"""What the mean end of the tasks weighs beside the makespan: of equal schedules the one that is done with more."""
PLACED = 100_000
"""The most tasks that are placed between two looks at the clock."""

Progress = Callable[[int, int, float, float], None]


class Search:
    """Generates schedules for one problem within a budget and keeps the best.

    Args:
        a: the problem.
        bound: a makespan at which it stops.
        budget: schedules that may be generated.
        deadline: the time (of ``time.monotonic``) at which it stops where it is.
        seed: of all that is random.
        progress: told schedules generated, budget, the least makespan and the bound, after each batch.

    Attributes:
        schedules: generated so far.
        makespan: of the best of them.
        starts, modes: the best one's, by task; modes as they stand in the arrays.
        stopped: why it ended before its budget did; "" if it did not.
    """

    def __init__(
        self, a: Arrays, bound: float, budget: int, deadline: float, seed: int, progress: Progress | None = None
    ) -> None:
        self.a, self.bound, self.budget, self.deadline, self.progress = a, bound, budget, deadline, progress
        capacity = a.capacity if a.integral else a.capacity * (1 + SLACK / 2)
        preds, succs = (a.pred_ptr, a.preds), (a.succ_ptr, a.succs)
        self.sides = tuple(
            Side(a.duration, a.usage, a.modes, capacity, *before, *after)
            for before, after in ((preds, succs), (succs, preds))
        )
        self.tails = longest(a.duration[:, 0], a.order[::-1], a.succ_ptr, a.succs)
        self.random = np.array([random.Random(seed).randrange(1, 1 << 32)], np.int64)
        self.schedules, self.makespan, self.stopped = 0, math.inf, ""
        self.starts, self.modes = np.zeros(len(a.order)), np.zeros(len(a.order), np.int64)
        self.forwards = True

    def run(self) -> None:
        """Searches until the budget is spent, the bound met, the deadline there or Ctrl-C pressed."""
        try:
            while not self._over():
                self._evolve()
        except KeyboardInterrupt:
            self.stopped = f"interrupted after {self.schedules:,} schedules"
        if not self.schedules:
            self.judge(0, self.a.order[None], self.chosen(1), np.ones(1, np.int64))
        if not self.forwards:  # tasks are as late as they can be
            order = self.a.order[np.argsort(self.starts[self.a.order], kind="stable")]
            self.judge(0, order[None], self.modes[None].copy(), np.zeros(1, np.int64))

    def judge(self, way: int, orders: Ints, modes: Ints, at_once: Ints) -> Population:
        """Generates a schedule from every list, forwards or, if ``way`` is 1, backwards in time."""
        finish, back = np.empty(orders.shape), np.empty_like(orders)
        generate = generation.generate if COMPILES else vectorised.generate
        makespans = generate(self.sides[way], orders, modes, at_once, finish, back)
        self.schedules += len(orders)
        best = int(makespans.argmin())
        if makespans[best] < self.makespan or (makespans[best] == self.makespan and way == 0 and not self.forwards):
            self.makespan, self.forwards, self.modes = float(makespans[best]), way == 0, modes[best]
            starts = finish[best] - self.a.duration[np.arange(len(self.modes)), self.modes]
            self.starts = starts if self.forwards else makespans[best] - finish[best]
        if self.progress is not None:
            self.progress(self.schedules, self.budget, self.makespan, self.bound)
        return Population(back, modes, finish, makespans + TIE * finish.mean(axis=1))

    def chosen(self, count: int) -> Ints:
        """The modes of lists that leave them to the schemes: the one that ends first."""
        return np.full((count, len(self.a.order)), -1 if self.a.duration.shape[1] > 1 else 0, np.int64)

    def _over(self) -> bool:
        if time.monotonic() >= self.deadline:
            self.stopped = f"time was up after {self.schedules:,} schedules"
        return bool(self.stopped) or not self._left(1) or self.makespan <= self.bound * (1 + SLACK)

    def _left(self, most: int) -> int:
        """How many schedules may follow now; the last of the budget may be needed to shift tasks to the left."""
        return max(0, min(most, self.budget - self.schedules - (self.schedules > 0)))

    def _evolve(self) -> None:
        """Two populations from samples on, until they bring forth nothing new."""
        tasks, size = len(self.a.order), max(2, round(SIZE * math.sqrt(self.budget)))
        size = self._left(min(size, max(2, PLACED // tasks)))
        homes = [self._nobody(size), self._nobody(size)]
        orders, base = np.empty((size, tasks), np.int64), float(self.a.duration[:, 0].mean()) / 5
        sample(self.sides[0], self.tails, base or 1.0, self.random, orders)
        children, way, stale = self.judge(0, orders, self.chosen(size), np.ones(size, np.int64)), 1, 0
        shares = (self.a.usage / np.maximum(self.a.capacity, 1e-300)).sum(axis=2)
        energy = np.where(self.a.mode_index >= 0, self.a.duration, 0.0) * shares
        flips = FLIPS if self.a.duration.shape[1] > 1 else 0
        while True:
            stale = 0 if settle(homes[way], children) else stale + 1
            if stale == STALE or self._over():
                return
            count = self._left(size)
            orders, modes = np.empty((count, tasks), np.int64), np.empty((count, tasks), np.int64)
            breed(self.sides[way], homes[way], energy, SWAPS, flips, self.random, orders, modes)
            children = self.judge(way, orders, modes, (np.arange(count) < AT_ONCE * count).astype(np.int64))
            way = 1 - way

    def _nobody(self, size: int) -> Population:
        shape = (size, len(self.a.order))
        return Population(
            np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape), np.full(size, math.inf)
        )
