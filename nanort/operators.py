"""Op: a reference, its kernels and its demand under one name; made with @nr.op."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from nanort.demand import Demand
from nanort.errors import DemandError, GraphError, ShapeError
from nanort.layout import Cells

AXES = ("infer", "rows", "whole")

DemandRule = Demand | Callable[..., Demand]
Spec = tuple[tuple[int, ...], torch.dtype]


@dataclass(frozen=True, eq=False, repr=False)
class Op:
    """An operator of the DAG; calling it on Values makes a node, on tensors runs the reference.

    Tensors are positional arguments of the reference, everything else is keyword-only and static.

    Attributes:
        name: what timelines and errors call it.
        reference: a plain torch function: the meaning, the shape rule (on meta tensors), the CPU path and the oracle.
        demand: ``demand(*args, out, **static)`` on meta tensors, or a constant Demand that scales by rows.
        kernels: other implementations by name, ``"module:function"``, called
            ``fn(*args, out=, scratch=, sms=, **static)``; plans for a GPU take the first unless another was measured to
            be faster, and ``"coresident"`` where streams share SMs. One may carry ``refuses(*args, **static)``, which
            says on meta tensors why it does not take them, ``scratch_bytes(*args, sms=, **static)``, and ``prepared``,
            called like itself for a call without arguments. See :class:`nanort.kernels.kernel.Kernel`.
        writes: positions of the arguments that it changes in place.
        scratch: bytes of scratch that a kernel without ``scratch_bytes`` needs, or a rule called like ``demand``.
        shape: the shape rule, where the reference reads values; called like the reference, on meta tensors.
        to: for a transfer, where its output lives: ``"device"`` or ``"host"``.
        axes: how the batch flows: ``"infer"`` it from the reference, along ``"rows"`` (dimension 0 of what is cut),
            or not at all: the operator takes the ``"whole"`` batch.
        cells: for a state that is indexed, the cells that each position reads or writes: ``rule(layout, **static)``.
        example: arguments (a tuple, or a function of the static ones) for tests and the probe of nano_batch.
    """

    name: str
    reference: Callable[..., Any]
    demand: DemandRule
    kernels: Mapping[str, str]
    writes: tuple[int, ...]
    scratch: int | Callable[..., int]
    shape: Callable[..., Any] | None
    to: str
    axes: str
    cells: Mapping[int, Callable[..., Cells]]
    example: Callable[..., tuple[Any, ...]] | tuple[Any, ...] | None
    takes_layout: bool

    def __post_init__(self) -> None:
        # Without slots, so that documentation and signature of an operator are those of its reference.
        object.__setattr__(self, "__doc__", self.reference.__doc__)
        object.__setattr__(self, "__wrapped__", self.reference)

    def __repr__(self) -> str:
        return f"Op({self.name})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Op:
        """Itself, as a function's copy is: copies of a graph have the same operators."""
        return self

    def __call__(self, *args: Any, name: str | None = None, **static: Any) -> Any:
        """A node of the arguments' graph (``name`` is its name there), or the reference's results for tensors."""
        graph = next((value.graph for value in (*args, *static.values()) if hasattr(value, "graph")), None)
        if graph is None:
            return self.reference(*args, **static)
        return graph.call(self, *args, name=name, **static)

    def arguments(self, **static: Any) -> tuple[Any, ...] | None:
        """Example arguments for these static ones, or None if the operator carries none."""
        return self.example(**static) if callable(self.example) else self.example

    def outputs(self, args: tuple[Any, ...], static: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
        """Meta tensors of the shapes and dtypes that the reference returns."""
        result = (self.shape or self.reference)(*args, **static)
        if result is None:
            return ()
        if isinstance(result, tuple) and len(result) == 1:
            raise ShapeError(f"{self.name} returns a tuple of one: return the tensor itself")
        return result if isinstance(result, tuple) else (result,)

    def work(self, args: tuple[Any, ...], out: tuple[torch.Tensor, ...], static: Mapping[str, Any]) -> Demand:
        """The demand of a call on these meta tensors."""
        if isinstance(self.demand, Demand):
            return self.demand
        found = self.demand(*args, out=out[0] if len(out) == 1 else out, **static)
        if not isinstance(found, Demand):
            raise DemandError(f"the demand function of {self.name} returned {found!r}: return an nr.Demand")
        return found


def op(
    *,
    demand: DemandRule,
    name: str | None = None,
    kernels: Mapping[str, str] | None = None,
    writes: tuple[str, ...] = (),
    scratch: int | Callable[..., int] = 0,
    shape: Callable[..., Any] | None = None,
    to: str = "",
    axes: str = "infer",
    cells: Mapping[str, Callable[..., Cells]] | None = None,
    example: Callable[..., tuple[Any, ...]] | tuple[Any, ...] | None = None,
) -> Callable[[Callable[..., Any]], Op]:
    """Makes an :class:`Op` of a plain torch function, which returns fresh tensors; see Op for the arguments.

    >>> import torch, nanort as nr
    >>> @nr.op(demand=lambda x, out: nr.Demand(flops=x.numel(), hbm_bytes=2 * x.nbytes))
    ... def double(x):
    ...     return 2 * x
    >>> double(torch.ones(2))
    tensor([2., 2.])
    """

    def make(reference: Callable[..., Any]) -> Op:
        return make_op(
            reference, demand=demand, name=name, kernels=kernels, writes=writes, scratch=scratch, shape=shape, to=to,
            axes=axes, cells=cells, example=example,
        )  # fmt: skip  # one argument a line would hide that nothing is changed

    return make


def make_op(
    reference: Callable[..., Any],
    *,
    demand: DemandRule,
    name: str | None = None,
    kernels: Mapping[str, str] | None = None,
    writes: tuple[str, ...] = (),
    scratch: int | Callable[..., int] = 0,
    shape: Callable[..., Any] | None = None,
    to: str = "",
    axes: str = "infer",
    cells: Mapping[str, Callable[..., Cells]] | None = None,
    example: Callable[..., tuple[Any, ...]] | tuple[Any, ...] | None = None,
) -> Op:
    """An Op from its parts; :func:`op` is the decorator."""
    called: str = name or getattr(reference, "__name__", "") or type(reference).__name__
    if axes not in AXES or to not in ("", "device", "host"):
        raise GraphError(f"operator {called}: axes={axes!r} must be one of {AXES}, to={to!r} 'device' or 'host'")
    if not isinstance(demand, Demand) and not callable(demand):
        raise DemandError(f"operator {called}: demand={demand!r} is none: give nr.Demand(...), or a function")
    positional, static = _signature(reference)
    named = [*writes, *(cells or {})]
    if positional is None and named:
        raise GraphError(f"operator {called}: writes= and cells= name arguments, and its signature cannot be read")
    if unknown := [argument for argument in named if argument not in (positional or ())]:
        raise GraphError(f"operator {called} has no positional argument {unknown}: it has {list(positional or ())}")
    position = {argument: index for index, argument in enumerate(positional or ())}
    return Op(
        name=called,
        reference=reference,
        demand=demand,
        kernels=dict(kernels or {}),
        writes=tuple(position[argument] for argument in writes),
        scratch=scratch,
        shape=shape,
        to=to,
        axes=axes,
        cells={position[argument]: rule for argument, rule in (cells or {}).items()},
        example=example,
        takes_layout="layout" in static,
    )


def _signature(reference: Callable[..., Any]) -> tuple[tuple[str, ...] | None, frozenset[str]]:
    """Positional names (None where they cannot be read), and keyword-only names."""
    try:
        parameters = inspect.signature(reference).parameters.values()
    except ValueError:  # builtins such as torch.softmax carry no signature
        return None, frozenset()
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return None, frozenset()
    positional = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
    static = frozenset(p.name for p in parameters if p.kind == p.KEYWORD_ONLY)
    return positional, static


@lru_cache(maxsize=1 << 12)
def meta(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of that shape and dtype without memory, on which shape rules and demands run."""
    return torch.empty(shape, dtype=dtype, device="meta")
