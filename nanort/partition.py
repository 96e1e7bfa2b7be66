"""Group and Stream: disjoint sets of SMs and the streams confined to them, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nanort.devices import Device
from nanort.errors import CapacityError


@dataclass(frozen=True, slots=True)
class Group:
    """A set of SMs: the half-open range ``units`` of the device's smallest groups, or all SMs where it is None."""

    name: str
    sms: int
    units: tuple[int, int] | None = None
    lanes: int = 1

    def overlaps(self, other: Group) -> bool:
        """Whether the two groups share an SM."""
        if self.units is None or other.units is None:
            return True
        return self.units[0] < other.units[1] and other.units[0] < self.units[1]


@dataclass(frozen=True, slots=True)
class Stream:
    """A queue whose work runs in order: one lane of an SM group, or a copy engine (``group=None``)."""

    name: str
    group: Group | None = None
    engine: str = ""

    @property
    def sms(self) -> int:
        """SMs that work on this stream may hold; 0 for a copy engine."""
        return self.group.sms if self.group else 0


WHOLE = "whole"
ENGINES = ("h2d", "d2h")


def whole(device: Device, lanes: int = 1) -> Group:
    """All SMs of the device, the ones that no smaller group can hold included."""
    return Group(WHOLE, device.sms, None, lanes)


def split(device: Device, sizes: Sequence[int]) -> tuple[Group, ...]:
    """Disjoint groups of ``sizes`` SMs, first to last.

    Raises:
        CapacityError: a size is not a multiple of the granularity, is below the minimum, or they exceed the device.
    """
    grain, usable = device.sm_granularity, device.partitionable_sms
    total = sum(sizes)
    if not sizes or any(size < device.sm_minimum or size % grain for size in sizes) or total > usable:
        raise CapacityError(
            f"cannot split {device.name} into {tuple(sizes)} SMs: sizes must be multiples of {grain}, at least "
            f"{device.sm_minimum}, and add up to at most {usable}, got {total}"
        )
    groups, first = [], 0
    for index, size in enumerate(sizes):
        groups.append(Group(f"g{index}", size, (first, first + size // grain)))
        first += size // grain
    return tuple(groups)


def streams(groups: Sequence[Group], engines: Sequence[str] = ()) -> tuple[Stream, ...]:
    """One stream per lane of every group, then one per copy engine."""
    lanes = [
        Stream(group.name if lane == 0 else f"{group.name}.{lane}", group)
        for group in groups
        for lane in range(group.lanes)
    ]
    return (*lanes, *(Stream(engine, None, engine) for engine in engines))
