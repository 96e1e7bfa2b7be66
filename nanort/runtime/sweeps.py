"""sweeps: which calls of a graph are worth measuring, on how many SMs and beside which others, until the time is up."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Protocol, TypeVar

from nanort.costs.roofline import REFERENCE, Costs, kernel_beside_others
from nanort.costs.samples import Call, Place, Sample
from nanort.costs.store import Store
from nanort.devices import Device
from nanort.errors import CostError, DriverError, ExecutionError, PoisonedError
from nanort.nodes import Node
from nanort.programs.program import Launch
from nanort.runtime.operands import Operands

Item = TypeVar("Item")

SPLITS = 8
"""Of the SMs between two calls that run side by side."""
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One launch by one kernel on so many SMs, and what makes tensors for it."""

    operands: Operands
    launch: Launch
    kernel: str
    sms: int

    def __str__(self) -> str:
        return f"{self.launch.name} on {self.sms}"

    @property
    def node(self) -> Node:
        """What is launched."""
        return self.operands.graph.nodes[self.launch.node]

    @property
    def call(self) -> Call:
        """What it is stored as."""
        return Call.of(self.node, self.kernel, self.sms)


Point = tuple[Part, ...]
"""What is measured at once: a part alone, or two side by side."""


class Meter(Protocol):
    """What measures points on a device; ``counts`` are the SMs that a part may hold, ``pairs`` whether two may run."""

    device: Device
    place: Place
    counts: tuple[int, ...]
    pairs: bool

    def __call__(self, point: Point) -> tuple[Sample, ...]:
        """A sample of each part."""
        ...


def points(benches: Iterable[Operands], meter: Meter) -> list[Point]:
    """What to measure of some graphs, the most telling first, so that any time spent on a beginning is well spent.

    First every distinct call alone: on the whole device, on the fewest SMs, then between. Then calls that arithmetic
    binds beside calls that memory binds, the longest of each operator: both on all SMs, then at several splits.
    Transfers, rigid nodes, and on a GPU calls that use values of the host, are left out.
    """
    costs, device = Costs(meter.device), meter.device
    parts: dict[Call, Part] = {}
    for bench in benches:
        for step in bench.launches:
            node = bench.graph.nodes[step.node]
            host = device.kind == "cuda" and any(value.device == "host" for value in (*node.inputs, *node.outputs))
            kernels = (*node.op.kernels, REFERENCE) if device.kind == "cuda" else (REFERENCE,)
            for kernel in () if host or node.demand.is_rigid else kernels:
                part = Part(bench, step, kernel, device.sms)
                parts.setdefault(part.call, part)
    longest = sorted(parts.values(), key=lambda part: -costs.solo(part.node, device.sms).seconds)
    held = (_held(part, sms, device) for sms in scattered(meter.counts) for part in longest)
    alone = {part.call: (part,) for part in held if part is not None}
    found = [*alone.values()]
    return found + (_side_by_side(longest, meter, costs) if meter.pairs else [])


def _held(part: Part, sms: int, device: Device) -> Part | None:
    """The part on so many SMs; None where it cannot run on so few, or uses fewer, unless that is the whole device."""
    least, most = part.node.span_on(device.kind)
    if sms < least or (most is not None and most < sms < device.sms):
        return None
    return replace(part, sms=sms if most is None else min(sms, most))


def _side_by_side(longest: Sequence[Part], meter: Meter, costs: Costs) -> list[Point]:
    """Pairs of an operator bound by arithmetic and one bound by memory; ``longest`` come first."""
    chosen: dict[tuple[str, str], Part] = {}
    for part in longest:
        chosen.setdefault((part.node.bound_by(costs.device), part.node.op.name), part)
    busy = [part for (bound, _), part in chosen.items() if bound == "compute"]
    idle = [part for (bound, _), part in chosen.items() if bound == "memory"]
    device, grain = meter.device, meter.device.sm_granularity
    sizes = [n for n in meter.counts if n % grain == 0 and n < device.partitionable_sms]
    splits = [(n, device.partitionable_sms - n) for n in sizes[:: math.ceil(len(sizes) / SPLITS) or 1]]
    pairs = (
        (_beside(one, ours, device), _beside(other, theirs, device))
        for ours, theirs in ((device.sms, device.sms), *scattered(splits))
        for one in busy
        for other in idle
    )
    return [(one, other) for one, other in pairs if one is not None and other is not None]


def _beside(part: Part, sms: int, device: Device) -> Part | None:
    """The part on so many SMs; on all of them, which it shares, by the kernel that is made for that."""
    return _held(replace(part, kernel=kernel_beside_others(part.node.op)) if sms == device.sms else part, sms, device)


def scattered(items: Sequence[Item]) -> list[Item]:
    """The items, in an order of which every beginning is spread over all of them: the last, the first, then middles.

    >>> scattered([1, 2, 3, 4, 5])
    [5, 1, 3, 2, 4]
    """
    order, spans = [*items[-1:], *items[:-1][:1]], deque([(0, len(items) - 1)])
    while spans:
        low, high = spans.popleft()
        if high - low > 1:
            middle = (low + high) // 2
            order.append(items[middle])
            spans.extend([(low, middle), (middle, high)])
    return order


@dataclass(frozen=True, slots=True)
class Swept:
    """What came of a sweep: points measured now, known before, and left when the time was up; refusals in words."""

    measured: int
    known: int
    left: int
    refused: tuple[str, ...]


def sweep(
    asked: Sequence[Point],
    store: Store,
    meter: Meter,
    *,
    budget: float,
    clock: Callable[[], float] = monotonic,
    progress: Callable[[int, int], object] | None = None,
) -> Swept:
    """Measures the points that are not in ``store``, in order, for ``budget`` seconds, and stores each at once.

    A point that cannot be measured is left out, with the reason; Ctrl-C ends it sooner. ``progress`` is told how many
    points are done, of how many.

    Raises:
        CostError: the budget is not more than zero.
        PoisonedError, DriverError: the device is unusable from now on.
    """
    if not 0 < budget < math.inf:
        raise CostError(f"a budget of {budget!r} seconds: give more than zero")

    def is_known(point: Point) -> bool:
        calls = [part.call for part in point]
        return all(store.has(call, *(other for other in calls if other != call)) for call in calls)

    began, measured, known, left, refused = clock(), 0, 0, 0, list[str]()
    for at, point in enumerate(asked):
        try:
            if progress is not None:
                progress(at, len(asked))
            if is_known(point):
                known += 1
            elif clock() - began >= budget:
                left += 1
            else:
                store.add(*meter(point))
                measured += 1
        except ExecutionError as error:
            if isinstance(error, PoisonedError) or (isinstance(error, DriverError) and error.sticky):
                raise
            refused.append(f"{' beside '.join(map(str, point))}: {error}")
        except KeyboardInterrupt:  # what is stored stays
            known += (there := sum(map(is_known, asked[at:])))
            left += len(asked) - at - there
            break
    return Swept(measured, known, left, tuple(refused))


def seconds_of(text: str) -> float:
    """Seconds of a time as one types it.

    Raises:
        CostError: it is no time above zero.

    >>> seconds_of("5m"), seconds_of("1.5h"), seconds_of("90")
    (300.0, 5400.0, 90.0)
    """
    number, unit = (text[:-1], text[-1:]) if text[-1:] in UNITS else (text, "s")
    try:
        seconds = float(number) * UNITS[unit]
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise CostError(f"a budget of {text!r}: give a time above zero in seconds, minutes or hours, such as 90s or 5m")
    return seconds
