"""Node: one call of an operator in a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from nanort.demand import Demand
from nanort.devices import Device
from nanort.edges import Access
from nanort.operators import Op
from nanort.values import Value


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Node:
    """One call of an operator.

    Attributes:
        args, static: the call, Values and literals in order, and keyword-only arguments.
        preds: ``(node index, reason)`` of what it must run after; the reason is "data", "state" or "after".
        scope: labels for timelines, ``(("layer", 0),)``.
        where: the line of user code that made it, ``"model.py:12"``.
        origin, piece: the node of the uncut graph and the nano-batch that it is a piece of.
        sms, stream: what an expert pinned it to.
    """

    index: int
    name: str
    op: Op
    args: tuple[Any, ...]
    static: dict[str, Any]
    outputs: tuple[Value, ...]
    demand: Demand
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]
    preds: tuple[tuple[int, str], ...]
    scope: tuple[tuple[str, Any], ...]
    where: str
    origin: str
    piece: int
    sms: tuple[int, int] | None
    stream: str | None

    def __repr__(self) -> str:
        inputs = ", ".join(repr(value) for value in self.inputs)
        results = ", ".join(repr(value) for value in self.outputs)
        return f"{self.name} = {self.op.name}({inputs}) -> {results or 'nothing'}"

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The Values among the arguments."""
        return tuple(argument for argument in self.args if isinstance(argument, Value))

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype that its arithmetic runs at: of the first floating-point argument or result."""
        found = (v.dtype for v in (*self.inputs, *self.outputs) if v.dtype.is_floating_point)
        return next(found, None)

    @property
    def span(self) -> tuple[int, int | None]:
        """The fewest and most SMs it may run on, a pin of the user's counted in."""
        return self.sms or self.demand.span

    @property
    def shapes(self) -> str:
        """The shapes of what goes in and comes out."""
        taken, made = (", ".join(str(tuple(v.shape)) for v in some) for some in (self.inputs, self.outputs))
        return f"{taken or 'nothing'} -> {made or 'nothing'}"

    def bound_by(self, device: Device) -> str:
        """What limits it alone on the whole device: "compute", "memory", "pcie", "network" or "launch"."""
        return self.demand.bound_by(device, self.dtype)

    def span_on(self, kind: str) -> tuple[int, int | None]:
        """The same on a device of this kind: cores share any work out at will, whatever tiles kernels make of it."""
        return self.span if kind == "cuda" else self.sms or self.demand.sms


def identity(argument: Any) -> str:
    """What tells an argument from others in a graph's fingerprint."""
    if callable(argument) and hasattr(argument, "__qualname__"):
        return f"{getattr(argument, '__module__', '')}.{argument.__qualname__}"  # its repr has an address
    if not isinstance(argument, Value):
        return repr(argument)
    return f"%{argument.index}" if argument.view is None else f"%{argument.index}{argument.shape}{argument.view!r}"
