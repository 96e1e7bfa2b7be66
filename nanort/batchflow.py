"""How the batch flows through an operator: inferred from shapes at two sizes, then proved on numbers."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch

from nanort.errors import REFUSALS, BatchFlowError
from nanort.operators import Op, meta

SIZES = (13, 17)  # primes, so that a dimension that follows the batch is told from one that does not

# A parameter of a call: (shape, dtype, batch axis or None) of a tensor, or (LITERAL, value).
LITERAL = "literal"
Parameter = tuple[Any, ...]


def flow(op: Op, parameters: tuple[Parameter, ...], static: dict[str, Any]) -> tuple[int, ...]:
    """The batch axis of every result of ``op``, whose pieces put together are the whole.

    Raises:
        BatchFlowError: the operator cannot be cut, or nothing proves that it can.
    """
    statics = tuple((key, value) for key, value in static.items() if key != "layout")
    axes: tuple[int, ...] = _cached(_flow, op, parameters, statics)
    return axes


def _cached(function: Any, *key: Any) -> Any:
    """What an ``lru_cache`` answers, without it where a list is among the literals."""
    try:
        hash(key)
    except TypeError:
        return function.__wrapped__(*key)
    return function(*key)


@lru_cache(maxsize=1 << 12)
def _flow(op: Op, parameters: tuple[Parameter, ...], statics: tuple[tuple[str, Any], ...]) -> tuple[int, ...]:
    axes = _inferred(op, parameters, dict(statics))
    if op.axes == "infer":
        kinds = tuple(p if p[0] is LITERAL else (len(p[0]), p[2]) for p in parameters)
        _cached(_prove, op, kinds, statics, axes)
    return axes


def _inferred(op: Op, parameters: tuple[Parameter, ...], static: dict[str, Any]) -> tuple[int, ...]:
    """The dimension of each result that follows the batch when the reference runs on meta tensors at two sizes."""
    shapes = []
    for rows in SIZES:
        args = tuple(p[1] if p[0] is LITERAL else meta(_resized(p[0], p[2], rows), p[1]) for p in parameters)
        try:
            shapes.append([tuple(tensor.shape) for tensor in op.outputs(args, static)])
        except REFUSALS as error:
            raise BatchFlowError(f"its reference refuses a batch of {rows} rows: {error}") from error
    axes = []
    for small, large in zip(*shapes, strict=True):
        moved = [dim for dim, (a, b) in enumerate(zip(small, large, strict=False)) if a != b]
        if len(small) != len(large) or len(moved) != 1 or (small[moved[0]], large[moved[0]]) != SIZES:
            raise BatchFlowError(f"no dimension of its result {list(small)} follows a batch of {SIZES[0]} rows")
        axes.append(moved[0])
    return tuple(axes)


def _resized(shape: tuple[int, ...], axis: int | None, rows: int) -> tuple[int, ...]:
    return shape if axis is None else (*shape[:axis], rows, *shape[axis + 1 :])


@lru_cache(maxsize=1 << 12)
def _prove(op: Op, kinds: tuple[Parameter, ...], statics: tuple[tuple[str, Any], ...], axes: tuple[int, ...]) -> None:
    """Runs the operator's example in float64, whole and in pieces, and compares."""
    static = dict(statics)
    example = op.arguments(**static)
    if example is None:
        raise BatchFlowError("shapes alone do not prove that pieces make the whole: give it example= or axes='rows'")
    tensors = [k for k, kind in enumerate(kinds) if kind[0] is not LITERAL]
    ranks = [kinds[k][0] for k in tensors]
    given = [example[k].dim() if isinstance(example[k], torch.Tensor) else None for k in tensors if k < len(example)]
    if given != ranks:  # a softmax over dimension -2 mixes the rows of a matrix, and not those of a stack of matrices
        raise BatchFlowError(
            f"its example has tensors of {given} dimensions, the call of {ranks}: give one like the call"
        )
    args = [kind[1] if kind[0] is LITERAL else _double(example[k]) for k, kind in enumerate(kinds)]
    along = [None if kind[0] is LITERAL else kind[1] for kind in kinds]
    sizes = sorted({args[k].shape[axis] for k, axis in enumerate(along) if axis is not None})
    if len(sizes) != 1 or (rows := sizes[0]) < 3:
        raise BatchFlowError(f"its example has batches of {sizes} rows: give one of at least 3 along {along}")
    whole = _run(op, args, along, [(0, rows)], static, axes)
    for cuts in ((rows // 2,), (1,), (rows - 1,), (rows // 3, 2 * rows // 3), tuple(range(1, rows))):
        pieces = list(zip((0, *cuts), (*cuts, rows), strict=True))
        if not all(_close(a, b) for a, b in zip(whole, _run(op, args, along, pieces, static, axes), strict=True)):
            raise BatchFlowError(
                f"cut at {list(cuts)}, its example gives other numbers: rows depend on one another, or on chance"
            )


def _run(
    op: Op,
    args: list[Any],
    along: list[int | None],
    pieces: list[tuple[int, int]],
    static: dict[str, Any],
    axes: tuple[int, ...],
) -> list[torch.Tensor]:
    """The results of running ``pieces`` one after the other, put together, and what the operator changed in place."""
    owned = [arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in args]
    results: list[tuple[torch.Tensor, ...]] = []
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(len(pieces))  # random numbers drawn in a row would be the same ones
        for low, high in pieces:
            parts = [
                arg if axis is None else arg.narrow(axis, low, high - low)
                for arg, axis in zip(owned, along, strict=True)
            ]
            try:
                result = op.reference(*parts, **static)
            except REFUSALS as error:
                raise BatchFlowError(f"its reference refuses rows {low}:{high} of its example: {error}") from error
            results.append(result if isinstance(result, tuple) else () if result is None else (result,))
    joined = [torch.cat(column, dim=axis) for column, axis in zip(_columns(results), axes, strict=True)]
    return joined + [owned[position] for position in op.writes]


def _columns(results: list[tuple[torch.Tensor, ...]]) -> Iterable[tuple[torch.Tensor, ...]]:
    return zip(*results, strict=True)


def _double(argument: Any) -> Any:
    floating = isinstance(argument, torch.Tensor) and argument.is_floating_point()
    return argument.double() if floating else argument


def _close(whole: torch.Tensor, pieces: torch.Tensor) -> bool:
    if whole.shape != pieces.shape:
        return False
    if not (whole.is_floating_point() or whole.is_complex()):
        return torch.equal(whole, pieces)
    tolerance = max(1e-6, 4 * torch.finfo(whole.dtype).eps)  # references may compute in float32 inside
    scale = max(1.0, whole.abs().nan_to_num(0.0, 0.0, 0.0).max().item()) if whole.numel() else 1.0
    return torch.allclose(whole, pieces, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
