"""The operators of a timeline on the roof of its device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nanort.timeline import analysis, units

if TYPE_CHECKING:
    from nanort.timeline.events import Timeline


@dataclass(frozen=True, slots=True)
class Point:
    """All activities of an operator that ended: how many, in how many seconds, and what they did."""

    operator: str
    count: int
    seconds: float
    flops: float
    hbm_bytes: float

    @property
    def intensity(self) -> float:
        """FLOP per byte of device memory; infinite where no byte moves."""
        return self.flops / self.hbm_bytes if self.hbm_bytes else math.inf

    @property
    def achieved(self) -> float:
        """FLOP/s."""
        return self.flops / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Roofline:
    """Operators by their seconds, the most first, and the roof over them; prints as a table.

    Attributes:
        points: operators that compute or move bytes of device memory.
        flops, hbm_bandwidth: the roof, FLOP/s and bytes/s; 0 where not known.
    """

    points: tuple[Point, ...]
    flops: float
    hbm_bandwidth: float

    @property
    def ridge(self) -> float:
        """FLOP per byte from which on arithmetic is the roof."""
        return self.flops / self.hbm_bandwidth if self.hbm_bandwidth else 0.0

    def attainable(self, intensity: float) -> float:
        """FLOP/s under the roof at this intensity; infinite where neither roof is known."""
        slope = self.hbm_bandwidth * intensity if self.hbm_bandwidth else math.inf
        return min(self.flops or math.inf, slope)

    def share(self, point: Point) -> float:
        """How much of what the roof lets through an operator reaches; above 1 where caches serve its bytes."""
        if not point.seconds:
            return 0.0
        arithmetic = point.achieved / self.flops if self.flops else 0.0
        memory = point.hbm_bytes / point.seconds / self.hbm_bandwidth if self.hbm_bandwidth else 0.0
        return max(arithmetic, memory)

    def __str__(self) -> str:
        rows = [
            (
                units.plain(point.operator, 40),
                f"{point.count:,}",
                units.duration(point.seconds),
                "-" if math.isinf(point.intensity) else f"{point.intensity:.3g}",
                f"{point.achieved / 1e12:.3g}",
                units.percent(self.share(point)),
            )
            for point in self.points
        ]
        return "\n".join(units.table(("", "count", "in all", "FLOP/byte", "TFLOP/s", "of the roof"), rows, most=24))


def roofline(timeline: Timeline) -> Roofline:
    """Where each operator lies under the device's roof."""
    flat = timeline.flat
    ran, count = flat.ended, len(flat.operators)
    mine = flat.operator[ran]
    sums = [
        np.bincount(mine, weights, count).tolist()
        for weights in (
            None,
            (timeline.end - timeline.start)[ran],
            *(analysis.column(timeline, name)[ran] for name in ("flops", "hbm_bytes")),
        )
    ]
    points = [Point(*row) for row in zip(flat.operators, *sums, strict=True) if row[3] or row[4]]
    return Roofline(tuple(sorted(points, key=lambda point: -point.seconds)), timeline.flops, timeline.hbm_bandwidth)
