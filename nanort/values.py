"""Value: a tensor of the graph, whole or a view of one, and the regions of it that operators touch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from nanort.caller import caller
from nanort.errors import ShapeError
from nanort.layout import Cells

if TYPE_CHECKING:
    from nanort.graph import Graph

Box = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Region:
    """Part of a root value: a box of its dimensions, or cells of a state that is indexed; neither is the whole."""

    box: Box | None = None
    cells: Cells | None = None

    def overlaps(self, other: Region) -> bool:
        """Whether the two regions share an element; unlike descriptions count as overlapping."""
        if self.box is not None and other.box is not None:
            return all(max(a, c) < min(b, d) for (a, b), (c, d) in zip(self.box, other.box, strict=True))
        if self.cells is not None and other.cells is not None:
            return any(max(a, c) < min(b, d) for a, b in self.cells for c, d in other.cells)
        return True

    def covers(self, other: Region) -> bool:
        """Whether every element of ``other`` is in this region."""
        if self.box is None and self.cells is None:
            return True
        if self.box is not None and other.box is not None:
            return all(a <= c and d <= b for (a, b), (c, d) in zip(self.box, other.box, strict=True))
        if self.cells is not None and other.cells is not None:
            return all(any(a <= c and d <= b for a, b in self.cells) for c, d in other.cells)
        return False


WHOLE = Region()


@dataclass(frozen=True, slots=True)
class View:
    """Where a value lies in its root: offset and strides in elements, the box it covers, the root's dimensions."""

    offset: int
    strides: tuple[int, ...]
    box: Box
    dims: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Value:
    """A tensor of a graph: an input, constant, state, result of a node, join of results, or a view of one of these.

    Views copy nothing: slicing (``value[2:8]``), :meth:`narrow` and :meth:`reshape` make them.
    """

    graph: Graph
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: str  # "input" | "constant" | "state" | "node" | "join" | "empty" | "view"
    index: int = -1  # of the root in its graph
    device: str = "device"
    batch: int | None = None
    node: int = -1
    parts: tuple[Value, ...] = ()
    parent: Value | None = None
    how: tuple[Any, ...] = ()  # ("narrow" | "decode" | "prefill", dim, start, stop) | ("reshape", shape)
    view: View | None = None
    scratch: tuple[int, int] = (0, 0)  # rows of dimension 0 whose contents nobody means

    def __repr__(self) -> str:
        return f"{self.name}: {str(self.dtype).removeprefix('torch.')}{list(self.shape)}"

    @property
    def root(self) -> Value:
        """The value whose memory this one shows."""
        value = self
        while value.parent is not None:
            value = value.parent
        return value

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def placement(self) -> View:
        """Offset, strides and box in the root; the identity for a root."""
        return self.view or View(
            0, contiguous(self.shape), tuple((0, size) for size in self.shape), tuple(range(len(self.shape)))
        )

    @property
    def region(self) -> Region:
        """The part of the root that it covers."""
        return Region(box=self.view.box) if self.view else WHOLE

    def narrow(self, dim: int, start: int, stop: int, how: str = "narrow") -> Value:
        """The elements ``start`` to ``stop`` of dimension ``dim``, as a view."""
        if not 0 <= dim < len(self.shape) or not 0 <= start <= stop <= self.shape[dim]:
            raise ShapeError(f"{caller()}: {self!r} has no elements {start}:{stop} of dimension {dim}")
        if (start, stop) == (0, self.shape[dim]) and how == "narrow":
            return self
        shape = (*self.shape[:dim], stop - start, *self.shape[dim + 1 :])
        if self.kind == "join" and dim == 0:  # a range within one part is a view of that part
            row = 0
            for part in self.parts:
                if row <= start and stop <= row + part.shape[0] and start < stop:
                    return part.narrow(0, start - row, stop - row)
                row += part.shape[0]
        place = self.placement
        box, root_dim = place.box, place.dims[dim]
        if root_dim is not None:
            low = box[root_dim][0]
            box = (*box[:root_dim], (low + start, low + stop), *box[root_dim + 1 :])
        view = View(place.offset + start * place.strides[dim], place.strides, box, place.dims)
        return self._view(shape, (how, dim, start, stop), view)

    def reshape(self, *shape: int) -> Value:
        """The same elements in another shape, as a view; one size may be -1.

        Raises:
            ShapeError: the elements do not fit the shape, or only a copy could.
        """
        place = self.placement
        probe = torch.empty(0, device="meta").as_strided(self.shape, place.strides)
        try:
            shown = probe.view(shape)
        except RuntimeError as error:
            raise ShapeError(
                f"{caller()}: {self!r} cannot be viewed as {list(shape)} without a copy: {error}"
            ) from None
        sizes, strides = tuple(shown.shape), tuple(shown.stride())
        ours = {(place.strides[d], size): place.dims[d] for d, size in enumerate(self.shape) if size > 1}
        lead = next((d for d, (a, b) in enumerate(zip(sizes, self.shape, strict=False)) if a != b), len(sizes))
        dims = tuple(
            place.dims[d] if d < min(lead, len(self.shape)) else ours.get((strides[d], sizes[d]))
            for d in range(len(sizes))
        )
        return self._view(sizes, ("reshape", sizes), View(place.offset, strides, place.box, dims))

    def __getitem__(self, index: slice | tuple[slice, ...]) -> Value:
        value = self
        for dim, part in enumerate(index if isinstance(index, tuple) else (index,)):
            if not isinstance(part, slice) or part.step not in (None, 1) or dim >= len(self.shape):
                raise ShapeError(
                    f"{caller()}: {self!r}[{index!r}]: only slices of step 1 are views; use an operator for the rest"
                )
            start, stop, _ = part.indices(self.shape[dim])
            value = value.narrow(dim, start, max(start, stop))
        return value

    def __iter__(self) -> Any:
        raise ShapeError(
            f"{caller()}: {self!r} is one value, not several: slice it, or use an operator with more results"
        )

    def _view(self, shape: tuple[int, ...], how: tuple[Any, ...], view: View) -> Value:
        return Value(
            self.graph,
            self.name,
            shape,
            self.dtype,
            "view",
            self.index,
            self.device,
            None,
            self.node,
            (),
            self,
            how,
            view,
        )


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides of ``shape``, in elements."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def joined(roots: Sequence[Value]) -> dict[int, dict[int, int]]:
    """By outermost join: the roots that lie in its memory, itself among them, and the first element of each."""
    lies: dict[int, dict[int, int]] = {}
    home: dict[int, int] = {}
    joins = [root for root in roots if root.kind == "join"]
    for join in sorted(joins, key=lambda join: -len(join.parts)):  # an outer join before those nested in it
        if (first := join.parts[0].index) in home:
            inside = lies[home[first]]
            inside[join.index] = inside[first]
            continue
        inside, offset = lies.setdefault(join.index, {join.index: 0}), 0
        for part in join.parts:
            home[part.index], inside[part.index] = join.index, offset
            offset += math.prod(part.shape)
    return lies
