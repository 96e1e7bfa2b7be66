"""Breeding: activity lists sampled by a priority rule, and crossed; in machine code where there is numba."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nanort.compiled import Floats, Floats2, Ints, Ints2, compiled
from nanort.scheduling.solving.generation import Side

PRESSURE = 4
"""Of so many lists drawn, the best becomes a parent."""
WINDOWS = 20
"""Of so many stretches of the mother's schedule, the busiest is inherited as it is."""
CHOICES = 4
"""How much more often than any one mode a task whose mode is drawn anew takes the one that ends first."""


class Population(NamedTuple):
    """Lists, the schedules that they were read off, and how bad these are, the worst infinitely.

    Attributes:
        orders: for the direction of time in which the lists' children are scheduled.
        modes: by task.
        finish: when each task ends, in the other direction.
        keys: makespans; equal ones by when tasks end on average.
    """

    orders: Ints
    modes: Ints
    finish: Floats
    keys: Floats


@compiled
def draw(random: Ints, below: int) -> int:
    """A random number from 0 on; ``random`` holds the state of a 32-bit xorshift, which is the same in any language."""
    state = int(random[0])
    state ^= (state << 13) & 0xFFFFFFFF
    state ^= state >> 17
    state ^= (state << 5) & 0xFFFFFFFF
    random[0] = state
    return (state * below) >> 32


def sample(side: Side, tails: Floats, base: float, random: Ints, orders: Ints) -> None:
    """Fills ``orders``: tasks that may come next are drawn by how much longer their tails are than the shortest one."""
    _sample(side.before_first, side.after_first, side.after, tails, base, random, orders)


@compiled
def _sample(
    before_first: Ints, after_first: Ints, after: Ints, tails: Floats, base: float, random: Ints, orders: Ints2
) -> None:
    tasks = orders.shape[1]
    open_, weights = np.zeros(tasks, np.int64), np.zeros(tasks)
    for one in range(orders.shape[0]):
        missing = np.diff(before_first)
        count = 0
        for task in range(tasks):
            if missing[task] == 0:
                open_[count] = task
                count += 1
        for place in range(tasks):
            least, total = np.inf, 0.0
            for at in range(count):
                least = min(least, tails[open_[at]])
            for at in range(count):
                weights[at] = tails[open_[at]] - least + base
                total += weights[at]
            left = total * (draw(random, 1 << 30) / (1 << 30)) - weights[0]
            chosen = 0
            while left >= 0 and chosen < count - 1:
                chosen += 1
                left -= weights[chosen]
            task = open_[chosen]
            count -= 1
            open_[chosen] = open_[count]
            orders[one, place] = task
            for arc in range(after_first[task], after_first[task + 1]):
                other = after[arc]
                missing[other] -= 1
                if missing[other] == 0:
                    open_[count] = other
                    count += 1


@compiled
def _parent(keys: Floats, random: Ints) -> int:
    best = draw(random, keys.shape[0])
    for _ in range(PRESSURE - 1):
        other = draw(random, keys.shape[0])
        if keys[other] < keys[best]:
            best = other
    return best


@compiled
def _busiest(order: Ints, modes: Ints, finish: Floats, energy: Floats2, random: Ints) -> tuple[int, int]:
    """The busiest of some random stretches of a list, a quarter to three quarters of it long."""
    tasks = order.shape[0]
    before = np.zeros(tasks + 1)
    for place in range(tasks):
        before[place + 1] = before[place] + energy[order[place], modes[order[place]]]
    most, begin, end = -1.0, 0, tasks
    for _ in range(WINDOWS):
        length = max(1, tasks // 4 + draw(random, max(1, tasks // 2)))
        first = draw(random, tasks - length + 1)
        last = min(first + length, tasks - 1)
        span = finish[order[first]] - finish[order[last]]  # the list starts with what ended last
        density = (before[first + length] - before[first]) / max(span, 1e-300)
        if density > most:
            most, begin, end = density, first, first + length
    return begin, end


@compiled
def _cross(mother: Ints, father: Ints, begin: int, end: int, peak: bool, place: Ints, child: Ints) -> None:
    """Two-point crossover. The middle of the child is in the mother's order, the rest in the father's.

    ``peak`` keeps the tasks of the mother's stretch, and what she has before it; otherwise the father's first tasks are
    followed by the mother's first ones among the others.
    """
    tasks = mother.shape[0]
    for at in range(tasks):
        place[mother[at]] = at
    count = 0
    for at in range(tasks if peak else begin):
        if not peak or place[father[at]] < begin:
            child[count] = father[at]
            count += 1
            if not peak:
                place[father[at]] = -1
    for at in range(begin if peak else 0, tasks):
        if count == end:
            break
        if place[mother[at]] >= 0:
            child[count] = mother[at]
            count += 1
            place[mother[at]] = -1
    for at in range(tasks):
        if place[father[at]] >= (end if peak else 0):
            child[count] = father[at]
            count += 1


def breed(
    side: Side, parents: Population, energy: Floats, swaps: int, flips: int, random: Ints, orders: Ints, modes: Ints
) -> None:
    """Fills ``orders`` and ``modes`` with children of good parents.

    Of 1,000 neighbours ``swaps`` change places; the modes of ``flips`` of 1,000 tasks are drawn anew.
    """
    _breed(side.modes, side.before_first, side.before, *parents, energy, swaps, flips, random, orders, modes)


@compiled
def _precedes(before_first: Ints, before: Ints, task: int, other: int) -> bool:
    found = False
    for arc in range(before_first[other], before_first[other + 1]):
        found |= before[arc] == task
    return found


@compiled
def _breed(
    counts: Ints, before_first: Ints, before: Ints, lists: Ints2, chosen: Ints2, finish: Floats2, keys: Floats,
    energy: Floats2, swaps: int, flips: int, random: Ints, orders: Ints2, modes: Ints2,
) -> None:  # fmt: skip
    tasks, place = orders.shape[1], np.zeros(orders.shape[1], np.int64)
    for one in range(orders.shape[0]):
        mother, father = _parent(keys, random), _parent(keys, random)
        if father == mother:
            father = (father + 1 + draw(random, max(1, keys.shape[0] - 1))) % keys.shape[0]
        order, peak, child = lists[mother], draw(random, 2) == 1, orders[one]
        begin, end = 0, 0
        if peak:
            begin, end = _busiest(order, chosen[mother], finish[mother], energy, random)
        else:
            begin, end = draw(random, tasks), draw(random, tasks)
            begin, end = min(begin, end), max(begin, end)
        _cross(order, lists[father], begin, end, peak, place, child)
        for at in range(tasks):
            modes[one, child[at]] = chosen[mother if begin <= at < end else father, child[at]]
            if flips and draw(random, 1000) < flips:
                modes[one, child[at]] = draw(random, counts[child[at]] + CHOICES) - CHOICES
                modes[one, child[at]] = max(modes[one, child[at]], -1)
        for at in range(tasks - 1):
            if draw(random, 1000) < swaps and not _precedes(before_first, before, child[at], child[at + 1]):
                child[at], child[at + 1] = child[at + 1], child[at]


def settle(home: Population, children: Population) -> int:
    """Each child takes the place of the worst, if it is no worse and none is like it; answers how many did.

    Schedules with the same key are taken for alike: most are.
    """
    return _settle(*home, *children)


@compiled
def _settle(
    orders: Ints2, modes: Ints2, finish: Floats2, keys: Floats,
    new_orders: Ints2, new_modes: Ints2, new_finish: Floats2, new_keys: Floats,
) -> int:  # fmt: skip
    settled = 0
    for one in range(new_keys.shape[0]):
        key, worst, known = new_keys[one], 0, False
        for at in range(keys.shape[0]):
            if keys[at] > keys[worst]:
                worst = at
            known |= keys[at] == key
        if key <= keys[worst] and (not known or keys[worst] == np.inf):
            orders[worst], modes[worst] = new_orders[one], new_modes[one]
            finish[worst], keys[worst] = new_finish[one], key
            settled += 1
    return settled
