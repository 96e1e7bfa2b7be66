"""Lower bounds of a problem: a time before which no solution can end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from nanort.compiled import Floats, Ints
from nanort.scheduling.problem import Problem
from nanort.scheduling.solving.arrays import SLACK, Arrays

WINDOWS = 64
"""The most begins, and the most ends, of windows that are looked at."""

WINDOW_MODES = 1 << 22
"""The most pairs of a window and a mode: what takes a tenth of a second."""

ROUNDING = 1e-12
"""The fraction by which a sum may be off."""


@dataclass(frozen=True, slots=True)
class ProblemBounds:
    """Times before which no solution can end, each for its own reason; whole numbers where the problem's are.

    Attributes:
        critical_path: the longest chain of tasks, each in its shortest mode.
        work: by resource, the least that tasks need of it, at its full capacity, with the shortest way to its first
            user and from its last one.
        windows: by resource, the largest of the same for windows of time: what must fall into one, wherever tasks start
            between the earliest and latest time that chains leave them. Each mode counts with its own least.
    """

    critical_path: float
    work: Mapping[str, float] = field(hash=False)
    windows: Mapping[str, float] = field(hash=False)

    @property
    def best(self) -> float:
        """The largest of them."""
        return self._all()[self.limit]

    @property
    def limit(self) -> str:
        """The name of the largest of them, ``"critical path"`` or ``"work of R1"``."""
        named = self._all()
        return max(named, key=lambda name: named[name])

    def _all(self) -> dict[str, float]:
        parts = {"work": self.work, "windows": self.windows}
        named = {f"{what} of {name}": time for what, part in parts.items() for name, time in part.items()}
        return {"critical path": self.critical_path, **named}


def bound(problem: Problem) -> ProblemBounds:
    """Lower bounds for every solution of ``problem``."""
    a = problem.arrays
    least = a.duration[:, 0]
    heads, tails = longest(least, a.order, a.pred_ptr, a.preds), longest(least, a.order[::-1], a.succ_ptr, a.succs)
    path = float((heads + least + tails).max())
    capacity = a.capacity * (1.0 if a.integral else 1.0 + SLACK)
    real = a.mode_index >= 0
    energy = np.where(real, a.duration, 0.0)[..., None] * a.usage
    energy = np.where(real[..., None], energy, np.inf).min(axis=1)
    work = np.zeros(len(capacity))
    for resource in np.flatnonzero(energy.any(axis=0)):
        users = energy[:, resource] > 0
        within = energy[:, resource].sum() / capacity[resource]
        work[resource] = within + heads[users].min() + tails[users].min()
    windows, soonest = work, max(path, *work.tolist()) if work.size else path
    for _ in range(2):  # what must fall into a window grows with the makespan
        windows = np.maximum(windows, _windows(a, heads, tails, capacity, soonest * (1 - ROUNDING)))
        soonest = max(soonest, *windows.tolist()) if windows.size else soonest

    def named(times: Floats) -> dict[str, float]:
        down = (float(time) * (1 - ROUNDING) for time in times)
        return dict(zip(problem.capacities, map(math.ceil, down) if a.integral else down, strict=True))

    return ProblemBounds(int(path) if a.integral else path * (1 - ROUNDING), named(work), named(windows))


def longest(duration: Floats, order: Ints, pointers: Ints, before: Ints) -> Floats:
    """For each task, the longest chain that must have ended before it; ``order`` is topological."""
    lengths, start, others = duration.tolist(), pointers.tolist(), before.tolist()
    found = [0.0] * len(lengths)
    for task in order.tolist():
        for other in others[start[task] : start[task + 1]]:
            found[task] = max(found[task], found[other] + lengths[other])
    return np.array(found)


def _windows(a: Arrays, heads: Floats, tails: Floats, capacity: Floats, soonest: float) -> Floats:
    """[R], for the best of some windows, when the work that must fall into it leaves it done, and what follows it.

    A window goes from ``begin`` to ``behind`` before the end, which is at ``soonest`` or later. A task overlaps it
    least where it starts as early or as late as it can; both overlaps only grow as the end moves away.
    """
    busy = (a.usage.max(axis=1) > 0).any(axis=1)
    found = np.zeros(len(capacity))
    if not busy.any():
        return found
    head, tail, usage, real = heads[busy, None], tails[busy, None], a.usage[busy], a.mode_index[busy] >= 0
    length = np.where(real, a.duration[busy], 0.0)
    count = max(2, min(WINDOWS, math.isqrt(WINDOW_MODES // (length.size * max(1, len(capacity))))))
    behind = _some(tails[busy], count)[:, None, None]
    late_end = np.minimum(soonest - tail, soonest - behind)
    for begin in _some(heads[busy], count):
        early = np.minimum(head + length, soonest - behind) - np.maximum(head, begin)
        late = late_end - np.maximum(soonest - tail - length, begin)
        overlap = np.maximum(np.minimum(early, late), 0.0)  # [windows, T, M]
        for resource in range(len(capacity)):
            if capacity[resource]:
                energy = np.where(real, overlap * usage[:, :, resource], np.inf).min(axis=2).sum(axis=1)
                ends = np.where(energy > 0, begin + energy / capacity[resource] + behind[:, 0, 0], 0.0)
                found[resource] = max(found[resource], float(ends.max()))
    return found


def _some(times: Floats, count: int) -> Floats:
    """At most ``count`` of the distinct times, evenly chosen."""
    distinct: Floats = np.unique(times)
    chosen: Floats = distinct[
        np.unique(np.linspace(0, len(distinct) - 1, min(count, len(distinct))).round().astype(np.int64))
    ]
    return chosen
