"""What a call gives: shapes and dtypes of its results and its demand, found on meta tensors and cached."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from nanort.demand import Demand
from nanort.errors import REFUSALS, DemandError, NanortError, ShapeError
from nanort.operators import Op, Spec, meta
from nanort.values import Value

Inferred = tuple[tuple[Spec, ...], Demand, bool]


def infer(op: Op, args: tuple[Any, ...], static: dict[str, Any], where: str) -> Inferred:
    """Shapes and dtypes of the results, the demand, and whether there is exactly one result.

    Raises:
        ShapeError: the reference refuses the arguments; the message has ``where``, the line that made the call.
    """
    key = tuple((a.shape, a.dtype) if isinstance(a, Value) else (_Literal, _exact(a), a) for a in args)
    statics = tuple((name, _exact(value), value) for name, value in static.items())
    try:
        try:
            hash((key, statics))
        except TypeError:  # a list among the literals: infer without the cache
            return _infer.__wrapped__(op, key, statics)
        return _infer(op, key, statics)
    except NanortError as error:
        raise type(error)(f"{where}: {op.name}: {error}") from error
    except REFUSALS as error:
        shown = ", ".join(repr(argument) for argument in args)
        raise ShapeError(f"{where}: {op.name}({shown}) is refused by its reference: {error}") from error


def _exact(value: Any) -> Any:
    """The types in a literal: 2, 2.0 and True are equal, and not the same argument."""
    return (type(value), *map(_exact, value)) if isinstance(value, tuple) else type(value)


class _Literal:
    """Marks a literal in a cache key, so that no shape is taken for one."""


@lru_cache(maxsize=1 << 12)
def _infer(op: Op, key: tuple[Any, ...], statics: tuple[tuple[str, Any, Any], ...]) -> Inferred:
    static = {name: value for name, _, value in statics}
    args = tuple(part[2] if part[0] is _Literal else meta(*part) for part in key)
    out = op.outputs(args, static)
    specs = tuple((tuple(tensor.shape), tensor.dtype) for tensor in out)
    try:
        demand = op.work(args, out, static)
    except REFUSALS as error:
        raise (
            error if isinstance(error, NanortError) else DemandError(f"its demand function failed: {error}")
        ) from error
    return specs, demand, len(out) == 1
