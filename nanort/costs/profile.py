"""Profile: seconds that were measured on one device, which replace the cost model where there are any."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any

from nanort.costs import files
from nanort.errors import CostError, FileError
from nanort.graph import Node

SCHEMA, VERSION = "nanort.profile", 1

Key = tuple[str, tuple[tuple[int, ...], ...], str, float, float]


@dataclass(frozen=True, slots=True)
class Measurement:
    """Seconds that one call took alone on ``sms`` SMs.

    The work is part of what identifies a call, since shapes do not tell the lengths that a ragged operator reads.
    """

    operator: str
    kernel: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    flops: float
    hbm_bytes: float
    sms: int
    seconds: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds > 0 and self.sms >= 0):
            raise CostError(f"{self}: a measurement takes more than zero seconds, on zero SMs (a copy engine) or more")

    @staticmethod
    def of(node: Node, kernel: str, sms: int, seconds: float) -> Measurement:
        """The measurement of a node of some graph; it holds for every equal call."""
        operator, shapes, dtype, flops, hbm_bytes = _key(node)
        return Measurement(operator, kernel, shapes, dtype, flops, hbm_bytes, sms, seconds)


@dataclass(frozen=True, slots=True)
class Pair:
    """How much longer two operators took side by side on the same SMs than each of them alone."""

    first: str
    second: str
    first_slowdown: float
    second_slowdown: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(slowdown) and slowdown >= 1 for slowdown in (self.first_slowdown, self.second_slowdown)):
            raise CostError(f"{self}: side by side, nothing is faster than alone: slowdowns are 1 or more")


class Profile:
    """What was measured on one device.

    Between two measured SM counts, seconds follow t(n) = a + b / n through both: a part that SMs do not help, and one
    that they share. Outside the measured counts the cost model holds.

    Args:
        device, sms: name and SMs of the device.
        machine: what else tells it from others of its name: driver, clocks, host.
        measurements: solo seconds; a call measured twice keeps the last.
        pairs: slowdowns of co-resident operators.
    """

    def __init__(
        self, device: str, sms: int, machine: str, measurements: Iterable[Measurement], pairs: Iterable[Pair] = ()
    ) -> None:
        self.device = device
        self.sms = sms
        self.machine = machine
        self.measurements = tuple(sorted(set(measurements), key=astuple))
        self.pairs = {(pair.first, pair.second): (pair.first_slowdown, pair.second_slowdown) for pair in pairs}
        self._points: dict[Key, dict[str, dict[int, float]]] = {}
        for m in measurements if isinstance(measurements, (list, tuple)) else self.measurements:
            kernels = self._points.setdefault((m.operator, m.shapes, m.dtype, m.flops, m.hbm_bytes), {})
            kernels.setdefault(m.kernel, {})[m.sms] = m.seconds

    def __repr__(self) -> str:
        return f"Profile({self.device}, {self.machine!r}: {len(self.measurements)} measurements, {len(self.pairs)} pairs)"
