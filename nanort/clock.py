"""Clock: the time that engines and executors go by, the machine's or a simulation's."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds since an origin of its own, which only grow."""

    def now(self) -> float:
        """Seconds since the clock's origin."""

    def wait(self, until: float) -> None:
        """Return once ``now()`` is ``until`` or later."""


class WallClock:
    """The machine's time; its origin is where it was made."""

    __slots__ = ("_origin",)

    def __init__(self) -> None:
        self._origin = time.perf_counter()

    def now(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self._origin

    def wait(self, until: float) -> None:
        """Sleep until then."""
        while (left := until - self.now()) > 0:
            time.sleep(left)


class VirtualClock:
    """Time that passes only where someone lets it: waiting costs nothing.

    >>> clock = VirtualClock()
    >>> clock.wait(3600.0)
    >>> clock.advance(0.5)
    >>> clock.now()
    3600.5
    """

    __slots__ = ("_now",)

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        """Seconds that were let pass."""
        return self._now

    def wait(self, until: float) -> None:
        """Let the time until then pass."""
        self._now = max(self._now, until)

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass."""
        self._now += seconds
