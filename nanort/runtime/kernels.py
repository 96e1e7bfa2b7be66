"""Launches and copies compiled to calls without arguments, over tensors that are there before anything is queued."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import torch

from nanort.costs.roofline import REFERENCE
from nanort.errors import BackendError
from nanort.programs.program import Copy, Launch, Program, View
from nanort.runtime.faults import naming

CHUNK_BYTES = 32 << 20
"""What a copy moves at once: between two chunks, copies of other streams get their turn on the engine."""

OPTIONAL = ("triton",)
"""Packages of extras, without which kernels are what falls away."""

LOG = logging.getLogger("nanort")

Call = Callable[[], object]
Tensors = Mapping[int, torch.Tensor]


def launch(
    program: Program, step: Launch, tensors: Tensors, scratch: torch.Tensor | None, device: torch.device
) -> Call:
    """What queues one kernel on the current stream.

    A reference returns fresh tensors, which are copied to where its results belong. Another kernel of the operator,
    ``"module:function"``, is called ``function(*args, out=, scratch=, sms=, **static)`` and writes there itself; its
    ``out`` is one tensor, a tuple of several, or None. One with ``prepared`` is asked for its call once, with the same
    arguments.

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
        function = _function(step)
        given = {"out": out, "scratch": scratch, "sms": step.sms, **step.static}
        return function.prepared(*args, **given) if hasattr(function, "prepared") else partial(function, *args, **given)
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


def supported(program: Program, *, strict: bool = False) -> Program:
    """The program with the reference in place of each kernel that does not take its arguments, which the log is told.

    Raises:
        BackendError: there is no such kernel; or it does not take its arguments, and ``strict`` says that it must.
    """
    told, instructions = set[str](), list(program.instructions)
    for at, step in enumerate(instructions):
        if not isinstance(step, Launch):
            continue
        with naming(program, step):
            reason = refusal(program, step)
        if not reason:
            continue
        said = f"the kernel {step.kernel!r} of {step.op.name} {reason}"
        if strict:
            raise BackendError(
                f"node {step.name} ({step.where}): {said}: change them, or let its reference run with strict=False",
                node=step.name,
                where=step.where,
            )
        if said not in told:
            told.add(said)
            LOG.warning("program %s: %s: node %s and its like run the reference", program.name, said, step.name)
        instructions[at] = replace(step, kernel=REFERENCE)
    return replace(program, instructions=tuple(instructions)) if told else program


def references(program: Program) -> Program:
    """The program with references in place of all kernels, for a device that runs none."""
    return replace(
        program,
        instructions=tuple(
            replace(step, kernel=REFERENCE) if isinstance(step, Launch) else step for step in program.instructions
        ),
    )


def refusal(program: Program, step: Launch) -> str:
    """Why the kernel of a launch does not take its arguments; "" if it does.

    A kernel may have ``refuses``, called like the reference on meta tensors, which says so.

    Raises:
        BackendError: there is no such kernel.
    """
    if step.kernel == REFERENCE:
        return ""
    if (absent := _absent(step)) is not None:
        return f"needs {absent}, which is not installed: pip install 'nanort[cuda]'"
    if any(isinstance(argument, View) and _on_host(program, argument) for argument in step.args):
        return "takes no values of the host"
    rule: Callable[..., str] | None = getattr(_function(step), "refuses", None)
    return "" if rule is None else rule(*_metas(program, step), **step.static)


def scratch_bytes(program: Program, step: Launch) -> int:
    """Bytes of scratch that the kernel of a launch asks for, by a rule of its own or its operator's."""
    if step.kernel == REFERENCE:
        return 0
    rule: Callable[..., int] | None = getattr(_function(step), "scratch_bytes", None)
    if rule is not None:
        return rule(*_metas(program, step), sms=step.sms, **step.static)
    if isinstance(step.op.scratch, int):
        return step.op.scratch
    outs = tuple(view.meta(program.buffers[view.buffer].dtype) for view in step.outs)
    return step.op.scratch(*_metas(program, step), out=outs[0] if len(outs) == 1 else outs, **step.static)


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


def _absent(step: Launch) -> str | None:
    """The optional package without which the kernel of a launch cannot be imported, if it is not there."""
    try:
        _function(step)
    except BackendError as error:
        missing = error.__cause__
        if isinstance(missing, ModuleNotFoundError) and missing.name in OPTIONAL:
            return missing.name
        raise
    return None


def _function(step: Launch) -> Callable[..., Any]:
    """The kernel of that name, which its module defines."""
    path = step.op.kernels.get(step.kernel, "")
    module, _, name = path.partition(":")
    try:
        found: Callable[..., Any] = getattr(import_module(module), name)
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


def _metas(program: Program, step: Launch) -> list[Any]:
    """The arguments of a launch, tensors without memory in place of views."""
    return [a.meta(program.buffers[a.buffer].dtype) if isinstance(a, View) else a for a in step.args]
