"""Driver: what nanort asks of CUDA's driver and of torch's streams, as an interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from nanort.clock import Clock
from nanort.driver.facts import Facts, Resource


class Driver(Protocol):
    """What runs work on a GPU. Handles are integers; 0 is the stream that the calling torch code works on.

    Whatever is created here is destroyed by who created it, once. Every method may raise DriverError, which names the
    call; after one that is sticky, ``poisoned`` says why, and nothing but destroying works in this process any more.

    Attributes:
        device: the torch device of values of the device, "cuda:0".
        poisoned: what happened to the device, or "".
        time: what hosts that wait for it go by.
        runs_kernels: whether kernels can run on it, or references alone.
    """

    device: str
    poisoned: str
    time: Clock
    runs_kernels: bool

    def facts(self) -> Facts:
        """The GPU's and the driver's names and versions, all of its SMs, and its copy engines."""
        ...

    def clocks(self) -> dict[str, float]:
        """The clocks now in MHz, "sm" and "memory"; empty where they cannot be told."""
        ...

    def resource(self) -> Resource:
        """The device's SMs.

        Raises:
            BackendError: this driver or GPU has no green contexts.
        """
        ...

    def split(self, sms: int) -> tuple[int, ...]:
        """Splits the device into groups of ``sms`` SMs, as many as fit, and answers what each was granted.

        A device is split once: groups of two splits would overlap on the same SMs.

        Raises:
            BackendError: this driver or GPU has no green contexts.
        """
        ...

    def create_context(self, groups: Sequence[int]) -> int:
        """A green context on some groups of the split, by their indices."""
        ...

    def granted(self, context: int) -> int:
        """The SMs that a green context has."""
        ...

    def destroy_context(self, context: int) -> None:
        """Needs its streams to be destroyed before."""
        ...

    def create_stream(self, context: int = 0) -> int:
        """A stream that keeps to a green context, or one on the whole device; it is not ordered with stream 0."""
        ...

    def destroy_stream(self, stream: int) -> None:
        """What is queued on it still runs."""
        ...

    def create_event(self, *, timed: bool = False) -> int:
        """An event that has not happened; one that is not timed costs less."""
        ...

    def destroy_event(self, event: int) -> None:
        """Those who wait for it still wait."""
        ...

    def record(self, event: int, stream: int, *, external: bool = False) -> None:
        """``event`` happens when all that was queued on ``stream`` is done.

        While the stream is captured, an event that is ``external`` happens at every replay; another one only orders.
        """
        ...

    def wait(self, stream: int, event: int) -> None:
        """``stream`` goes on when the latest record of ``event`` has happened; at once if it was never recorded."""
        ...

    def happened(self, event: int) -> bool:
        """Whether the latest record has happened."""
        ...

    def synchronize(self, event: int) -> None:
        """Blocks the host until the latest record has happened."""
        ...

    def seconds(self, first: int, second: int) -> float:
        """From one timed event that has happened to another."""
        ...

    def launch(self, stream: int, call: Callable[[], object]) -> None:
        """Queues the kernels that ``call`` launches through torch; it may be called later, again at every replay.

        Raises:
            DeviceMemoryError: no memory is left for what the call allocates.
        """
        ...

    def copy(self, stream: int, target: torch.Tensor, source: torch.Tensor) -> None:
        """Queues a copy between tensors of one shape, dtype and layout, without waiting where host memory is pinned."""
        ...

    def allocate(self, nbytes: int, *, host: bool = False) -> torch.Tensor:
        """Bytes [nbytes] of the device, or pinned ones of the host.

        Raises:
            DeviceMemoryError: there are not so many.
        """
        ...

    def begin_capture(self, stream: int) -> None:
        """What is queued on ``stream``, and on streams that wait for it, becomes a graph and does not run.

        Until the capture ends the host can neither ask for events nor allocate; one capture at a time.
        """
        ...

    def end_capture(self, stream: int) -> int:
        """The graph; all that was queued on other streams must have been joined. On errors too, the capture is over."""
        ...

    def launch_graph(self, graph: int, stream: int) -> None:
        """Queues a graph as one piece of work."""
        ...

    def destroy_graph(self, graph: int) -> None:
        """It must not be running."""
        ...

    def probe(self, stream: int, seen: torch.Tensor) -> None:
        """Queues a kernel of ``len(seen)`` blocks, each of which writes the number of its SM to ``seen`` (int32)."""
        ...
