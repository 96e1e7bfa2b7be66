"""Samples: what a call took on one machine, alone or side by side with another, and how much it varied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from nanort.costs.profile import Measurement, call
from nanort.costs.provenance import Versions, machine, versions
from nanort.devices import Device
from nanort.driver import Driver
from nanort.errors import CostError
from nanort.nodes import Node


class Place(NamedTuple):
    """Where and with what something is measured; measurements of different places are never mixed.

    Attributes:
        device, sms: as plans name it.
        gpu: the product's name; for a CPU its processor.
        driver: the version of its driver, "" for a CPU.
        versions: of the packages that decide how long an operator takes.
    """

    device: str
    sms: int
    gpu: str
    driver: str
    versions: Versions

    @staticmethod
    def of(device: Device, driver: Driver | None = None) -> Place:
        """This machine's CPU, or the GPU behind ``driver``."""
        if driver is None:
            return Place(device.name, device.sms, machine(), "", versions())
        facts = driver.facts()
        return Place(device.name, device.sms, facts.gpu, facts.driver, versions())


class Call(NamedTuple):
    """What is measured: a call of an operator, by one of its kernels, on so many SMs."""

    operator: str
    kernel: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    flops: float
    hbm_bytes: float
    sms: int
    tiles: int = 0

    @staticmethod
    def of(node: Node, kernel: str, sms: int) -> Call:
        """That of a node of some graph; equal calls of all graphs are one."""
        operator, shapes, dtype, flops, hbm_bytes = call(node)
        return Call(operator, kernel, shapes, dtype, flops, hbm_bytes, sms, node.demand.tiles)

    @property
    def name(self) -> str:
        """The operator's, without the literals of the call."""
        return self.operator.partition("(")[0]


@dataclass(frozen=True, slots=True)
class Sample:
    """What a call took, alone or side by side with another.

    Attributes:
        seconds: the median of ``runs`` runs.
        low, high: their 20th and 80th percentiles.
        clocks: MHz while it was measured, by name; none where they cannot be read.
        beside: the call that ran at the same time, over and over; None if nothing did.
    """

    call: Call
    seconds: float
    low: float
    high: float
    runs: int
    clocks: tuple[tuple[str, float], ...] = ()
    beside: Call | None = None

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.seconds <= self.high < float("inf") or self.runs < 1:
            raise CostError(f"{self}: give one run or more, and seconds above zero that lie between low and high")

    @staticmethod
    def of(
        call: Call, times: Sequence[float], clocks: tuple[tuple[str, float], ...] = (), beside: Call | None = None
    ) -> Sample:
        """The sample of some runs."""
        ordered = sorted(times)
        low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.2, 0.8))
        return Sample(call, median(ordered), low, high, len(ordered), clocks, beside)

    @property
    def spread(self) -> float:
        """Between the percentiles, as a share of the median."""
        return (self.high - self.low) / self.seconds

    @property
    def measurement(self) -> Measurement:
        """As profiles have it."""
        return Measurement(*self.call[:-1], self.seconds)
