"""FakeDriver: the simulated driver as tests use it: with a log of its calls, and faults where a test says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import RLock
from typing import Any

from nanort.driver.simulated import KernelError, SimulatedDriver
from nanort.driver.work import Node, Stream
from nanort.errors import DriverError

__all__ = ["FakeDriver", "KernelError", "Stream", "TwoThreads"]


class FakeDriver(SimulatedDriver):
    """A driver for tests, to which kernels are calls like any other.

    Args:
        fail: by method, which call of it is refused: ``{"create_stream": 2}``.
        options: SimulatedDriver's.

    Attributes:
        calls: every call in order, as (method, *arguments); ("launch", stream) and ("copy", stream, nbytes, direction).
    """

    runs_kernels = True

    def __init__(self, *sizes: int, fail: Mapping[str, int] | None = None, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.calls: list[tuple[object, ...]] = []
        self._failures: dict[tuple[str, int], Exception | None] = dict.fromkeys((fail or {}).items())
        self._hung: set[int] = set()
        self._faults: dict[int, str] = {}

    def fail_at(self, method: str, nth: int = 0, error: Exception | None = None) -> None:
        """The ``nth`` call of ``method`` since the beginning (1 is the first, 0 each) raises; "" counts all methods.

        It raises a DriverError if no ``error`` is given.
        """
        self._failures[method, nth] = error

    def hang(self, nth: int = 1) -> None:
        """The ``nth`` launch from now on never ends; what would block for it raises AssertionError."""
        self._hung.add(self.count("launch") + nth)

    def unhang(self) -> None:
        """What hangs goes on."""
        self._hung.clear()
        for graph in self._graphs.values():
            for node in graph.nodes:
                node.hangs = False
        self._gpu.unhang()

    def fault(self, nth: int = 1, message: str = "an illegal memory access was encountered") -> None:
        """The ``nth`` launch from now on fails when it is carried out, which poisons the device."""
        self._faults[self.count("launch") + nth] = message

    def settle(self, stream: int | None = 0) -> None:
        """Carries out what is queued on a stream, as a host read of its results would; None: on all of them."""
        self._method = "settle"
        last = None if stream is None else self._streams[stream].last
        self._gpu.finish(None if stream is None else [last] if last else [])

    def noted(self, method: str, *arguments: object) -> None:
        self.calls.append((method, *arguments))

    def refusal(self, method: str) -> Exception | None:
        for key in ((method, self.count(method)), (method, 0), ("", self.count()), ("", 0)):
            if key in self._failures:
                return self._failures[key] or DriverError(f"{method} failed, as the test asked", call=method)
        return None

    def spoil(self, node: Node) -> None:
        if self._method == "launch":
            number = self.count("launch")
            node.hangs = number in self._hung
            if number in self._faults:
                node.work = self._failing(self._faults[number])


class TwoThreads(FakeDriver):
    """The fake for a thread that queues and one that waits: calls take turns, and a capture is one of them.

    On a GPU a capture concerns the thread alone that makes it.
    """

    def __init__(self, *, seed: int | None) -> None:
        self._turn = RLock()
        super().__init__(seed=seed)

    @contextmanager
    def _call(self, method: str, *arguments: object) -> Iterator[None]:
        with self._turn:
            try:
                with super()._call(method, *arguments):
                    yield
            finally:
                if method == "end_capture":
                    self._turn.release()
            if method == "begin_capture":
                self._turn.acquire()
