"""The measured guard: schedules that were run side by side, and which of them is used."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import median

from nanort.errors import ScheduleError
from nanort.graph import Graph
from nanort.scheduling.schedule import Schedule
from nanort.timeline.units import counted, duration, percent

CONFIDENCE = 0.95
"""How often, at least, an interval holds what it is said to hold."""

Measure = Callable[[Sequence[Schedule]], Sequence[Sequence[float]]]
"""Runs schedules of one graph: for each the seconds of its runs, as many for all; the k-th of each ran side by side."""

_standard: list[Callable[[int], Measure]] = []


def standard(make: Callable[[int], Measure]) -> Callable[[int], Measure]:
    """Makes ``make(seed)`` what ``measure=True`` asks for: what runs schedules stands above what plans them."""
    _standard[:] = [make]
    return make


def measure_of(asked: Measure | bool | None, graph: Graph, seed: int) -> Measure | None:
    """What ``measure=`` asks for."""
    if asked is None or asked is False:
        return None
    if asked is True:
        asked = _standard[0](seed)
    if not callable(asked):
        raise ScheduleError(f"measure={asked!r} measures nothing: give True, a Stopwatch, or what times schedules")
    if (refuse := getattr(asked, "refuse", None)) is not None:
        refuse(graph)  # before a search, which takes longer
    return asked


@dataclass(frozen=True, slots=True)
class Median:
    """The median of a sample, and the interval that holds the true one; None where fewer than six runs tell none."""

    value: float
    interval: tuple[float, float] | None

    @staticmethod
    def of(sample: Sequence[float]) -> Median:
        """By order statistics, whatever the distribution: a run is below the true median as a coin shows heads.

        >>> Median.of([3.0, 1.0, 2.0, 5.0, 4.0, 6.0])
        Median(value=3.5, interval=(1.0, 6.0))
        """
        ordered, n = sorted(sample), len(sample)
        below = accumulate(math.comb(n, heads) / 2**n for heads in range(n))
        dropped = sum(chance <= (1 - CONFIDENCE) / 2 for chance in below)  # from each end, and one more
        return Median(median(ordered), (ordered[dropped - 1], ordered[n - dropped]) if dropped else None)

    def told(self, form: Callable[[float], str]) -> str:
        """``1.2 s [1.1 s, 1.3 s]``, its figures written by ``form``."""
        return form(self.value) + (f" [{', '.join(map(form, self.interval))}]" if self.interval else "")


def fastest(baseline: Schedule, others: Sequence[Schedule], measure: Measure) -> tuple[Schedule, list[str]]:
    """Whichever has the least median, the baseline only if all others are slower, and a line on each of the others.

    A line gives the medians, and the median ratio of runs that were side by side: how many times faster than the
    baseline that is, with the interval of the same ratio.

    Raises:
        ScheduleError: ``measure`` did not time them all.
    """
    schedules = (*others, baseline)
    said = measure(schedules)
    try:
        samples = [[float(seconds) for seconds in sample] for sample in said]
    except (TypeError, ValueError):
        samples = []
    runs = len(samples[0]) if samples else 0
    alike = runs > 0 and [len(sample) for sample in samples] == [runs] * len(schedules)
    if not alike or not all(0 < seconds < math.inf for sample in samples for seconds in sample):
        raise ScheduleError(
            f"measure= said {said} for {counted(len(schedules), 'schedule')}: it must give the seconds of each run, "
            f"as many runs for every schedule"
        )
    medians = [Median.of(sample) for sample in samples]
    kept = min(range(len(schedules)), key=lambda k: medians[k].value)
    how = f"measured, {counted(runs, 'interleaved run')} each"
    how += f", {percent(CONFIDENCE)} intervals" if medians[0].interval else ", too few for intervals"
    beside = f"{baseline.mechanism} {medians[-1].told(duration)}"
    lines = list[str]()
    for k, schedule in enumerate(others):
        ratios = [there / here for here, there in zip(samples[k], samples[-1], strict=True)]
        gain = Median.of(ratios)
        lines.append(
            f"{how}: {schedule.mechanism} {medians[k].told(duration)}, {beside}: {gain.told('{:.2f}x'.format)}"
        )
    return schedules[kept], lines
