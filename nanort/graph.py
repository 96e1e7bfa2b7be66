"""Graph: the operator DAG; its edges are derived from the data that operators read and write."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, replace
from itertools import pairwise
from typing import Any

import torch

from nanort import drawing
from nanort.caller import caller
from nanort.demand import Demand
from nanort.devices import Device
from nanort.drafts import draft
from nanort.eager import bind, run_in_order
from nanort.edges import Access, Edges
from nanort.errors import (
    DemandError,
    DeviceError,
    DuplicateNameError,
    ForeignValueError,
    GraphError,
    InputDeviceError,
    LayoutError,
    SealedGraphError,
    ShapeError,
)
from nanort.inference import infer
from nanort.layout import Layout
from nanort.nodes import Node, identity
from nanort.operators import Op, make_op
from nanort.values import Region, Value

DRAWN = 60
"""Nodes up to which a notebook shows a picture of a graph, and not only what is in it."""


class Graph:
    """An append-only operator DAG, sealed by the first verb that reads it.

    Args:
        name: what files and timelines call it.
        layout: the rows of the step, where operators or :meth:`split` need it.
    """

    def __init__(self, name: str, layout: Layout | None = None) -> None:
        if layout is not None and not isinstance(layout, Layout):
            raise LayoutError(f"layout={layout!r} of graph {name!r} is no Layout: give nr.Layout(...)")
        self.name = name
        self.layout = layout
        self.nodes: list[Node] = []
        self.roots: list[Value] = []
        self.outputs: dict[str, Value] = {}
        self.sealed = False
        self._names: dict[str, Value | int] = {}
        self._bases: Counter[str] = Counter()
        self._scope: tuple[tuple[str, Any], ...] = ()
        self._edges = Edges(self.roots)
        self._joins: dict[tuple[int, ...], Value] = {}
        self._homes: dict[int, list[Value]] = {}  # the joins that a result is part of

    def __str__(self) -> str:
        kinds = Counter(root.kind for root in self.roots)
        counts = {"node": len(self.nodes), "edge": sum(len(node.preds) for node in self.nodes)}
        counts |= {kind: kinds[kind] for kind in ("input", "constant", "state") if kinds[kind]}
        counts |= {"output": len(self.outputs)}
        return f"Graph {self.name}: {', '.join(f'{n} {kind}' + 's' * (n != 1) for kind, n in counts.items())}"

    __repr__ = __str__

    # What goes in and out.

    def input(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, *, batch: int | None = None, device: str = "device"
    ) -> Value:
        """A tensor given at every run.

        Args:
            name: by which a run is given it.
            shape: of what a run is given.
            dtype: of that.
            batch: the dimension that nano-batches may cut; without it every piece takes the whole.
            device: ``"device"``, or ``"host"`` for what ``ops.to_device`` brings there.

        Raises:
            ShapeError: a size is no whole number, the dtype is none of torch's, or there is no dimension ``batch``.
            DuplicateNameError: the graph has that name already.
            InputDeviceError: there is no such ``device``.
            SealedGraphError: the graph has been scheduled, cut or run.
        """
        return self._root("input", name, shape, dtype, device, batch)

    def constant(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, *, device: str = "device") -> Value:
        """A weight: bound once, shared by all nano-batches. Arguments and errors are those of :meth:`input`."""
        return self._root("constant", name, shape, dtype, device)

    def state(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        *,
        device: str = "device",
        scratch: tuple[int, int] = (0, 0),
    ) -> Value:
        """A tensor that outlives a run and that operators change in place, such as a paged KV cache.

        ``scratch`` are rows of it, the first and the last one left out, which nobody reads for what they hold: there
        several rows of a batch may be written to one place, as those of padding are.
        """
        if scratch != (0, 0) and not 0 <= scratch[0] <= scratch[1] <= (shape[0] if shape else 0):
            raise ShapeError(f"{caller()}: state {name!r} of shape {list(shape)} has no rows scratch={scratch}")
        return self._root("state", name, shape, dtype, device, scratch=scratch)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: str = "device") -> Value:
        """A value without elements, which needs no node to make it."""
        if 0 not in shape:
            raise ShapeError(f"{caller()}: a value of shape {list(shape)} has elements: an operator must make it")
        return self._root("empty", "", shape, dtype, device)

    def output(self, **values: Value) -> None:
        """Names the values that a run returns."""
        for name, value in values.items():
            self._own(value, f"output {name!r}")
            if name in self.outputs:
                raise DuplicateNameError(f"{caller()}: the graph already has an output {name!r}: choose another name")
            self._open()
            self.outputs[name] = value

    @contextmanager
    def scope(self, **labels: Any) -> Iterator[None]:
        """Labels the nodes made inside, for names and timelines: ``with g.scope(layer=0)``."""
        outer = self._scope
        self._scope = (*outer, *labels.items())
        try:
            yield
        finally:
            self._scope = outer

    # Rows.

    def split(self, value: Value) -> tuple[Value, Value]:
        """The decode rows and the prefill rows of ``value``, as views; the layout says where they part."""
        self._own(value, "split")
        if self.layout is None:
            raise LayoutError(
                f"{caller()}: split({value!r}) needs to know the rows: make the graph with layout=nr.Layout(...)"
            )
        decode, rows = self.layout.decode, self.layout.rows
        if not value.shape or value.shape[0] != rows:
            raise ShapeError(f"{caller()}: split({value!r}): the layout has {rows} rows, so dimension 0 must be {rows}")
        return value.narrow(0, 0, decode, "decode"), value.narrow(0, decode, rows, "prefill")

    def join(self, *values: Value) -> Value:
        """The rows of ``values`` one after the other, in one buffer that its parts are written into."""
        for value in values:
            self._own(value, "join")
        if len({(value.shape[1:], value.dtype, value.device) for value in values}) != 1 or not values[0].shape:
            raise ShapeError(
                f"{caller()}: join({', '.join(map(repr, values))}): dtype, device and all but dimension 0 must agree"
            )
        parts = [part for value in values for part in (value.parts or (value,)) if part.shape[0]]
        if not parts:
            return values[0]
        if (adjacent := self._adjacent(parts)) is not None:
            return adjacent
        if len(parts) == 1:
            return parts[0]
        owned = tuple(
            part if fits else self.call(COPY, part) for part, fits in zip(parts, self._joinable(parts), strict=True)
        )
        if (made := self._joins.get(key := tuple(part.index for part in owned))) is not None:
            return made
        shape = (sum(part.shape[0] for part in owned), *owned[0].shape[1:])
        joined = self._root("join", "", shape, owned[0].dtype, owned[0].device, parts=owned)
        self._joins[key] = joined
        for part in owned:
            self._homes.setdefault(part.index, []).append(joined)
        return joined

    def _adjacent(self, parts: list[Value]) -> Value | None:
        """The view that ``parts`` are consecutive rows of, if they are."""
        first = parts[0]
        if any(part.parent is not first.parent or part.parent is None or part.how[1] != 0 for part in parts):
            return None
        if any(part.how[0] == "reshape" for part in parts):
            return None
        if any(a.how[3] != b.how[2] for a, b in pairwise(parts)):
            return None
        parent = first.parent
        assert parent is not None
        return parent.narrow(0, first.how[2], parts[-1].how[3])

    def _joinable(self, parts: list[Value]) -> list[bool]:
        """Which parts can live in the join's buffer: fresh results, at home nowhere but in nested joins."""
        fits = [part.kind == "node" and part.index not in self._edges.changed for part in parts]
        while True:  # a copy in place of one part may leave the others in a join that is no longer nested
            indices = [part.index if fit else -1 for part, fit in zip(parts, fits, strict=True)]
            still = [
                index >= 0
                and indices.count(index) == 1
                and all(_nested([part.index for part in home.parts], indices) for home in self._homes.get(index, ()))
                for index in indices
            ]
            if still == fits:
                return fits
            fits = still

    # Calls.

    def call(
        self,
        function: Callable[..., Any],
        *args: Any,
        demand: Demand | Callable[..., Demand] | None = None,
        name: str | None = None,
        axes: str = "infer",
        example: Any = None,
        sms: tuple[int, int] | None = None,
        stream: str | None = None,
        after: Value | str | tuple[Value | str, ...] = (),
        **static: Any,
    ) -> Any:
        """A node that calls ``function`` (an operator, or any torch function with ``demand=`` declared here).

        Args:
            function: an Op, or any torch function.
            *args: Values and literals.
            demand: what it asks for, in place of the operator's own.
            name: the node's, in place of the operator's.
            axes: how the batch flows through a function that is no operator (see nr.Op).
            example: arguments on which nano_batch may try such a function.
            sms: for experts: the SMs it may hold.
            stream: for experts: the stream it must run on.
            after: values or node names that must be done before, where no data says so.
            **static: what is not positional.

        Returns:
            A Value, a tuple of Values, or None, as the reference returns.
        """
        where = caller()
        after = after if isinstance(after, tuple) else (after,)
        if isinstance(function, Op):
            op = function if demand is None else replace(function, demand=demand)
        elif demand is None:
            raise DemandError(
                f"{where}: g.call({getattr(function, '__name__', function)}) has no demand: give demand=nr.Demand(...)"
            )
        else:
            op = make_op(function, demand=demand, axes=axes, example=example)
        return self.apply(op, args, static, name=name, where=where, sms=sms, stream=stream, after=after)

    def apply(
        self,
        op: Op,
        args: tuple[Any, ...],
        static: dict[str, Any],
        *,
        name: str | None = None,
        where: str = "",
        sms: tuple[int, int] | None = None,
        stream: str | None = None,
        after: tuple[Value | str, ...] = (),
        demand: Demand | None = None,
        scope: tuple[tuple[str, Any], ...] | None = None,
        origin: str = "",
        piece: int = 0,
    ) -> Any:
        """What :meth:`call` and the passes build on: one node with its demand and edges.

        With ``origin=`` the name is taken as it is.
        """
        self._open()
        for position, argument in enumerate(args):
            if isinstance(argument, Value):
                self._own(argument, f"argument {position} of {op.name}")
        if any(isinstance(argument, torch.Tensor) for argument in args):
            raise GraphError(f"{where}: {op.name} was given a tensor: declare it with g.input, g.constant or g.state")
        if misplaced := [key for key, argument in static.items() if isinstance(argument, Value)]:
            raise GraphError(f"{where}: {op.name} takes tensors by position, {misplaced} came by keyword")
        if op.takes_layout and static.get("layout") is None:
            static = {**static, "layout": self.layout}
        if sms is not None:
            try:
                Demand(sms=sms)
            except DemandError as error:
                raise DemandError(f"{where}: {op.name}: {error}") from None
        specs, found, single = infer(op, args, static, where)
        demand = demand or found
        read = [value for k, value in enumerate(args) if isinstance(value, Value) and k not in op.writes]
        missing = all if op.writes else any  # what changes a state may do so by any argument that has elements
        if read and missing(0 in value.shape for value in read) and all(0 in shape for shape, _ in specs):
            outputs = tuple(self._root("empty", "", shape, dtype, op.to or "device") for shape, dtype in specs)
            return outputs[0] if single else outputs or None
        index, scope = len(self.nodes), self._scope if scope is None else scope
        reads, writes = self._accesses(op, args, static, where)
        pinned = {other for pin in after for other in self._pinned(pin, where)}
        called = self._claim(name or op.name, () if origin else scope, where if name and not origin else "")
        self._names[called] = index  # from here on nothing is refused
        outputs = tuple(
            self._root("node", called if single else f"{called}:{k}", shape, dtype, op.to or "device", node=index)
            for k, (shape, dtype) in enumerate(specs)
        )
        preds = self._edges.derive(index, reads, writes, pinned)
        node = Node(
            index, called, op, args, static, outputs, demand, reads, writes, preds, scope, where, origin or called,
            piece, sms, stream,
        )  # fmt: skip  # positional on purpose: 100,000 of these are made
        self.nodes.append(node)
        return outputs[0] if single else outputs or None

    def _accesses(
        self, op: Op, args: tuple[Any, ...], static: dict[str, Any], where: str
    ) -> tuple[tuple[Access, ...], tuple[Access, ...]]:
        reads, writes = [], []
        for position, value in enumerate(args):
            if not isinstance(value, Value):
                continue
            region = value.region
            if (rule := op.cells.get(position)) is not None:
                layout = static.get("layout") or self.layout
                if layout is None:
                    raise LayoutError(f"{where}: {op.name} needs a layout: make the graph with layout=nr.Layout(...)")
                region = Region(cells=rule(layout, **{k: v for k, v in static.items() if k != "layout"}))
            if position in op.writes:
                root = value.root
                if root.kind not in ("state", "node"):
                    raise GraphError(
                        f"{where}: {op.name} changes {value!r} in place, which is {root.kind}: only states and results "
                        f"of operators can be changed"
                    )
                if root.index in self._homes:
                    raise GraphError(
                        f"{where}: {op.name} changes {value!r}, a part of a join, in place: change it before"
                    )
                writes.append(Access(root.index, region))
            else:
                reads.append(Access(value.index, region))
        return tuple(reads), tuple(writes)

    def _pinned(self, pin: Value | str, where: str) -> Iterator[int]:
        if isinstance(pin, Value):
            self._own(pin, "after=")
            yield from {part.node for part in (pin.root.parts or (pin.root,)) if part.node >= 0}
        elif isinstance(found := self._names.get(pin), int):
            yield found
        else:
            raise GraphError(f"{where}: after={pin!r} names no node of graph {self.name!r} made so far")

    def eager(self, threads: int = 1, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """The outputs by running every reference in order on ``threads`` threads; states are changed in place.

        Raises:
            MissingInputError, UnknownInputError, InputShapeError, InputDtypeError, InputDeviceError
        """
        self.seal()
        return run_in_order(self, bind(self, tensors), threads)

    # Identity.

    def seal(self) -> Graph:
        """Closes the graph; verbs call it."""
        self.sealed = True
        return self

    @property
    def fingerprint(self) -> str:
        """A digest of the operators, shapes, arguments and layout: equal graphs have equal ones, in every process."""
        digest = hashlib.sha256(f"{self.name}|{self.layout!r}".encode())
        for root in self.roots:
            parts = ",".join(str(part.index) for part in root.parts)
            digest.update(
                f"|{root.kind} {root.name} {root.shape} {root.dtype} {root.batch} {root.device} {parts}".encode()
            )
        for node in self.nodes:
            args = ",".join(identity(argument) for argument in node.args)
            static = ",".join(f"{key}={identity(argument)}" for key, argument in node.static.items())
            called = f"{node.op.name} {identity(node.op.reference)}({args};{static})"
            pins = f"{astuple(node.demand)} {node.preds} {node.span} {node.stream}"
            digest.update(f"|{node.name} {called} {pins}".encode())
        digest.update(repr([(name, identity(value)) for name, value in self.outputs.items()]).encode())
        return digest.hexdigest()

    def to_networkx(self) -> Any:
        """The DAG as a networkx.DiGraph: nodes are names with ``op`` and ``demand``, edges carry ``reason``."""
        import networkx

        digraph = networkx.DiGraph(name=self.name)
        for node in self.nodes:
            digraph.add_node(node.name, op=node.op.name, demand=node.demand)
            digraph.add_edges_from(
                (self.nodes[pred].name, node.name, {"reason": reason}) for pred, reason in node.preds
            )
        return digraph

    # Pictures.

    def save_svg(self, path: str | os.PathLike[str], device: Device | None = None) -> None:
        """Writes a picture of a small DAG: rows from top to bottom, coloured by what binds each node on ``device``.

        The device is this machine's where none is given. A node's demand and source line show under the mouse.

        Raises:
            GraphError: it has more nodes than a person can read, 2,000.
        """
        picture = drawing.svg(self, device or Device.current())
        with draft(path) as beside:
            beside.write_text(picture, encoding="utf-8")

    def _repr_html_(self) -> str:
        try:
            device = Device.current() if len(self.nodes) <= DRAWN else None
        except DeviceError:  # a GPU that the database does not know
            device = None
        return drawing.svg(self, device) if device else f"<pre>{drawing.escaped(str(self))}</pre>"

    # Book-keeping.

    def _root(
        self,
        kind: str,
        name: str,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: str,
        batch: int | None = None,
        parts: tuple[Value, ...] = (),
        node: int = -1,
        scratch: tuple[int, int] = (0, 0),
    ) -> Value:
        self._open()
        index = len(self.roots)
        if kind in ("input", "constant", "state"):
            if name in self._names:
                raise DuplicateNameError(f"{caller()}: graph {self.name!r} already has a {name!r}: names are used once")
            if device not in ("device", "host"):
                raise InputDeviceError(f"{caller()}: {kind} {name!r}: device={device!r} must be 'device' or 'host'")
            if not isinstance(dtype, torch.dtype):
                raise ShapeError(f"{caller()}: {kind} {name!r}: dtype={dtype!r} is none of torch's: give torch.float32")
            if not isinstance(shape, (tuple, list)):
                raise ShapeError(f"{caller()}: {kind} {name!r}: shape={shape!r} is no tuple of sizes")
            if any(not isinstance(size, int) or size < 0 for size in shape):
                raise ShapeError(
                    f"{caller()}: {kind} {name!r}: sizes are whole numbers, zero or more, got {list(shape)}"
                )
            if batch is not None and not 0 <= batch < len(shape):
                raise ShapeError(
                    f"{caller()}: {kind} {name!r} has no dimension batch={batch}: its shape is {list(shape)}"
                )
        value = Value(
            self, name or f"{kind}{index}", tuple(shape), dtype, kind, index, device, batch, node, parts,
            scratch=scratch,
        )  # fmt: skip  # the fields in their order
        if kind in ("input", "constant", "state"):
            self._names[name] = value
        self.roots.append(value)
        return value

    def _claim(self, name: str, scope: tuple[tuple[str, Any], ...], where: str) -> str:
        """The scope's labels and the name, with a number where that repeats; refused if ``where`` says who gave it."""
        base = ".".join([*(f"{key}{label}" for key, label in scope), name])
        if base not in self._names:
            return base
        if where:
            raise DuplicateNameError(f"{where}: graph {self.name!r} already has a {base!r}: names are used once")
        while True:
            self._bases[base] += 1
            if (numbered := f"{base}.{self._bases[base]}") not in self._names:
                return numbered

    def _own(self, value: Any, what: str) -> None:
        if not isinstance(value, Value):
            raise GraphError(f"{caller()}: {what} of graph {self.name!r} must be a Value, got {type(value).__name__}")
        if value.graph is not self:
            other = f"graph {value.graph.name!r}" if value.graph.name != self.name else "another graph of that name"
            raise ForeignValueError(f"{caller()}: {what}: {value!r} belongs to {other}, not to {self.name!r}: use one")

    def _open(self) -> None:
        if self.sealed:
            raise SealedGraphError(
                f"{caller()}: graph {self.name!r} was already scheduled, cut or run: build a new one"
            )


def _nested(one: list[int], other: list[int]) -> bool:
    """Whether one list is a run of consecutive items of the other."""
    short, long = sorted((one, other), key=len)
    return any(long[at : at + len(short)] == short for at in range(len(long) - len(short) + 1))


COPY = make_op(
    torch.clone,
    name="copy",
    demand=lambda x, out: Demand(hbm_bytes=x.nbytes + out.nbytes),
    axes="rows",
    example=(torch.arange(12.0).reshape(6, 2),),
)
