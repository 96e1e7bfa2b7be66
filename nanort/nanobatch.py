"""nano_batch: a graph whose operators run in pieces of the batch, so that pieces can overlap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any

from nanort.batchflow import LITERAL, flow
from nanort.demand import Demand
from nanort.errors import BatchFlowError, DemandError, SizesError, SplitError
from nanort.graph import Graph
from nanort.layout import Layout
from nanort.nodes import Node
from nanort.values import Value

Span = tuple[int, int]
Rows = str | int  # "step", "decode" or "prefill" rows of the layout, or a batch of that many rows


def nano_batch(graph: Graph, sizes: int | Sequence[int] = 2, per_op: Mapping[str, int] | None = None) -> Graph:
    """A new graph in which every operator that the batch flows through runs piece by piece.

    Args:
        graph: is sealed; its inputs with ``batch=`` are cut.
        sizes: a count of even pieces, or their rows; with a layout each gets an even mix of decode and prefill rows.
        per_op: other counts, by operator or node name; operators that take a layout are only cut finer.

    Inputs, outputs and states keep their names and shapes; rows stand as ``graph.layout.order`` of the result says.

    Raises:
        SizesError: the sizes do not add up to the rows.
        BatchFlowError: the batch cannot flow through an operator; it is named.

    >>> import torch
    >>> g = Graph("squares")
    >>> x = g.input("x", (8,), torch.float32, batch=0)
    >>> g.output(y=g.call(torch.square, x, demand=Demand(flops=8), axes="rows"))
    >>> [node.name for node in nano_batch(g, [3, 5]).nodes]
    ['square/0', 'square/1']
    """
    return _Cutter(graph, sizes, dict(per_op or {})).cut()


class _Cutter:
    """Replays a graph call by call, each on the pieces of its arguments."""

    def __init__(self, graph: Graph, sizes: int | Sequence[int], per_op: dict[str, int]) -> None:
        self.source = graph.seal()
        self.layout = graph.layout if graph.layout is not None and graph.layout.rows else None
        self.sizes = _sizes(graph, sizes)
        self.per_op = _checked(graph, per_op)
        self.pieces = self.layout.cut(self.sizes) if self.layout else ()
        self.graph = Graph(graph.name, self.layout.packed(self.pieces) if self.layout else graph.layout)
        self.axes: dict[int, tuple[int, Rows]] = {}  # by root of the source: its batch axis, and which rows those are
        self.parts: dict[int, list[tuple[int, int, Value]]] = {}  # by root: first row, last row, value in the new graph
        self.wholes: dict[int, Value] = {}  # by root, of what is not cut
        self.joins: dict[int, dict[Span, Value]] = {}  # by root and rows, of what several pieces make up
        # What layers ask for again and again: keeping it takes a quarter off the time that a graph of 32 needs.
        self.bounds: dict[Rows, list[Span]] = {}
        self.spans: dict[tuple[Rows, int], list[Span]] = {}
        self.layouts: dict[tuple[Rows, Span], Layout] = {}
        self.views: dict[tuple[Any, ...], Value] = {}
        self.renamed: dict[str, list[str]] = {}  # by node: its pieces

    def cut(self) -> Graph:
        for root in self.source.roots:
            if root.kind in ("input", "constant", "state"):
                self._leaf(root)
        for node in self.source.nodes:
            with _told(f"{node.where}: operator {node.op.name} (node {node.name}) cannot be cut"):
                self._node(node)
        for name, value in self.source.outputs.items():
            with _told(f"output {name!r} of graph {self.graph.name!r}"):
                self.graph.output(**{name: self._whole(value)})
        return self.graph

    def _leaf(self, root: Value) -> None:
        make = {"input": self.graph.input, "constant": self.graph.constant, "state": self.graph.state}[root.kind]
        told: dict[str, dict[str, Any]] = {"input": {"batch": root.batch}, "state": {"scratch": root.scratch}}
        options = told.get(root.kind, {})
        made = make(root.name, root.shape, root.dtype, device=root.device, **options)
        if root.batch is None:
            self.wholes[root.index] = made
        else:
            rows = root.shape[root.batch]
            if self.layout and rows == self.layout.decode == self.layout.prefill_rows:
                raise BatchFlowError(
                    f"input {root!r}: its {rows} rows may be decode or prefill rows, there are as many of both: "
                    f"make an input of all {self.layout.rows} rows and use g.split"
                )
            self.axes[root.index] = (root.batch, self._kind(rows))
            self.parts[root.index] = [(0, rows, made)]

    def _node(self, node: Node) -> None:
        along = [self._axis(argument) if isinstance(argument, Value) else None for argument in node.args]
        kinds = {axis[1] for axis in along if axis is not None}
        if node.op.axes == "whole" or not kinds:
            self._uncut(node)
            return
        if len(kinds) > 1:
            raise BatchFlowError(f"its arguments are cut along different rows: {sorted(map(str, kinds))}")
        kind, axes = kinds.pop(), self._flow(node, along)
        spans = self._spans(node, kind)
        for piece, (low, high) in enumerate(spans):
            args = tuple(
                self._rows(argument, low, high) if axis is not None else self._literal(argument)
                for argument, axis in zip(node.args, along, strict=True)
            )
            name = f"{node.name}/{piece}" if len(spans) > 1 else node.name
            static = node.static
            if node.op.takes_layout and self.layout is not None:
                static = {**static, "layout": self._layout(kind, low, high)}
            outputs = self._apply(node, args, static, name, piece, (high - low) / max(1, spans[-1][1]))
            for source, axis, made in zip(node.outputs, axes, outputs, strict=True):
                self.axes[source.index] = (axis, kind)
                self.parts.setdefault(source.index, []).append((low, high, made))

    def _uncut(self, node: Node) -> None:
        static = {**node.static, "layout": self.graph.layout} if node.op.takes_layout else node.static
        outputs = self._apply(node, tuple(map(self._literal, node.args)), static, node.name, 0, 1.0)
        self.wholes.update((source.index, made) for source, made in zip(node.outputs, outputs, strict=True))

    def _apply(
        self, node: Node, args: tuple[Any, ...], static: dict[str, Any], name: str, piece: int, fraction: float
    ) -> tuple[Value, ...]:
        demand = node.demand if isinstance(node.op.demand, Demand) else None
        if demand is not None and fraction != 1.0:
            try:
                demand = demand.scaled(fraction)
            except DemandError as error:
                raise BatchFlowError(str(error)) from error
        pins = [other for pred, reason in node.preds if reason == "after" for other in self._renamed(pred)]
        before = len(self.graph.nodes)
        made = self.graph.apply(
            node.op, args, static, name=name, where=node.where, sms=node.sms, stream=node.stream, after=tuple(pins),
            demand=demand, scope=node.scope, origin=node.name, piece=piece,
        )  # fmt: skip  # what is carried over, in two lines
        self.renamed.setdefault(node.name, []).extend(new.name for new in self.graph.nodes[before:])
        for position in node.op.writes:  # joins of what it changes may be copies, which are out of date now
            self.joins.pop(node.args[position].index, None)
        return made if isinstance(made, tuple) else () if made is None else (made,)

    def _renamed(self, pred: int) -> list[str]:
        return self.renamed[self.source.nodes[pred].name]

    # Which rows a value holds.

    def _kind(self, rows: int) -> Rows:
        """The layout's rows that a batch of this size stands for, or just its size."""
        if self.layout is not None:
            named = {"step": self.layout.rows, "decode": self.layout.decode, "prefill": self.layout.prefill_rows}
            return next((kind for kind, count in named.items() if count == rows), rows)
        return rows

    def _axis(self, value: Value) -> tuple[int, Rows] | None:
        """The batch axis of a value of the source and the rows along it; None if it is not cut."""
        if value.parent is None:
            if value.kind == "join" and value.index not in self.axes:
                return self._join_axis(value)
            return self.axes.get(value.index)
        found = self._axis(value.parent)
        if found is None:
            return None
        axis, kind = found
        if value.how[0] == "reshape":
            root_dim = value.parent.placement.dims[axis]
            dims = value.placement.dims
            if root_dim is None or root_dim not in dims:
                raise BatchFlowError(
                    f"{value!r} mixes the batch with other dimensions: reshape after the cut, or not at all"
                )
            return dims.index(root_dim), kind
        how, dim, start, stop = value.how
        if dim != axis:
            return axis, kind
        if how == "narrow" or kind != "step":
            raise BatchFlowError(
                f"{value!r} takes rows {start}:{stop} of the batch: use g.split, or cut before slicing"
            )
        return axis, self._kind(stop - start) if stop - start in (0, value.parent.shape[0]) else how

    def _join_axis(self, value: Value) -> tuple[int, Rows] | None:
        found = [self._axis(part) for part in value.parts]
        if not any(found):
            return None
        if found != [(0, "decode"), (0, "prefill")]:
            raise BatchFlowError(
                f"join of {', '.join(map(repr, value.parts))}: only what g.split parted can be joined in pieces"
            )
        return 0, "step"

    def _flow(self, node: Node, along: list[tuple[int, Rows] | None]) -> tuple[int, ...]:
        parameters = tuple(
            (argument.shape, argument.dtype, axis[0] if axis else None)
            if isinstance(argument, Value)
            else (LITERAL, argument)
            for argument, axis in zip(node.args, along, strict=True)
        )
        if node.op.axes == "rows":
            return (0,) * len(node.outputs)
        return flow(node.op, parameters, node.static)

    def _bounds(self, kind: Rows) -> list[Span]:
        """The rows of every piece, counted among the rows of this kind."""
        if kind not in self.bounds:
            if isinstance(kind, int):
                total = sum(self.sizes)
                ends = [kind * end // total if total else 0 for end in accumulate(self.sizes)]
            else:
                rows = {"step": "rows", "decode": "decode", "prefill": "prefill_rows"}[kind]
                ends = list(accumulate(getattr(piece, rows) for piece in self.pieces))
            self.bounds[kind] = list(zip([0, *ends], ends, strict=False))
        return self.bounds[kind]

    def _spans(self, node: Node, kind: Rows) -> list[Span]:
        """The rows of every piece of a node, empty ones dropped."""
        bounds = self._bounds(kind)
        count = self.per_op.get(node.name, self.per_op.get(node.op.name, len(bounds)))
        if count % len(bounds) and node.op.takes_layout:
            raise BatchFlowError(f"per_op={count} does not divide its {len(bounds)} pieces: give a multiple of them")
        if (kind, count) not in self.spans:
            if count % len(bounds) == 0:
                bounds = [span for low, high in bounds for span in _even(low, high, count // len(bounds))]
            else:
                bounds = _even(0, bounds[-1][1], count)
            self.spans[kind, count] = [span for span in bounds if span[0] < span[1]] or bounds[:1]
        return self.spans[kind, count]

    def _layout(self, kind: Rows, low: int, high: int) -> Layout:
        """The layout of the rows ``low`` to ``high`` of a kind, which lie in one piece."""
        if isinstance(kind, int):
            raise BatchFlowError(f"the layout says nothing of a batch of {kind} rows")
        if (key := (kind, (low, high))) not in self.layouts:
            index = next(i for i, (first, last) in enumerate(self._bounds(kind)) if first <= low and high <= last)
            piece, first = self.pieces[index], self._bounds(kind)[index][0]
            shift = piece.decode - first if kind == "prefill" else -first
            self.layouts[key] = piece.narrow(low + shift, high + shift)
        return self.layouts[key]

    # Values of the new graph.

    def _literal(self, argument: Any) -> Any:
        return self._whole(argument) if isinstance(argument, Value) else argument

    def _whole(self, value: Value) -> Value:
        if (found := self._axis(value)) is not None:
            return self._rows(value, 0, value.shape[found[0]])
        if value.parent is not None:
            whole = self._whole(value.parent)
            return whole.reshape(*value.shape) if value.how[0] == "reshape" else whole.narrow(*value.how[1:])
        if value.index not in self.wholes:
            self.wholes[value.index] = (
                self.graph.join(*map(self._whole, value.parts))
                if value.kind == "join"
                else self.graph.empty(value.shape, value.dtype, value.device)
            )
        return self.wholes[value.index]

    def _rows(self, value: Value, low: int, high: int) -> Value:
        """The rows ``low`` to ``high`` of a value that is cut, counted among the rows of its kind."""
        found = self._axis(value)
        assert found is not None
        axis, kind = found
        if low == high:
            return self.graph.empty((*value.shape[:axis], 0, *value.shape[axis + 1 :]), value.dtype, value.device)
        if value.parent is not None:
            if value.root.kind != "input":  # may be changed in place between two readings
                return self._view(value, axis, kind, low, high)
            same = (value.index, value.shape, value.view, kind, low, high)
            if same not in self.views:
                self.views[same] = self._view(value, axis, kind, low, high)
            return self.views[same]
        joins = self.joins.setdefault(value.index, {})
        if (low, high) not in joins:
            joins[low, high] = self._joined(value, axis, low, high)
        return joins[low, high]

    def _view(self, value: Value, axis: int, kind: Rows, low: int, high: int) -> Value:
        assert value.parent is not None
        if value.how[0] == "reshape":
            shape = (*value.shape[:axis], high - low, *value.shape[axis + 1 :])
            return self._rows(value.parent, low, high).reshape(*shape)
        if value.how[1] != axis:
            return self._rows(value.parent, low, high).narrow(*value.how[1:])
        spans = [(low, high)] if kind == "step" else self._packed(kind, low, high)
        return self.graph.join(*(self._rows(value.parent, *span) for span in spans))

    def _packed(self, kind: Rows, low: int, high: int) -> list[Span]:
        """Where decode or prefill rows stand among the packed rows of the step."""
        spans = []
        for piece, (first, last) in zip(self.pieces, self._bounds(kind), strict=True):
            shift = piece.start - first + (piece.decode if kind == "prefill" else 0)
            if max(low, first) < min(high, last):
                spans.append((max(low, first) + shift, min(high, last) + shift))
        return spans

    def _joined(self, value: Value, axis: int, low: int, high: int) -> Value:
        pieces = self._parts(value)
        inside = next(((first, made) for first, last, made in pieces if first <= low and high <= last), None)
        if inside is not None:
            return inside[1].narrow(axis, low - inside[0], high - inside[0])
        if axis != 0:
            made = f"{value!r} of {self.source.nodes[value.node].where}"
            raise BatchFlowError(
                f"{made} is needed whole: its batch is dimension {axis}, only dimension 0 can be joined"
            )
        if (low, high) == (0, value.shape[0]):
            return self.graph.join(*(made for _, _, made in pieces))
        return self._rows(value, 0, value.shape[0]).narrow(0, low, high)

    def _parts(self, value: Value) -> list[tuple[int, int, Value]]:
        """The pieces of a root: results of nodes, or for a join of decode and prefill rows, those of its parts."""
        if value.kind != "join":
            return self.parts[value.index]
        parts, spans = [], zip(self._bounds("step"), self._bounds("decode"), self._bounds("prefill"), strict=True)
        for step, *both in spans:
            pair = [self._rows(part, *span) for part, span in zip(value.parts, both, strict=True)]
            parts.append((*step, self.graph.join(*pair)))
        return parts


def batch_rows(graph: Graph) -> int:
    """The rows that sizes of pieces add up to: those of the layout, or of the largest batch."""
    if graph.layout is not None and graph.layout.rows:
        return graph.layout.rows
    return max((root.shape[root.batch] for root in graph.roots if root.batch is not None), default=0)


def _sizes(graph: Graph, sizes: int | Sequence[int]) -> list[int]:
    """The rows of every piece, none of them empty."""
    rows = batch_rows(graph)
    if isinstance(sizes, str) or not isinstance(sizes, (int, Sequence)):
        raise SizesError(f"nano_batch(..., {sizes!r}): give a count of one or more, or a list of sizes")
    if isinstance(sizes, int):
        if sizes < 1:
            raise SizesError(f"nano_batch(..., {sizes}): give a count of one or more, or a list of sizes")
        if sizes > 1 and all(root.batch is None for root in graph.roots):
            raise SplitError(f"graph {graph.name!r} has no input with batch=: say which dimension may be cut")
        sizes = [high - low for low, high in _even(0, rows, sizes)]
    if any(not isinstance(size, int) or size < 0 for size in sizes) or sum(sizes) != rows:
        raise SizesError(f"pieces of {list(sizes)} rows must be whole numbers that add up to the batch's {rows} rows")
    return [size for size in sizes if size] or [0]


def _checked(graph: Graph, per_op: dict[str, int]) -> dict[str, int]:
    known = {node.op.name for node in graph.nodes} | {node.name for node in graph.nodes}
    if unknown := sorted(per_op.keys() - known):
        raise SplitError(f"per_op names {unknown}, which graph {graph.name!r} does not have: it has {sorted(known)}")
    if bad := {key: count for key, count in per_op.items() if not isinstance(count, int) or count < 1}:
        raise SizesError(f"per_op={bad}: counts of pieces are whole numbers, one or more")
    return per_op


def _even(low: int, high: int, count: int) -> list[Span]:
    """``count`` consecutive spans of even length."""
    ends = [low + (high - low) * k // count for k in range(count + 1)]
    return list(pairwise(ends))


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Says in a BatchFlowError where the batch was stopped."""
    try:
        yield
    except BatchFlowError as error:
        raise BatchFlowError(f"{where}: {error}") from error
