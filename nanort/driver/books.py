"""Books: what a simulated driver has given out, what of it is still there, and which calls are refused."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from nanort.driver.work import Capture
from nanort.errors import DeviceMemoryError, DriverError

GARBAGE = 0xFF  # what fresh memory holds: NaN in every float, -1 in every integer
ALIGNMENT = 256  # bytes, as CUDA's; on the CPU the last bits of a product depend on it

Thing = TypeVar("Thing")


class Books:
    """Handles that are never used twice, memory that is counted, and calls that are counted and may be refused.

    Attributes:
        poisoned: why nothing works any more, or "".
        live: handles that exist, by kind.
        memory: bytes of device memory that are free.
    """

    def __init__(self, memory: int) -> None:
        self.poisoned = ""
        self.live: dict[str, set[int]] = {kind: set() for kind in ("context", "stream", "event", "graph")}
        self.memory = memory
        self._capture: Capture | None = None
        self._method = ""
        self._counts: dict[str, int] = {}
        self._handles = 0
        self._pinned: dict[int, npt.NDArray[np.uint8]] = {}

    def count(self, method: str = "") -> int:
        """Calls of a method so far, or of all."""
        return self._counts.get(method, 0)

    @property
    def pinned(self) -> int:
        """Pieces of pinned memory that exist."""
        return len(self._pinned)

    # Where faults come in.

    def refusal(self, method: str) -> Exception | None:
        """What the call that is under way raises, of faults; a DriverError that is sticky poisons the device.

        What destroys, or ends a capture, does so before it raises, as in CUDA: a failed destroy cannot be repeated.
        """
        return None

    def noted(self, method: str, *arguments: object) -> None:
        """Told of every call; ("launch", stream), ("copy", stream, nbytes, direction), else its own arguments."""

    # Calls.

    @contextmanager
    def _call(self, method: str, *arguments: object) -> Iterator[None]:
        self.noted(method, *arguments)
        self._method = method
        for counted in (method, ""):
            self._counts[counted] = self._counts.get(counted, 0) + 1
        ends = method.startswith("destroy") or method == "end_capture"
        try:
            if not ends:
                self._refuse(self.poisoned != "", self.poisoned, sticky=True)
                self._raise_fault()
            yield
            if ends and method != "end_capture":
                self._raise_fault()
        except DriverError:
            if self._capture:
                self._capture.invalid = True
            raise

    def _raise_fault(self) -> None:
        if (error := self.refusal(self._method)) is not None:
            if isinstance(error, DriverError) and error.sticky:
                self._poison(str(error))
            raise error

    def _refuse(self, wrong: bool, why: str, *, sticky: bool = False) -> None:
        if wrong:
            raise DriverError(f"{self._method}: {why}", call=self._method, sticky=sticky)

    def _poison(self, why: str) -> None:
        self.poisoned = self.poisoned or why

    # Handles.

    def _find(self, kind: str, things: Mapping[int, Thing], handle: int) -> Thing:
        self._refuse(handle not in self.live[kind], f"there is no {kind} {handle}, or no longer")
        return things[handle]

    def _make(self, kind: str, things: dict[int, Thing], thing: Thing) -> int:
        self._handles += 1
        things[self._handles] = thing
        self.live[kind].add(self._handles)
        return self._handles

    def _drop(self, kind: str, things: dict[int, Thing], handle: int) -> None:
        del things[handle]
        self.live[kind].remove(handle)

    # Memory.

    def allocate(self, nbytes: int, *, host: bool = False) -> torch.Tensor:
        with self._call("allocate", nbytes, host):
            self._refuse(self._capture is not None, "no memory can be made while something is captured")
            if not host and nbytes > self.memory:
                raise DeviceMemoryError(f"allocate: {nbytes} bytes of the device are asked for, {self.memory} are free")
            room = np.full(nbytes + ALIGNMENT, GARBAGE, np.uint8)  # numpy's memory, since its end can be observed
            start = -room.ctypes.data % ALIGNMENT
            given, bare = (room[start : start + nbytes] for _ in range(2))
            address = given.ctypes.data if host else 0
            weakref.finalize(given, self._free, bare, address)
            if host:
                self._pinned[address] = bare
            else:
                self.memory -= nbytes
            with torch.inference_mode(False):
                return torch.from_numpy(given)

    def _free(self, bare: npt.NDArray[np.uint8], pinned: int) -> None:
        if pinned:
            del self._pinned[pinned]
            bare.fill(GARBAGE)
        else:
            self.memory += bare.nbytes

    def _is_pinned(self, tensor: torch.Tensor) -> bool:
        return any(start <= tensor.data_ptr() < start + bare.nbytes for start, bare in self._pinned.items())

    def _bare(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same pinned bytes, not kept by whoever looks at them: once they are freed, a copy finds garbage."""
        address = tensor.data_ptr()
        start = max(start for start in self._pinned if start <= address)
        if not tensor.is_contiguous():
            return tensor
        bare = torch.from_numpy(self._pinned[start])[address - start : address - start + tensor.nbytes]
        return bare.view(tensor.dtype).view(tensor.shape)
