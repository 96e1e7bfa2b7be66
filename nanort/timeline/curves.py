"""What was in use when: SMs, arithmetic and bandwidths over time, and which of them was nearest to its roof."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nanort.timeline import analysis, units
from nanort.timeline.analysis import SMS
from nanort.timeline.flat import Ints

if TYPE_CHECKING:
    from nanort.timeline.events import Timeline

WORK = {"flops": "flops", "hbm": "hbm_bytes", "h2d": "h2d_bytes", "d2h": "d2h_bytes"}
"""The fields of an activity that make each curve beside that of the SMs."""

ROOFS = {"compute": "flops", "device memory": "hbm", "PCIe down": "h2d", "PCIe up": "d2h"}
LAUNCH, IDLE = "launch", "idle"
NAMES = (*ROOFS, LAUNCH, IDLE)


@dataclass(frozen=True, slots=True)
class Curve:
    """A resource over time: from each of ``times_ns`` on, ``values`` of it are in use, per second but for SMs."""

    times_ns: Ints
    values: npt.NDArray[np.float64]
    capacity: float

    def at(self, times_ns: Ints) -> npt.NDArray[np.float64]:
        """How much is in use right after each of ``times_ns``."""
        place = np.searchsorted(self.times_ns, times_ns, "right")
        return np.concatenate(([0.0], self.values))[place]


def curves(timeline: Timeline) -> dict[str, Curve]:
    """What was in use of ``"sms"``, ``"flops"``, ``"hbm"``, ``"h2d"`` and ``"d2h"``.

    The work of an activity is spread evenly over its run; what takes no time counts for nothing.
    """
    flat = timeline.flat
    found = {SMS: Curve(*analysis.sms_in_use(timeline, flat.start, flat.end), float(timeline.sm_capacity))}
    ran = flat.ended & (flat.lasted_ns > 0)
    for name, field in WORK.items():
        work = analysis.column(timeline, field)
        works = ran & (work > 0)
        rates = work[works] * 1e9 / flat.lasted_ns[works]
        capacity = timeline.flops if name == "flops" else getattr(timeline, f"{name}_bandwidth")
        found[name] = Curve(*analysis.levels(flat.start[works], flat.end[works], rates), capacity)
    return found


@dataclass(frozen=True, slots=True)
class Binding:
    """Which roof the device was nearest to, from zero to the makespan; prints as shares of it.

    ``"compute"``, ``"device memory"``, ``"PCIe down"`` or ``"PCIe up"``: of those whose capacity is known, the one with
    the largest share in use. ``"launch"``: something ran that neither computes nor moves anything that is known.
    ``"idle"``: nothing ran. Iterating gives (first nanosecond, last, roof).

    Attributes:
        times_ns: where stretches begin, and after them the makespan.
        roofs: the roof of each, as a place in ``NAMES``.
    """

    times_ns: Ints
    roofs: Ints

    def __iter__(self) -> Iterator[tuple[int, int, str]]:
        times = self.times_ns.tolist()
        return zip(times, times[1:], map(NAMES.__getitem__, self.roofs.tolist()), strict=False)

    @property
    def nanoseconds(self) -> dict[str, int]:
        """How long each roof was the nearest, of those that ever were."""
        spent = np.zeros(len(NAMES), np.int64)
        np.add.at(spent, self.roofs, np.diff(self.times_ns))
        return {name: ns for name, ns in zip(NAMES, spent.tolist(), strict=True) if ns}

    def __str__(self) -> str:
        spent = self.nanoseconds
        whole = sum(spent.values())
        longest = sorted(spent.items(), key=lambda item: -item[1])
        return "   ".join(f"{name} {units.percent(ns / whole)}" for name, ns in longest)


def binding(timeline: Timeline) -> Binding:
    """Which roof was nearest when."""
    flat = timeline.flat
    if not flat.makespan_ns:
        return Binding(np.zeros(1, np.int64), np.empty(0, np.int64))
    every = curves(timeline)
    running = analysis.levels(flat.start[flat.ended], flat.end[flat.ended], np.ones(int(flat.ended.sum())))
    busy = Curve(*running, 0.0)
    edges = [np.array([0, flat.makespan_ns]), busy.times_ns, *(every[name].times_ns for name in ROOFS.values())]
    times = np.unique(np.concatenate(edges))
    shares = np.array(
        [
            every[name].at(times) / every[name].capacity if every[name].capacity else np.zeros(len(times))
            for name in ROOFS.values()
        ]
    )
    nearest = np.where(shares.max(0) > 0, shares.argmax(0), NAMES.index(LAUNCH))
    nearest = np.where(busy.at(times) > 0, nearest, NAMES.index(IDLE))[:-1]
    begins = np.flatnonzero(np.diff(nearest, prepend=-1))
    return Binding(np.concatenate((times[begins], times[-1:])), nearest[begins])
