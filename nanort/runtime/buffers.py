"""Buffers: the memory of a program that runs on a GPU, one piece of the device and one of the pinned host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from nanort.driver import Driver
from nanort.eager import bind
from nanort.errors import CapacityError, DeviceMemoryError, InputDeviceError
from nanort.graph import Graph
from nanort.programs.hazards import refuse_hazards
from nanort.programs.memory import ALIGNMENT, plan_memory
from nanort.programs.program import Buffer, Launch, Program
from nanort.runtime.faults import naming
from nanort.runtime.kernels import scratch_bytes

SLOTS = (0, 1)
"""Runs take turns with them, so that the outputs of one stay while the next one runs."""


@dataclass(frozen=True, slots=True)
class Buffers:
    """Where a program's values lie.

    Attributes:
        slots: tensors by buffer, for each slot. Two of their own have what outputs show, unless it is the caller's, and
            inputs of the host, which it may write for the next run while this one still reads. The rest is shared.
        staged: the inputs of the host, in pinned memory.
        copied: the inputs of the device.
        scratch: bytes by stream, whose kernels use them one after the other.
        memory_bytes: of the device, without constants and states, which are the caller's.
    """

    slots: tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]
    staged: tuple[Buffer, ...]
    copied: tuple[Buffer, ...]
    scratch: dict[str, torch.Tensor]
    memory_bytes: int


def buffers(program: Program, bound: Mapping[int, torch.Tensor], driver: Driver, budget: int | None) -> Buffers:
    """The buffers of ``program``, allocated; ``bound`` holds constants and states by root.

    Raises:
        ProgramError: the plan of its memory leaves something to chance, which is a mistake of ours.
        CapacityError: they take more than ``budget`` bytes of the device.
        DeviceMemoryError: the device or the host has not so many left.
    """
    own = [buffer for buffer in program.buffers if buffer.root not in bound]
    shown = {view.buffer for view in program.outputs.values()}
    twice = {b.index for b in own if b.index in shown or (b.kind == "input" and b.device == "host")}
    plan = plan_memory(program, slots=twice)
    refuse_hazards(program, plan)
    sizes = {"device": plan.device_bytes, "host": plan.host_bytes}

    def reserve(place: str, nbytes: int) -> slice:
        start = -(-sizes[place] // ALIGNMENT) * ALIGNMENT
        sizes[place] = start + nbytes
        return slice(start, sizes[place])

    scratch = {stream: reserve("device", nbytes) for stream, nbytes in _scratch(program).items()}
    places: dict[int, list[slice]] = {}
    for buffer in own:
        start = (plan.host if buffer.device == "host" else plan.device)[buffer.index]
        if buffer.index in twice:
            places[buffer.index] = [reserve(buffer.device, buffer.nbytes) for _ in SLOTS]
        elif buffer.kind == "input":
            places[buffer.index] = [reserve(buffer.device, buffer.nbytes)]
        elif start is not None:
            places[buffer.index] = [slice(start, start + buffer.nbytes)]
    if budget is not None and sizes["device"] > budget:
        raise CapacityError(
            f"program {program.name} takes {sizes['device']:,} bytes of the device, {plan.device_bytes:,} of them for "
            f"values between its nodes, and budget={budget:,}: give at least {sizes['device']}, or a smaller batch"
        )
    memory = {place: _memory(driver, program, place, nbytes) for place, nbytes in sizes.items()}

    def tensors(slot: int) -> dict[int, torch.Tensor]:
        found = {b.index: bound[b.root] for b in program.buffers if b.root in bound}
        for index, spots in places.items():
            buffer = program.buffers[index]
            part = memory[buffer.device][spots[slot % len(spots)]]
            found[index] = part.view(buffer.dtype).view(buffer.shape)
        return found

    return Buffers(
        (tensors(0), tensors(1)),
        tuple(buffer for buffer in own if buffer.kind == "input" and buffer.device == "host"),
        tuple(buffer for buffer in own if buffer.kind == "input" and buffer.device != "host"),
        {stream: memory["device"][place] for stream, place in scratch.items()},
        sizes["device"],
    )


def bound_on(
    device: torch.device, graph: Graph, tensors: Mapping[str, torch.Tensor], *kinds: str
) -> dict[int, torch.Tensor]:
    """``tensors`` by root as :func:`nanort.eager.bind` checks them, and on this very device; without gradients."""
    bound = bind(graph, tensors, kinds, device.type)
    for index, tensor in bound.items():
        root = graph.roots[index]
        if root.device != "host" and tensor.device != device:
            raise InputDeviceError(f"{root.kind} {root!r} must be on {device}, its tensor is on {tensor.device}")
    return {index: tensor.detach() for index, tensor in bound.items()}


def is_read_by_host(program: Program) -> bool:
    """Whether a run leaves something on the host, which the caller reads without asking any stream."""
    left = {view.buffer for view in program.outputs.values()}
    written = {access.root for step in program.instructions if isinstance(step, Launch) for access in step.writes}
    return any(b.device == "host" and (b.index in left or b.root in written) for b in program.buffers)


def pageable(program: Program, bound: Mapping[int, torch.Tensor]) -> str:
    """What it costs that constants or states of the host are not pinned; "" where all are."""
    found = [b for b in program.buffers if b.device == "host" and b.root in bound and not bound[b.root].is_pinned()]
    if not found:
        return ""
    nbytes = sum(buffer.nbytes for buffer in found)
    return (
        f"program {program.name}: {', '.join(buffer.name for buffer in found)} on the host is not pinned, so that each "
        f"copy of its {nbytes:,} bytes keeps the host waiting, {nbytes / program.device.h2d_bandwidth:.2g} s or more: "
        f"give tensor.pin_memory()"
    )


def _scratch(program: Program) -> dict[str, int]:
    """The most scratch that a kernel of each stream asks for, where any does."""
    found: dict[str, int] = {}
    for step in program.instructions:
        if isinstance(step, Launch):
            with naming(program, step):
                nbytes = scratch_bytes(program, step)
            if nbytes:
                found[step.stream] = max(nbytes, found.get(step.stream, 0))
    return found


def _memory(driver: Driver, program: Program, place: str, nbytes: int) -> torch.Tensor:
    if not nbytes:
        return torch.empty(0, dtype=torch.uint8, device=driver.device if place == "device" else "cpu")
    try:
        return driver.allocate(nbytes, host=place == "host")
    except DeviceMemoryError as error:
        made = [b for b in program.buffers if b.device == place and b.kind not in ("constant", "state")]
        largest = max(made, key=lambda buffer: buffer.nbytes, default=None)
        named = f", its largest value {largest.name} {largest.nbytes:,}" if largest else ""
        raise DeviceMemoryError(
            f"program {program.name} takes {nbytes:,} bytes of the {place}{named}, and there is no room for it "
            f"({error}): free some, or use a smaller batch",
            node=largest.name if largest else "",
        ) from error
