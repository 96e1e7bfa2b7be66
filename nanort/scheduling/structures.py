"""Structure: the frame of a plan, SM groups and the streams on them; decided before any node is placed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nanort.devices import Device
from nanort.partition import WHOLE, Group, Stream, split, streams, whole

SERIAL, COPIES, CORESIDENT, ISOLATED = "serial", "copies", "co-resident", "isolated"


@dataclass(frozen=True, slots=True)
class Structure:
    """A mechanism, its SM groups and its streams.

    The mechanisms:
        serial: one stream on the whole device, transfers included: what a framework does by itself.
        copies: the whole device, and a stream for each copy engine.
        co-resident: two streams on the whole device, whose nodes share its SMs.
        isolated: two disjoint groups, one for memory-bound nodes and one for compute-bound ones, and the whole device
            for a node that is ready alone.

    Attributes:
        compute, memory: the streams for compute-bound and for memory-bound nodes, as indices.
        alone: the stream that excludes those two, or -1.
    """

    mechanism: str
    groups: tuple[Group, ...]
    streams: tuple[Stream, ...]
    compute: int = 0
    memory: int = 0
    alone: int = -1

    def __str__(self) -> str:
        if self.mechanism != ISOLATED:
            return self.mechanism
        parts = sorted((group for group in self.groups if group.name != WHOLE), key=lambda group: group.name)
        return f"{ISOLATED} {'+'.join(str(group.sms) for group in parts)} SMs"


def serial(device: Device) -> Structure:
    """One stream for everything."""
    group = whole(device)
    return Structure(SERIAL, (group,), streams((group,)))


def overlapping(device: Device, engines: Sequence[str]) -> Iterator[Structure]:
    """Every structure but the serial one; ``engines`` are the copy engines that some node uses."""
    group, lanes = whole(device), whole(device, lanes=2)
    if engines:
        yield Structure(COPIES, (group,), streams((group,), engines))
    yield Structure(CORESIDENT, (lanes,), streams((lanes,), engines), compute=0, memory=1)
    grain, usable = device.sm_granularity, device.partitionable_sms
    least = -(-device.sm_minimum // grain) * grain
    for sms in range(least, usable - least + 1, grain):
        memory, compute = split(device, (sms, usable - sms))
        groups = (group, compute, memory)
        yield Structure(ISOLATED, groups, streams(groups, engines), compute=1, memory=2, alone=0)
