"""Fault: one thing that goes wrong on a simulated device, when, and what it hit."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from nanort.errors import (
    BackendError,
    DeviceMemoryError,
    DriverError,
    ExecutionError,
    HangError,
    NanortError,
    PoisonedError,
)

TIMEOUT = 0.01
"""Seconds of the world's time in which some node of a run has to end."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What can go wrong.

    Attributes:
        name: what it is called in reports and options.
        what: what happens.
        most: how many chances it lets pass at most before it strikes.
        errors: what requests may fail of then; () where none may fail.
        fatal: whether the process has to be started again.
    """

    name: str
    what: str
    most: int
    errors: tuple[type[NanortError], ...] = ()
    fatal: bool = False


KINDS = {
    kind.name: kind
    for kind in (
        Kind("slow", "a node takes as long as may be", 60),
        Kind("slow-copy", "a copy takes as long as may be", 8),
        Kind("failed", "a kernel refuses to be launched", 60, (ExecutionError,)),
        Kind("oom", "the device or the host has no memory left", 12, (DeviceMemoryError,)),
        Kind("call", "the driver refuses a call", 200, (DriverError,)),
        Kind("hang", "a node does not end for a while", 60, (HangError,)),
        Kind("lost", "an event happens much too late", 60, (HangError,)),
        Kind("grant", "a group of SMs is given other ones than it was planned for", 1, (BackendError,)),
        Kind("poison", "a kernel fails on the device", 60, (PoisonedError,), fatal=True),
        Kind("sticky", "a call fails, and all after it", 200, (PoisonedError, DriverError), fatal=True),
    )
}
"""By name."""

HANGS = ("hang", "lost")
"""Those that only a timeout finds."""


@dataclass(slots=True)
class Fault:
    """One fault.

    Attributes:
        kind: which.
        chances: how many of the calls that it could strike it lets pass.
        seconds: how long what it strikes takes, where that is the fault.
        armed, struck: when that was; not struck yet is None.
        hit: what it struck.
        noted: whether the report tells of it.
    """

    kind: Kind
    chances: int
    seconds: float
    armed: float
    struck: float | None = None
    hit: str = ""
    noted: bool = False

    @classmethod
    def drawn(cls, chance: random.Random, kinds: tuple[str, ...], now: float) -> Fault:
        """One of these kinds."""
        kind = KINDS[chance.choice(kinds)]
        longest = (1.5, 6.0) if kind.name in HANGS else (0.1, 0.8)
        return cls(kind, chance.randrange(kind.most), TIMEOUT * chance.uniform(*longest), now)

    @property
    def lasts(self) -> bool:
        """Whether what it strikes takes longer."""
        return self.kind.name in ("slow", "slow-copy", *HANGS)

    def strikes(self, hit: str, now: Callable[[], float]) -> bool:
        """Whether it strikes here, at the next of its chances."""
        if self.struck is not None:
            return False
        self.chances -= 1
        if self.chances >= 0:
            return False
        self.struck, self.hit = now(), hit
        return True
