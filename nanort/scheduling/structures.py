"""Structure: the frame of a plan, SM groups and the streams on them; decided before any node is placed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nanort.devices import Device
from nanort.partition import WHOLE, Group, Stream, split, streams, whole

SERIAL, COPIES, CORESIDENT, ISOLATED = "serial", "copies", "co-resident", "isolated"

STEPS = 8
"""Two splits of one structure lie one of so many parts of the device apart."""

CROWDS = (4, 8)
"""Streams on the whole device on which any node may run."""

COMPUTE, MEMORY, BOTH, ALONE, COPY = "compute", "memory", "both", "alone", "copy"
"""What a stream is for: nodes bound by one or the other, any node, a node that is ready alone, one copy engine."""


@dataclass(frozen=True, slots=True)
class Structure:
    """A mechanism, its SM groups and its streams.

    The mechanisms:
        serial: one stream on the whole device, transfers included: what a framework does by itself.
        copies: the whole device, and a stream for each copy engine.
        co-resident: several streams on the whole device, whose nodes share its SMs.
        isolated: disjoint groups, and the whole device for a node that is ready alone; in several splits of the device,
            if need be, of which each node takes the largest group whose SMs are free.

    Streams whose groups overlap without being the same exclude each other: the simulator never runs them together.

    Attributes:
        roles: what each stream is for, as list scheduling sees it.
    """

    mechanism: str
    groups: tuple[Group, ...]
    streams: tuple[Stream, ...]
    roles: tuple[str, ...]

    def __str__(self) -> str:
        if self.mechanism != ISOLATED:
            crowd = self.groups[0].lanes
            return self.mechanism if crowd <= 2 else f"{self.mechanism} on {crowd} streams"
        splits: list[list[Group]] = []  # those of a split are disjoint
        for group in sorted((group for group in self.groups if group.name != WHOLE), key=lambda group: group.name):
            if not splits or any(group.overlaps(other) for other in splits[-1]):
                splits.append([])
            splits[-1].append(group)
        sizes = ("+".join(f"{one.sms}x{one.lanes}" if one.lanes > 1 else f"{one.sms}" for one in s) for s in splits)
        return f"{ISOLATED} {' or '.join(sizes)} SMs"

    @property
    def shares_sms(self) -> bool:
        """Whether nodes of several streams may hold SMs of one group at once."""
        return any(group.lanes > 1 for group in self.groups)

    def lanes(self, *roles: str) -> tuple[int, ...]:
        """The streams that are for one of ``roles``, by index."""
        return tuple(lane for lane, role in enumerate(self.roles) if role in roles)


def serial(device: Device) -> Structure:
    """One stream for everything, transfers included."""
    group = whole(device)
    return Structure(SERIAL, (group,), streams((group,)), (BOTH,))


def copies(device: Device, engines: Sequence[str]) -> Structure:
    """One stream on the whole device, and one for each of the copy ``engines``."""
    group = whole(device)
    return Structure(COPIES, (group,), streams((group,), engines), (BOTH, *_copy_roles(engines)))


def coresident(device: Device, engines: Sequence[str] = (), roles: Sequence[str] = (COMPUTE, MEMORY)) -> Structure:
    """A stream on the whole device for each of ``roles``."""
    group = whole(device, lanes=len(roles))
    return Structure(CORESIDENT, (group,), streams((group,), engines), (*roles, *_copy_roles(engines)))


def isolated(
    device: Device,
    sizes: Sequence[int],
    engines: Sequence[str] = (),
    roles: Sequence[str] | None = None,
) -> Structure:
    """Disjoint groups of ``sizes`` SMs, a stream on each and one on the whole device, which excludes them.

    ``roles`` says what each group is for; by default the first serves what memory binds, the others what compute binds.
    ``"compute+memory"`` gives a group two streams, whose nodes are co-resident.

    Raises:
        CapacityError: the device cannot be split so.
    """
    told = list(roles) if roles is not None else [MEMORY, *[COMPUTE] * (len(sizes) - 1)]
    parts = split(device, sizes)
    lanes = [role.split("+") for role in told]
    parts = tuple(Group(part.name, part.sms, part.units, len(on)) for part, on in zip(parts, lanes, strict=True))
    # compute first: what it feeds decides when memory-bound nodes can start
    order = sorted(range(len(parts)), key=lambda at: (MEMORY in lanes[at], -parts[at].sms))
    groups = (whole(device), *(parts[at] for at in order))
    named = (ALONE, *(role for at in order for role in lanes[at]), *_copy_roles(engines))
    return Structure(ISOLATED, groups, streams(groups, engines), named)


def nested(device: Device, splits: Sequence[tuple[int, int]], engines: Sequence[str] = ()) -> Structure:
    """Several splits into a group for what memory binds and one for what compute binds; larger groups are asked first.

    Raises:
        CapacityError: the device cannot be split so.
    """
    parts = [part for sizes in splits for part in split(device, sizes)]
    parts = [Group(f"g{at}", part.sms, part.units) for at, part in enumerate(parts)]
    compute, memory = (sorted(parts[at::2], key=lambda group: -group.sms) for at in (1, 0))
    groups = (whole(device), *compute, *memory)
    named = (ALONE, *(COMPUTE for _ in compute), *(MEMORY for _ in memory), *_copy_roles(engines))
    return Structure(ISOLATED, groups, streams(groups, engines), named)


def overlapping(device: Device, engines: Sequence[str], crowds: bool = True) -> Iterator[Structure]:
    """Every structure with streams for kernels side by side, or one beside the copy ``engines`` that some node uses.

    Many streams on the whole device gain on graphs of small nodes: one that stands still holds up nothing else. Where
    slowdowns of pairs were measured they are left out (``crowds``), since three nodes at once would be a guess.
    """
    if engines:
        yield copies(device, engines)
    yield coresident(device, engines)
    for lanes in CROWDS if crowds else ():
        yield coresident(device, engines, (BOTH,) * lanes)
    usable, least = device.partitionable_sms, least_group(device)
    step = max(1, usable // STEPS // device.sm_granularity) * device.sm_granularity
    for sms in sizes(device):
        if usable - sms >= least:
            yield isolated(device, (sms, usable - sms), engines)
        if usable - sms - step >= least:
            yield nested(device, ((sms, usable - sms), (sms + step, usable - sms - step)), engines)


def sizes(device: Device) -> range:
    """The SMs that a group can have."""
    return range(least_group(device), device.partitionable_sms + 1, device.sm_granularity)


def least_group(device: Device) -> int:
    """SMs of the smallest group: a multiple of the granularity."""
    return -(-device.sm_minimum // device.sm_granularity) * device.sm_granularity


def _copy_roles(engines: Sequence[str]) -> tuple[str, ...]:
    return (COPY,) * len(engines)
