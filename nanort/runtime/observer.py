"""Observer: which bytes of memory torch's operators read and write while some code runs, in the thread that runs it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nanort.compiled import Ints2
from nanort.programs.accesses import Ranges, ranges
from nanort.programs.program import View

OVERWRITES = {
    "copy_", "fill_", "zero_", "index_copy_", "index_fill_", "index_put_", "_index_put_impl_", "scatter_", "normal_",
    "uniform_", "random_", "put_",
}  # fmt: skip
"""Operators that do not read what they change."""

STATISTICS, FLAGS = ("running_mean", "running_var"), ("training", "use_input_stats")
TRAINERS = {
    "batch_norm", "instance_norm", "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm",
    "_batch_norm_impl_index", "batch_norm_update_stats", "batch_norm_gather_stats",
    "batch_norm_gather_stats_with_counts",
}  # fmt: skip
"""Operators that change their STATISTICS, which their schemas do not say; those with one of FLAGS only if it is set."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Places that an operator writes through an index, by row.

    Attributes:
        memory: the address of the storage that they are in.
        starts: [rows, pieces] where in it each contiguous piece begins, in bytes.
        nbytes: of a piece.
    """

    memory: int
    starts: Ints2
    nbytes: int


class Observer(TorchDispatchMode):  # type: ignore[no-untyped-call]  # it has no types
    """``with Observer(...) as seen: ...``; afterwards it tells what was read and written.

    What was made meanwhile is of no interest: it is gone afterwards, or it is a result.

    Args:
        known: addresses of storages that were there before.
        values: whether to look which rows an index names, which on a GPU waits for it.
        dry: whether what would change memory that was there before is left out.

    Attributes:
        reads, writes: by the address of a storage, ranges of its bytes.
        rows: what was written through an index, where two rows may not name one place.
        kept: those storages, so that nothing else is at their addresses as long as it is asked what was there.
    """

    def __init__(self, known: Collection[int], *, values: bool = True, dry: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known = known
        self.values = values
        self.dry = dry
        self.reads: dict[int, set[tuple[int, int]]] = {}
        self.writes: dict[int, set[tuple[int, int]]] = {}
        self.rows: list[Rows] = []
        self.kept: dict[int, torch.UntypedStorage] = {}
        self._fresh: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Carries out one operator, and notes what it touches."""
        given = dict(kwargs or {})
        kind = _kind(func)
        if kind.makes_views:
            if kind.lifts:
                self._made(args)
            return func(*args, **given)
        changed = [*kind.changed(args, given)]
        for tensor in _tensors((args, given)):
            if not any(tensor is other for other in changed):
                self._note(self.reads, tensor)
        rows = [*self._rows(kind.name, args)] if changed else []
        adds = kind.name in _INDEXED and _may_meet(kind.name, args, given)
        for tensor in changed:
            if adds or (kind.name not in OVERWRITES and not kind.is_out):
                self._note(self.reads, tensor)
            if not rows:
                self._note(self.writes, tensor)
        for found in rows:
            ends = found.starts + found.nbytes
            pairs = zip(found.starts.reshape(-1).tolist(), ends.reshape(-1).tolist(), strict=True)
            self.writes.setdefault(found.memory, set()).update(pairs)
            self.kept[found.memory] = changed[0].untyped_storage()
            if not adds:
                self.rows.append(found)
        own = all(not (memory := address(tensor)) or memory in self._fresh for tensor in changed)
        if self.dry and not own:
            if not kind.trains:
                return changed[0] if len(changed) == 1 else tuple(changed)
            args = tuple(one.clone() if any(one is other for other in changed) else one for one in args)
        result = func(*args, **given)
        if own or kind.trains:
            self._made(result)
        return result

    def _made(self, results: Any) -> None:
        for memory in map(address, _tensors(results)):
            if memory not in self.known and memory not in self.kept:  # what is kept was read: this is a view of it
                self._fresh.add(memory)

    def _note(self, into: dict[int, set[tuple[int, int]]], tensor: torch.Tensor) -> None:
        if (memory := address(tensor)) and memory not in self._fresh:
            into.setdefault(memory, set()).update(spans_of(tensor))
            self.kept[memory] = tensor.untyped_storage()

    def _rows(self, name: str, args: Sequence[Any]) -> Iterator[Rows]:
        """What a write through an index writes; nothing for other operators."""
        written = _INDEXED.get(name) if self.values else None
        if written is not None and args[0].dim() and address(args[0]) not in (0, *self._fresh):
            dims = written(*args)
            if dims:
                yield _places(args[0], dims)


@dataclass(frozen=True, slots=True)
class _Kind:
    """What is known of an operator by its schema: positions and names of the arguments that it changes."""

    name: str
    positions: tuple[int, ...]
    names: tuple[str, ...]
    makes_views: bool
    lifts: bool
    is_out: bool
    trains: bool
    flag: int  # where an operator that trains is told whether to

    def changed(self, args: Sequence[Any], given: Mapping[str, Any]) -> Iterator[torch.Tensor]:
        """The tensors that a call changes."""
        if 0 <= self.flag < len(args) and not args[self.flag]:
            return
        for at in self.positions:
            if at < len(args):
                yield from _tensors(args[at])
        for name in self.names:
            if name in given:
                yield from _tensors(given[name])


@cache
def _kind(func: Any) -> _Kind:
    schema = func._schema
    name = schema.name.partition("::")[2]
    names = [a.name for a in schema.arguments]
    written = [at for at, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
    if trains := name in TRAINERS and not written:
        written = [names.index(statistic) for statistic in STATISTICS]
    shared = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
    return _Kind(
        name,
        tuple(written),
        tuple(names[at] for at in written),
        (shared and not written) or name == "lift_fresh",
        name == "lift_fresh",
        any(schema.arguments[at].is_out for at in written),
        trains,
        next((at for at, called in enumerate(names) if trains and called in FLAGS), -1),
    )


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)


def address(tensor: torch.Tensor) -> int:
    """The address of a tensor's storage, which tells memories apart; 0 where there is none."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided and tensor.numel() else 0


def begin(tensor: torch.Tensor) -> int:
    """Where in its storage a tensor begins, in bytes."""
    return int(tensor.storage_offset()) * tensor.itemsize


def spans_of(tensor: torch.Tensor) -> Ranges:
    """Its bytes in its storage."""
    return _ranges(tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.itemsize)


@lru_cache(maxsize=1 << 14)
def _ranges(offset: int, shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> Ranges:
    return ranges(View(0, offset, shape, strides), itemsize)


# Writes through an index: by dimension, which places of it each row names.

Dims = dict[int, torch.Tensor]


def _along(tensor: torch.Tensor, dim: int, index: torch.Tensor, *_: Any) -> Dims:
    return {dim % tensor.dim(): index}


def _index_put(tensor: torch.Tensor, indices: Sequence[torch.Tensor | None], *_: Any) -> Dims:
    dims: Dims = {}
    at = 0
    for index in indices:
        if index is None:
            at += 1
        else:
            parts = index.nonzero().unbind(1) if index.dtype in (torch.bool, torch.uint8) else (index,)
            dims |= {at + k: part for k, part in enumerate(parts)}
            at += len(parts)
    return dims


def _put(tensor: torch.Tensor, index: torch.Tensor, *_: Any) -> Dims:
    if not tensor.numel():
        return {}
    return dict(enumerate(torch.unravel_index(index % tensor.numel(), tensor.shape)))


def _scatter(tensor: torch.Tensor, dim: int, index: torch.Tensor, *_: Any) -> Dims:
    grids = [
        torch.arange(size, device=index.device).view(-1, *[1] * (index.dim() - d - 1)).expand(index.shape)
        for d, size in enumerate(index.shape)
    ]
    return {d: index if d == dim % index.dim() else grid for d, grid in enumerate(grids)}


_INDEXED: dict[str, Callable[..., Dims]] = {
    "index_add_": _along,
    "index_copy_": _along,
    "index_fill_": _along,
    "index_reduce_": _along,
    "index_put_": _index_put,
    "_index_put_impl_": _index_put,
    "put_": _put,
    "scatter_": _scatter,
    "scatter_add_": _scatter,
    "scatter_reduce_": _scatter,
}


def _may_meet(name: str, args: Sequence[Any], given: Mapping[str, Any]) -> bool:
    """Whether rows that name one place leave nothing to chance: they are summed, or all bring the same number."""
    if name in ("index_put_", "_index_put_impl_"):
        return bool(args[3:4] and args[3]) or args[2].numel() == 1
    if name == "put_":
        return bool(args[3:4] and args[3])
    if name == "scatter_":
        return "reduce" in given or not isinstance(args[-1], torch.Tensor)
    return name != "index_copy_"


def _places(tensor: torch.Tensor, dims: Dims) -> Rows:
    """Where the rows lie that an index names in some dimensions, all of the others taken whole."""
    shape, strides, item = tuple(tensor.shape), tensor.stride(), tensor.itemsize
    run, d = 1, tensor.dim() - 1
    while d >= 0 and d not in dims and strides[d] == run:  # what lies side by side is one piece
        run, d = run * shape[d], d - 1
    given = [index.cpu().long() for index in dims.values()]
    named: tuple[torch.Tensor, ...] = torch.broadcast_tensors(*given)  # type: ignore[no-untyped-call]
    starts: Ints2 = np.full((named[0].numel(), 1), tensor.storage_offset(), np.int64)
    for (dim, _), index in zip(dims.items(), named, strict=True):
        starts = starts + (index.reshape(-1, 1).numpy() % shape[dim]) * strides[dim]
    for other in range(d + 1):
        if other not in dims:
            pieces = starts.shape[1] * shape[other]
            starts = (starts[:, :, None] + np.arange(shape[other]) * strides[other]).reshape(len(starts), pieces)
    return Rows(address(tensor), starts * item, run * item)
