"""FaultyDriver: a simulated GPU on which one fault at a time strikes."""

from __future__ import annotations

import random
from collections import deque

from nanort.chaos.faults import Fault
from nanort.chaos.house import GPU
from nanort.clock import VirtualClock
from nanort.driver.simulated import SimulatedDriver
from nanort.driver.work import Node
from nanort.errors import DeviceMemoryError, DriverError

LATEST = 12
"""Calls that are remembered, for the report of a breach."""

STRUCK = {
    "slow": ("launch",), "slow-copy": ("copy",), "hang": ("launch", "copy"), "lost": ("record",), "poison": ("launch",),
}  # fmt: skip  # in a line
"""By fault, what it strikes of work that was queued."""

ILLEGAL = "an illegal memory access was encountered"


class FaultyDriver(SimulatedDriver):
    """A GPU whose launches take random times, and on which ``fault`` strikes once it is set.

    Attributes:
        fault: what strikes next, or has struck; None between two.
        latest: the calls made last.
    """

    def __init__(self, chance: random.Random, time: VirtualClock) -> None:
        super().__init__(
            GPU.sms, GPU.sm_minimum, GPU.sm_granularity, seed=chance.randrange(1 << 32), time=time
        )  # fmt: skip  # the same SMs as plans are made for
        self.fault: Fault | None = None
        self.latest = deque[str](maxlen=LATEST)
        self.cost = lambda stream, call: chance.uniform(1e-6, 2e-5)

    def noted(self, method: str, *arguments: object) -> None:
        self.latest.append(f"{method}({', '.join(map(str, arguments))})")

    def refusal(self, method: str) -> Exception | None:
        kind = self.fault.kind.name if self.fault is not None else ""
        if kind == "failed" and method == "launch" and self._strikes():
            return RuntimeError("a kernel refused its arguments")
        if kind == "oom" and method in ("allocate", "launch") and self._strikes():
            return DeviceMemoryError(f"{method}: there is no memory left")
        if kind in ("call", "sticky") and self._strikes():
            return DriverError(f"{method}: the driver refused", call=method, sticky=kind == "sticky")
        return None

    def granted(self, context: int) -> int:
        found = super().granted(context)
        wrong = self.fault is not None and self.fault.kind.name == "grant" and self._strikes()
        return found - 2 if wrong else found

    def spoil(self, node: Node) -> None:
        if self.fault is None or self._capture is not None:  # what is captured would be spoilt in every replay
            return
        if node.what not in STRUCK.get(self.fault.kind.name, ()) or not self._strikes(node.what):
            return
        if self.fault.lasts:
            node.seconds += self.fault.seconds
        else:
            node.work = self._failing(ILLEGAL)

    def _strikes(self, what: str = "") -> bool:
        assert self.fault is not None
        what = what if what in ("", self._method) else f"{what} of {self._method}"
        return self.fault.strikes(f"call {self.count()}, {what or self._method}", self.time.now)
