"""Program: buffers, and a flat list of launches, copies, records and waits; pure data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from nanort.costs.roofline import Costs
from nanort.devices import Device
from nanort.edges import Access
from nanort.graph import Graph
from nanort.operators import Op
from nanort.partition import Stream
from nanort.timeline.activities import Activity
from nanort.timeline.events import Timeline
from nanort.values import contiguous

if TYPE_CHECKING:
    from nanort.programs.hazards import Hazard
    from nanort.programs.memory import MemoryPlan


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory that the program uses; ``kind`` is "input", "constant", "state", "result", "join" or "empty".

    ``root`` is the value of the graph that it was made for.
    """

    index: int
    root: int
    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str

    @property
    def nbytes(self) -> int:
        """Bytes it holds."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class View:
    """A strided part of a buffer; offset and strides are in elements."""

    buffer: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """This part of the tensor that the buffer is; they share memory."""
        return tensor.as_strided(self.shape, self.strides, self.offset + tensor.storage_offset())

    def meta(self, dtype: torch.dtype) -> torch.Tensor:
        """A tensor of its shape, strides and offset without memory."""
        return torch.empty(0, dtype=dtype, device="meta").as_strided(self.shape, self.strides, self.offset)

    def is_whole(self, buffer: Buffer) -> bool:
        """Whether it shows the whole buffer as it is."""
        return self.shape == buffer.shape and self.offset == 0 and self.strides == contiguous(buffer.shape)


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel on a stream: Views and literals in call order, Views that its results go to, SMs it may hold."""

    node: int
    name: str
    stream: str
    op: Op
    kernel: str
    args: tuple[Any, ...]
    static: Mapping[str, Any]
    outs: tuple[View, ...]
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]
    sms: int
    where: str


@dataclass(frozen=True, slots=True)
class Copy:
    """A transfer that a copy engine carries, which needs no SMs."""

    node: int
    name: str
    stream: str
    source: View
    target: View
    reads: tuple[Access, ...]
    where: str


@dataclass(frozen=True, slots=True)
class Record:
    """Event ``event`` happens when all that was queued before on ``stream`` is done."""

    stream: str
    event: int


@dataclass(frozen=True, slots=True)
class Wait:
    """``stream`` goes on once ``event`` has happened; the reason is "data", "state", "after" or "resource"."""

    stream: str
    event: int
    reason: str


Instruction = Launch | Copy | Record | Wait


@dataclass(frozen=True, slots=True, repr=False)
class Program:
    """A schedule, lowered: what the simulated, cpu and cuda executors interpret alike."""

    name: str
    device: Device
    streams: tuple[Stream, ...]
    buffers: tuple[Buffer, ...]
    instructions: tuple[Instruction, ...]
    outputs: Mapping[str, View]
    plan: Timeline = field(compare=False)  # one activity per launch or copy, in order
    graph: Graph = field(compare=False)  # what its node numbers mean
    costs: Costs = field(compare=False)  # what its plan rests on

    def __len__(self) -> int:
        return len(self.instructions)

    def __str__(self) -> str:
        """One line an instruction, as assembly would be printed."""
        return "\n".join([f"program {self.name} on {self.device.name}: {len(self)} instructions", *self._lines()])

    __repr__ = __str__

    def hazards(self, memory: MemoryPlan | None = None) -> tuple[Hazard, ...]:
        """What is left to chance, of which there is nothing: see :func:`nanort.programs.hazards.hazards`."""
        from nanort.programs.hazards import hazards

        return hazards(self, memory)

    @property
    def activities(self) -> tuple[Activity, ...]:
        """What is known of each launch and copy, in their order."""
        return self.plan.activities

    @property
    def events(self) -> int:
        """Events that it records."""
        return sum(isinstance(instruction, Record) for instruction in self.instructions)

    def _lines(self) -> Iterator[str]:
        for step in self.instructions:
            if isinstance(step, Launch):
                yield f"  {step.stream:8} launch {step.name} [{step.op.name}:{step.kernel}] on {step.sms} SMs"
            elif isinstance(step, Copy):
                yield f"  {step.stream:8} copy   {step.name} {math.prod(step.source.shape)} elements"
            elif isinstance(step, Record):
                yield f"  {step.stream:8} record e{step.event}"
            else:
                yield f"  {step.stream:8} wait   e{step.event} ({step.reason})"
