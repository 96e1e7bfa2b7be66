"""Launches and copies compiled to calls without arguments, over tensors that are there before anything is queued."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import torch

from nanort.costs.roofline import REFERENCE
from nanort.errors import BackendError
from nanort.operators import meta
from nanort.programs.program import Copy, Launch, Program, View

CHUNK_BYTES = 32 << 20
"""What a copy moves at once: between two chunks, copies of other streams get their turn on the engine."""

Call = Callable[[], object]
Tensors = Mapping[int, torch.Tensor]


def launch(
    program: Program, step: Launch, tensors: Tensors, scratch: torch.Tensor | None, device: torch.device
) -> Call:
    """What queues one kernel on the current stream.

    A reference returns fresh tensors, which are copied to where its results belong. Another kernel of the operator,
    ``"module:function"``, is called ``function(*args, out=, scratch=, sms=, **static)`` and writes there itself; its
    ``out`` is one tensor, a tuple of several, or None.

    Args:
        program: which the step is of.
        step: what is launched.
        tensors: by buffer.
        scratch: bytes that the kernels of its stream may use, if one asks for any.
        device: where a reference runs: values of the host that it reads are brought there first, in stream order.

    Raises:
        BackendError: there is no such kernel, or a reference would change a value of the host in place, which it would
            do when it is queued, not in stream order.
    """
    args = [argument.of(tensors[argument.buffer]) if isinstance(argument, View) else argument for argument in step.args]
    outs = tuple(view.of(tensors[view.buffer]) for view in step.outs)
    if step.kernel != REFERENCE:
        out = outs[0] if len(outs) == 1 else outs or None
        return partial(_function(step), *args, out=out, scratch=scratch, sms=step.sms, **step.static)
    hosts = [k for k, view in enumerate(step.args) if isinstance(view, View) and _on_host(program, view)]
    if changed := [k for k in hosts if k in step.op.writes]:
        name = program.buffers[step.args[changed[0]].buffer].name
        raise BackendError(
            f"node {step.name} ({step.where}) changes {name!r} in place, which is on the host: keep it on the device, "
            f"and let ops.to_host and ops.to_device copy",
            node=step.name,
            where=step.where,
        )
    reference = partial(step.op.reference, **step.static) if step.static else step.op.reference
    if hosts:
        reference = partial(_brought, reference, frozenset(hosts), device)
    return partial(_one if len(outs) == 1 else _several, partial(reference, *args), *outs)


def pieces(step: Copy, tensors: Tensors) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """``(target, source)`` of every copy that a transfer takes: its contiguous parts, in chunks of 32 MiB."""
    source, target = step.source, step.target
    yield from _contiguous(target.of(tensors[target.buffer]), source.of(tensors[source.buffer]))


def scratch_bytes(program: Program, step: Launch) -> int:
    """Bytes of scratch that the kernel of a launch asks for; a reference asks for none."""
    if step.kernel == REFERENCE:
        return 0
    if isinstance(step.op.scratch, int):
        return step.op.scratch
    args = [_meta(program, argument) if isinstance(argument, View) else argument for argument in step.args]
    outs = tuple(_meta(program, view) for view in step.outs)
    return step.op.scratch(*args, out=outs[0] if len(outs) == 1 else outs, **step.static)


def _contiguous(target: torch.Tensor, source: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    if source.is_contiguous() and target.is_contiguous():
        step = CHUNK_BYTES // source.itemsize
        target, source = target.view(-1), source.view(-1)
        for start in range(0, len(source), step):
            yield target[start : start + step], source[start : start + step]
    else:
        for rows in zip(target, source, strict=True):
            yield from _contiguous(*rows)


def _one(reference: Call, out: torch.Tensor) -> None:
    out.copy_(reference(), non_blocking=True)  # type: ignore[arg-type]  # what is no tensor fails with its node's name


def _several(reference: Call, *outs: torch.Tensor) -> None:
    results: Any = reference()
    for out, result in zip(outs, results or (), strict=True):
        out.copy_(result, non_blocking=True)


def _brought(reference: Callable[..., Any], hosts: frozenset[int], device: torch.device, *args: Any) -> Any:
    """Calls a reference on the device with copies of what it reads of the host."""
    return reference(*(a.to(device, non_blocking=True) if k in hosts else a for k, a in enumerate(args)))


def _function(step: Launch) -> Callable[..., object]:
    """The kernel of that name, which its module defines."""
    path = step.op.kernels.get(step.kernel, "")
    module, _, name = path.partition(":")
    try:
        found: Callable[..., object] = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise BackendError(
            f"node {step.name} ({step.where}) asks for the kernel {step.kernel!r} of {step.op.name}, {path!r}, which "
            f"cannot be imported ({error}): the operator has {[*step.op.kernels]}",
            node=step.name,
            where=step.where,
        ) from error
    return found


def _on_host(program: Program, view: View) -> bool:
    return program.buffers[view.buffer].device == "host"


def _meta(program: Program, view: View) -> torch.Tensor:
    return meta(view.shape, program.buffers[view.buffer].dtype)
