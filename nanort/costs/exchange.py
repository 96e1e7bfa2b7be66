"""Exchange: how fast an operator runs on a part of the SMs while others hold the rest, as a measured curve."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from nanort.errors import CostError


@dataclass(frozen=True, slots=True)
class Exchange:
    """The performance of one operator by the share of the SMs that it holds; 1 is alone on the whole device.

    Attributes:
        operator: its name.
        points: (share, performance) as measured; joined by straight lines through (0, 0), the points and (1, 1), so
            that no points at all stand for an operator that performs as much as it holds.

    Raises:
        CostError: shares do not rise from 0 to 1, or performance falls somewhere or leaves 0 to 1.

    >>> gemv = Exchange("gemv", ((0.1, 0.2), (0.2, 0.3), (0.4, 0.8)))
    >>> gemv.performance(0.4), gemv.performance(0.7)
    (0.8, 0.9)
    """

    operator: str
    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        line = self._line
        rising = all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(line))
        if not rising or not all(math.isfinite(figure) for point in line for figure in point) or line[1][1] <= 0:
            raise CostError(
                f"exchange of {self.operator!r}: {self.points} are no (share, performance) points: give shares that "
                "rise between 0 and 1, and performances above 0 and up to 1 that never fall"
            )

    @staticmethod
    def of(operator: str, points: Iterable[Iterable[float]]) -> Exchange:
        """The exchange of an operator whose points are given in any order."""
        return Exchange(operator, tuple(sorted((share, performance) for share, performance in points)))

    @property
    def _line(self) -> tuple[tuple[float, float], ...]:
        return ((0.0, 0.0), *self.points, (1.0, 1.0))

    def performance(self, share: float) -> float:
        """What it performs on ``share`` of the SMs, of what it performs alone on all of them."""
        line = self._line
        above = max(1, bisect_left(line, (share, -math.inf)))
        (left, low), (right, high) = line[above - 1], line[above]
        return low + (high - low) * (share - left) / (right - left)

    def knots(self, sms: int) -> set[int]:
        """SMs, of ``sms``, at the ends of the straight lines; between two of them SM-seconds change one way."""
        return {max(1, end(share * sms)) for share, _ in self.points for end in (math.floor, math.ceil)}
