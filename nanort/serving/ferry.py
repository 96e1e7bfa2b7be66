"""Ferry: the small tensors of a step, brought to where the model is and back without a wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from nanort import driver
from nanort.devices import Device
from nanort.errors import DeviceMemoryError, HangError, NanortError
from nanort.runtime.executor import resolve
from nanort.runtime.faults import POLL_SECONDS
from nanort.timeline.units import duration

Tensors = dict[str, torch.Tensor]

ALIGNMENT = 16


@dataclass(frozen=True, slots=True)
class Voyage:
    """Tensors on their way to the host.

    Attributes:
        tensors: what they are.
        event: at which they are there; 0 if they are.
        held: pieces of pinned memory that nobody uses any more then, as Ferry counts them.
    """

    tensors: Tensors
    event: int
    held: int = 0


class Ferry:
    """Brings inputs to a device and results back; on the CPU both are there already.

    All inputs of a step go in one copy from pinned memory: it is queued, and the host goes on at once. That memory is
    held until a later voyage has ended, whatever becomes of the step.

    Args:
        device: where the model is.
        timeout: seconds in which results have to come; None to wait for ever.
    """

    def __init__(self, device: Device, timeout: float | None = None) -> None:
        kind, self.place = resolve("auto", device)
        self._driver = driver.current() if kind == "cuda" else None
        self._timeout = timeout
        self._held = deque[tuple[int, torch.Tensor]]()
        self._count = 0

    @property
    def backend(self) -> str:
        """The backend whose values it carries."""
        return "cpu" if self._driver is None else "cuda"

    @property
    def waits(self) -> bool:
        """Whether a run is still going on when its executor returns."""
        return self._driver is not None

    def there(self, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        """``tensors`` on the device.

        Raises:
            DeviceMemoryError: there is no room for them.
            DriverError: a call failed.
        """
        if self._driver is None:
            return dict(tensors)
        places, size = dict[str, slice](), 0
        for name, tensor in tensors.items():
            places[name] = slice(size, size + tensor.nbytes)
            size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        staging, landed = self._pinned(size), self._room(size)
        for name, tensor in tensors.items():
            staging[places[name]].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        self._driver.copy(0, landed, staging)
        return {name: landed[places[name]].view(tensor.dtype).view(tensor.shape) for name, tensor in tensors.items()}

    def back(self, tensors: Mapping[str, torch.Tensor]) -> Voyage:
        """``tensors`` on their way to the host; raises as ``there`` does."""
        if self._driver is None:
            return Voyage(dict(tensors), 0)
        landed = {}
        for name, tensor in tensors.items():
            landed[name] = self._pinned(tensor.nbytes).view(tensor.dtype).view(tensor.shape)
            self._driver.copy(0, landed[name], tensor.contiguous())
        return Voyage(landed, self._recorded(), self._count)

    def wait(self, voyage: Voyage) -> Tensors:
        """The tensors, when they have come.

        Raises:
            HangError: they have not, in the time given.
            DriverError: a call failed.
        """
        if self._driver is not None:
            self._reach(voyage.event)
            while self._held and self._held[0][0] <= voyage.held:
                self._held.popleft()
        return voyage.tensors

    def settle(self) -> None:
        """Returns when all that was queued has ended; raises as ``wait`` does."""
        if self._driver is not None:
            self._reach(self._recorded())

    def close(self) -> None:
        """Lets go of pinned memory, unless something hangs that may still use it."""
        try:
            self.settle()
        except HangError:
            return
        except NanortError:  # of a device that has failed, which carries nothing out any more
            pass
        self._held.clear()

    def _room(self, nbytes: int, *, host: bool = False) -> torch.Tensor:
        assert self._driver is not None
        try:
            return self._driver.allocate(nbytes, host=host)
        except DeviceMemoryError as error:
            raise DeviceMemoryError(
                f"what goes to a step and comes back takes {nbytes:,} bytes of the {'host' if host else 'device'}, and "
                f"there is no room for them ({error}): free some, or use a smaller batch"
            ) from error

    def _pinned(self, nbytes: int) -> torch.Tensor:
        made = self._room(nbytes, host=True)
        self._count += 1
        self._held.append((self._count, made))
        return made

    def _recorded(self) -> int:
        """A new event, at which all that was queued so far has ended."""
        assert self._driver is not None
        event = self._driver.create_event()
        try:
            self._driver.record(event, 0)
        except NanortError:
            self._driver.destroy_event(event)
            raise
        return event

    def _reach(self, event: int) -> None:
        """Waits for an event and destroys it; an interrupt leaves it, to be waited for again."""
        assert self._driver is not None
        try:
            if self._timeout is None:
                self._driver.synchronize(event)
            else:
                self._poll(event, self._timeout)
        except NanortError:
            self._driver.destroy_event(event)
            raise
        self._driver.destroy_event(event)

    def _poll(self, event: int, timeout: float) -> None:
        assert self._driver is not None
        time = self._driver.time
        until = time.now() + timeout
        while not self._driver.happened(event):
            if time.now() > until:
                raise HangError(
                    f"the results of a step did not come back within {duration(timeout)}: give more timeout= if the "
                    "device is slow, or start the process again"
                )
            time.wait(time.now() + POLL_SECONDS)
