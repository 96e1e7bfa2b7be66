"""Ferry: the small tensors of a step, brought to where the model is and back without a wait."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from nanort import driver
from nanort.devices import Device
from nanort.runtime.executor import resolve

Tensors = dict[str, torch.Tensor]

ALIGNMENT = 16


@dataclass(frozen=True, slots=True)
class Voyage:
    """Tensors on their way to the host, and the event at which they are there; 0 if they are."""

    tensors: Tensors
    event: int


class Ferry:
    """Brings inputs to a device and results back; on the CPU both are there already.

    All inputs of a step go in one copy from pinned memory: it is queued, and the host goes on at once.
    """

    def __init__(self, device: Device) -> None:
        kind, self.place = resolve("auto", device)
        self._driver = driver.current() if kind == "cuda" else None

    @property
    def waits(self) -> bool:
        """Whether a run is still going on when its executor returns."""
        return self._driver is not None

    def there(self, tensors: Mapping[str, torch.Tensor]) -> tuple[Tensors, torch.Tensor | None]:
        """``tensors`` on the device, and what has to be kept until the run has ended."""
        if self._driver is None:
            return dict(tensors), None
        places, size = dict[str, slice](), 0
        for name, tensor in tensors.items():
            places[name] = slice(size, size + tensor.nbytes)
            size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        staging, landed = self._driver.allocate(size, host=True), self._driver.allocate(size)
        for name, tensor in tensors.items():
            staging[places[name]].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        self._driver.copy(0, landed, staging)
        found = {name: landed[places[name]].view(tensor.dtype).view(tensor.shape) for name, tensor in tensors.items()}
        return found, staging

    def back(self, tensors: Mapping[str, torch.Tensor]) -> Voyage:
        """``tensors`` on their way to the host."""
        if self._driver is None:
            return Voyage(dict(tensors), 0)
        landed = {}
        for name, tensor in tensors.items():
            bytes_ = self._driver.allocate(tensor.nbytes, host=True)
            landed[name] = bytes_.view(tensor.dtype).view(tensor.shape)
            self._driver.copy(0, landed[name], tensor.contiguous())
        event = self._driver.create_event()
        self._driver.record(event, 0)
        return Voyage(landed, event)

    def wait(self, voyage: Voyage) -> Tensors:
        """The tensors, when they have come."""
        if self._driver is not None:
            self._driver.synchronize(voyage.event)
            self._driver.destroy_event(voyage.event)
        return voyage.tensors
