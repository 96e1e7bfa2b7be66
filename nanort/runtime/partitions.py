"""Partitions: streams of the driver that keep to groups of SMs, made once and lent again and again."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property

import torch

from nanort.devices import Device
from nanort.driver import Driver
from nanort.errors import BackendError, DriverError, PoisonedError
from nanort.partition import Group, Stream

Units = tuple[int, int]

REPLAN = "plan again for this GPU, nr.co_schedule(graph, nr.Device.current())"
PROBE_BLOCKS_PER_SM = 4
"""Several, since blocks are not dealt out evenly."""


class Partitions:
    """The SMs of one GPU in smallest groups, green contexts on ranges of them, and streams on those.

    A driver splits its SMs once, so that all executors share one of these: ask :func:`partitions` for it.

    Attributes:
        sms: SMs of the device.
        granularity: SMs of a smallest group; 0 without green contexts.
        granted: by group, the SMs that its context has, as the driver says.
        fallback: what is used in place of green contexts, and why; "" where there are some.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._lock = threading.Lock()
        self._made = ExitStack()  # destroys in the reverse order, so that no context goes before its streams
        self._contexts: dict[Units, int] = {}
        self._streams: dict[int, Units | None] = {}
        self._lent: set[int] = set()
        self.granted: dict[Group, int] = {}
        try:
            self.sms, minimum, alignment = driver.resource()
        except (DriverError, PoisonedError):
            raise
        except BackendError as error:
            self.sms, self.granularity = driver.facts().sms, 0
            self.fallback = f"plain streams, each on all SMs: {error}"
        else:
            self.granularity = -(-minimum // alignment) * alignment
            self.fallback = ""

    @cached_property
    def units(self) -> tuple[int, ...]:
        """SMs of each smallest group, which ``Group.units`` counts in; the device is split when it is first asked."""
        return () if self.fallback else self._driver.split(self.granularity)

    def check(self, device: Device) -> None:
        """Refuses what was planned for another GPU.

        Raises:
            BackendError: ``device`` has another number of SMs than this GPU, or groups of them of another size.
        """
        grain = self.granularity or device.sm_granularity
        if (device.sms, device.sm_granularity) != (self.sms, grain):
            raise BackendError(
                f"planned for {device.name}, {device.sms} SMs in groups of {device.sm_granularity}, but this GPU has "
                f"{self.sms} in groups of {grain}: {REPLAN}"
            )

    def stream(self, stream: Stream) -> int:
        """A stream of the driver on the SMs of ``stream``, on all for a copy engine; the caller's until it is released.

        Raises:
            BackendError: the driver grants the group another number of SMs than it was planned for.
            DriverError: a call failed; asking again goes on from there.
        """
        with self._lock:
            units = stream.group.units if stream.group and not self.fallback else None
            context = self._context(stream.group, units) if stream.group and units else 0
            idle = (handle for handle, on in self._streams.items() if on == units and handle not in self._lent)
            handle = next(idle, None)
            if handle is None:
                handle = self._driver.create_stream(context)
                self._made.callback(self._driver.destroy_stream, handle)
                self._streams[handle] = units
            self._lent.add(handle)
            return handle

    def release(self, handles: Sequence[int]) -> None:
        """Takes streams back, for others; one that is not lent is left as it is."""
        with self._lock:
            self._lent.difference_update(handles)

    def smids(self, handle: int) -> frozenset[int]:
        """The numbers of the SMs on which blocks that are launched on a stream run, found by launching some."""
        seen = self._driver.allocate(4 * PROBE_BLOCKS_PER_SM * self.sms).view(torch.int32)
        event = self._driver.create_event()
        try:
            self._driver.record(event, 0)  # torch gives memory away that what it queued there may still use
            self._driver.wait(handle, event)
            self._driver.probe(handle, seen)
            self._driver.record(event, handle)
            self._driver.synchronize(event)
        finally:
            self._driver.destroy_event(event)
        return frozenset(seen.tolist())

    def close(self) -> None:
        """Destroys all streams and contexts, lent or not; what is asked for afterwards is made anew.

        Raises:
            DriverError: the driver failed to destroy something; the rest is destroyed nevertheless.
        """
        with self._lock:
            for books in (self._contexts, self._streams, self._lent, self.granted):
                books.clear()
            self._made.close()

    def _context(self, group: Group, units: Units) -> int:
        """The green context on ``units``, which has the SMs that ``group`` was planned for."""
        granted = sum(self.units[slice(*units)])
        if granted == group.sms:
            if units not in self._contexts:
                context = self._driver.create_context(range(*units))
                self._made.callback(self._driver.destroy_context, context)
                self._contexts[units] = context
            granted = self.granted[group] = self._driver.granted(self._contexts[units])
            if granted == group.sms:
                return self._contexts[units]
        raise BackendError(
            f"group {group.name!r} is planned for {group.sms} SMs, but the driver grants it {granted}: {REPLAN}"
        )


_LOCK = threading.Lock()
_MADE: dict[Driver, Partitions] = {}


def partitions(driver: Driver, device: Device | None = None) -> Partitions:
    """The partitions of a driver, the same each time. What it made ends with the process.

    Raises:
        BackendError: ``device``, which something was planned for, is not like this GPU.
    """
    with _LOCK:
        if driver not in _MADE:
            _MADE[driver] = Partitions(driver)
        made = _MADE[driver]
    if device is not None:
        made.check(device)
    return made


def forget(driver: Driver) -> None:
    """Destroys what was made for a driver that nobody uses any more; a later one is split anew.

    Raises:
        DriverError: the driver failed to destroy something; the rest is destroyed nevertheless.
    """
    with _LOCK:
        made = _MADE.pop(driver, None)
    if made is not None:
        made.close()
