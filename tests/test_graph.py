from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import networkx
import pytest
import torch

import nanort as nr
from nanort.eager import materialise
from nanort.errors import (
    DemandError,
    DuplicateNameError,
    ExecutionError,
    ForeignValueError,
    GraphError,
    InputDeviceError,
    InputDtypeError,
    InputShapeError,
    LayoutError,
    MissingInputError,
    SealedGraphError,
    ShapeError,
    UnknownInputError,
)
from nanort.graphs import synthetic
from nanort.nodes import identity

F32 = torch.float32
FREE = nr.Demand()


@nr.op(demand=FREE)
def total(*values: torch.Tensor, rows: int = 2) -> torch.Tensor:
    """Reads all of its arguments, whatever their shapes."""
    return torch.stack([value.sum() for value in values]).sum().expand(rows, 3).clone()


@nr.op(demand=FREE, writes=("target",))
def change(target: torch.Tensor, source: torch.Tensor) -> None:
    """Reads and changes ``target``."""
    target.mul_(3).add_(source.sum())


@nr.op(demand=FREE, axes="rows")
def double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


@nr.op(demand=FREE, writes=("kv",), cells={"kv": lambda layout, **_: layout.own_cells}, axes="rows")
def append(kv: torch.Tensor, rows: torch.Tensor, *, layout: nr.Layout | None = None) -> None:
    """Stands for an append to a paged cache."""


@nr.op(demand=FREE, cells={"kv": lambda layout, **_: layout.prefill_cells}, axes="rows")
def attend(q: torch.Tensor, kv: torch.Tensor, *, layout: nr.Layout | None = None) -> torch.Tensor:
    """Stands for attention of prefill rows."""
    return q.clone()


@nr.op(demand=FREE, writes=("kv",), cells={"kv": lambda layout, **_: layout.elsewhere}, axes="whole")
def load(kv: torch.Tensor, rows: torch.Tensor, *, layout: nr.Layout | None = None) -> None:
    """Stands for pages that arrive for requests to come."""


def where() -> str:
    """How an error speaks of the line that is two below the caller's."""
    return f"test_graph.py:{sys._getframe(1).f_lineno + 2}: "


def preds(graph: nr.Graph, name: str) -> set[str]:
    node = next(node for node in graph.nodes if node.name == name)
    return {graph.nodes[pred].name for pred, _ in node.preds}


# Edges, against what element-wise overlap says of random programs.


class Program:
    """A random graph of views, joins and changes in place, by ``seed``."""

    def __init__(self, seed: int, reshapes: bool) -> None:
        self.rng = random.Random(seed)
        self.reshapes = reshapes
        self.graph = nr.Graph("program")
        rows = [self.rng.randint(2, 6) for _ in range(3)]
        self.states = [self.graph.state(f"s{k}", (size, 3), F32) for k, size in enumerate(rows)]
        self.values = [self.graph.input("x", (4, 3), F32), *self.states]
        for _ in range(self.rng.randint(4, 24)):
            self.rng.choice((self.read, self.read, self.change, self.change, self.join))()
        self.graph.output(last=self.values[-1])

    def view(self, value: nr.Value) -> nr.Value:
        for _ in range(self.rng.randint(0, 3)):
            if self.reshapes and self.rng.random() < 0.4:
                value = self.reshaped(value)
            dim = self.rng.randrange(len(value.shape))
            start = self.rng.randrange(value.shape[dim])
            value = value.narrow(dim, start, self.rng.randint(start + 1, value.shape[dim]))
        return value

    def reshaped(self, value: nr.Value) -> nr.Value:
        *lead, rows, columns = 1, 1, *value.shape
        shapes = [(*lead, columns, rows), (*lead, rows, 1, columns), (-1,), (rows, -1, 1)]
        try:
            return value.reshape(*self.rng.choice(shapes))
        except ShapeError:  # only a copy could: that is for test_views_show_what_torch_shows
            return value

    def read(self) -> None:
        chosen = [self.view(self.rng.choice(self.values)) for _ in range(self.rng.randint(1, 3))]
        self.values.append(total(*chosen, rows=self.rng.randint(1, 4)))

    def change(self) -> None:
        made = [node.outputs[0] for node in self.graph.nodes if node.outputs and node.outputs[0].dtype is F32]
        homes = {part.index for value in self.graph.roots for part in value.parts}
        target = self.rng.choice([*self.states, *(value for value in made if value.index not in homes)])
        change(self.view(target), self.view(self.rng.choice(self.values)))

    def join(self) -> None:
        flat = [value for value in self.values if len(value.shape) == 2]
        self.values.append(self.graph.join(*(self.rng.choice(flat)[: self.rng.randint(1, 3)] for _ in range(2))))


def touched(graph: nr.Graph) -> list[tuple[set[int], set[int]]]:
    """The elements that every node reads and writes, each a number of its own, by indexing tensors of numbers."""
    env, first = {}, 0
    for root in graph.roots:
        if root.kind != "join":
            env[root.index] = torch.arange(first, first + root.nbytes // 4).view(root.shape)
            first += env[root.index].numel()
    found = []
    for node in graph.nodes:
        elements = [set(materialise(value, env).flatten().tolist()) for value in node.args]
        written = [elements[position] for position in node.op.writes]
        made = [set(env[value.index].flatten().tolist()) for value in node.outputs]
        found.append((set().union(*elements), set().union(*written, *made)))
    return found


@pytest.mark.parametrize("reshapes", [False, True])
def test_every_conflict_is_ordered_and_nothing_else_is(reshapes: bool) -> None:
    changed = ordered = 0
    for seed in range(250):
        graph = Program(seed, reshapes).graph
        elements = touched(graph)
        before: list[set[int]] = []
        for late, node in enumerate(graph.nodes):
            direct = {pred for pred, _ in node.preds}
            before.append(direct.union(*(before[pred] for pred in direct)))
            reads, writes = elements[late]
            conflicts = {
                early
                for early, (read, written) in enumerate(elements[:late])
                if written & (reads | writes) or read & writes
            }
            assert conflicts <= before[late], (seed, node)
            if not reshapes:  # a slice of a reshaped value may count as all that was reshaped
                assert direct <= conflicts, (seed, node)
            ordered += len(direct)
        changed += sum(bool(node.op.writes) for node in graph.nodes)
    assert changed > 500
    assert ordered > 1000


def test_slices_depend_on_each_other_only_where_they_meet() -> None:
    g = nr.Graph("slices")
    x, kv = g.input("x", (2, 3), F32), g.state("kv", (8, 4), F32)
    change(kv[:4], x)
    change(kv[4:, :2], x)
    total(kv[2:6, 2:])
    total(kv[4:])
    change(kv, x)
    assert [node.preds for node in g.nodes] == [
        (), (), ((0, "state"),), ((1, "state"),), ((0, "state"), (1, "state"), (2, "state"), (3, "state")),
    ]  # fmt: skip


def test_a_slice_of_a_join_depends_on_the_parts_it_meets() -> None:
    g = nr.Graph("joins")
    x = g.input("x", (6, 3), F32)
    joined = g.join(double(x[:2]), double(x[2:4]), double(x[4:]))
    total(joined[1:3])
    total(joined[2:4])
    total(joined)
    assert [[pred for pred, _ in node.preds] for node in g.nodes[3:]] == [[0, 1], [1], [0, 1, 2]]


def test_after_orders_what_no_data_does() -> None:
    g = nr.Graph("after")
    x = g.input("x", (2, 3), F32)
    first = double(x)
    g.call(double, x, after=(first,))
    g.call(double, x, after=("double", "double.1", x))
    assert [node.preds for node in g.nodes] == [(), ((0, "after"),), ((0, "after"), (1, "after"))]


# State through an index.


def paged(order: list[tuple[str, int]], layout: nr.Layout, sizes: list[int]) -> nr.Graph:
    """Appends and attention of the pieces of ``layout``, in this order."""
    pieces = layout.cut(sizes)
    g = nr.Graph("paged", layout)
    kv, x = g.state("kv", (8, 3), F32), g.input("x", (layout.rows, 3), F32)
    for what, k in order:
        piece = pieces[k]
        rows = x[piece.start : piece.start + piece.rows]
        if what == "append":
            g.call(append, kv, rows, layout=piece, name=f"append{k}")
        else:
            g.call(attend, rows[piece.decode :], kv, layout=piece, name=f"attend{k}")
    return g


def test_a_prefill_piece_waits_for_the_append_it_continues_and_nothing_else() -> None:
    layout = nr.Layout(prefill=(nr.Segment(6), nr.Segment(2)))
    g = paged([("append", 0), ("append", 1), ("append", 2), *(("attend", k) for k in range(3))], layout, [4, 2, 2])
    assert [preds(g, f"attend{k}") for k in range(3)] == [{"append0"}, {"append0", "append1"}, {"append2"}]
    assert [preds(g, f"append{k}") for k in range(3)] == [set(), set(), set()]


def test_an_append_of_rows_yet_to_come_is_not_held_up_by_attention() -> None:
    layout = nr.Layout(prefill=(nr.Segment(4, past=3),))
    g = paged([("append", 0), ("attend", 0), ("append", 1), ("attend", 1)], layout, [2, 2])
    assert preds(g, "append1") == set()
    assert preds(g, "attend1") == {"append0", "append1"}


def test_pages_of_requests_to_come_hold_up_nobody() -> None:
    g = paged([("append", 0), ("attend", 0)], nr.Layout(prefill=4), [4])
    kv, x = g.roots[:2]
    load(kv, x, name="load0")
    load(kv, x, name="load1")
    g.call(total, kv, name="read")
    assert preds(g, "load0") == set()
    assert preds(g, "load1") == {"load0"}
    assert preds(g, "read") == {"append0", "load1"}, "who reads all of it does wait"


# Views.


def same(value: nr.Value, tensor: torch.Tensor, root: torch.Tensor) -> None:
    place = value.placement
    assert tuple(tensor.shape) == value.shape
    assert torch.equal(materialise(value, {value.root.index: root}), tensor)
    assert torch.equal(root.as_strided(value.shape, place.strides, place.offset), tensor)
    box = root[tuple(slice(low, high) for low, high in place.box)]
    assert set(tensor.flatten().tolist()) <= set(box.flatten().tolist()), "the box covers what the view shows"


def test_views_show_what_torch_shows() -> None:
    made = refused = 0
    for seed in range(400):
        rng = random.Random(seed)
        g = nr.Graph("views")
        shape = tuple(rng.randint(1, 6) for _ in range(rng.randint(1, 4)))
        value = g.input("x", shape, F32)
        root = tensor = torch.arange(value.nbytes // 4, dtype=F32).view(shape)
        for _ in range(rng.randint(1, 5)):
            if rng.random() < 0.5:
                parts = tuple(
                    slice(rng.randint(-size, size // 2), rng.choice((size, -1, None))) for size in value.shape
                )
                if 0 in tensor[parts].shape:
                    continue
                value, tensor = value[parts], tensor[parts]
            else:
                sizes = list(value.shape)
                if rng.random() < 0.3:
                    rng.shuffle(sizes)
                at = rng.randrange(len(sizes))
                sizes[at : at + 2] = rng.choice(([-1], [-1, 1], [1, -1]))
                try:
                    tensor = tensor.view(sizes)
                except RuntimeError:
                    with pytest.raises(ShapeError, match="without a copy"):
                        value.reshape(*sizes)
                    refused += 1
                else:
                    value = value.reshape(*sizes)
            same(value, tensor, root)
            made += 1
    assert made > 500
    assert refused > 20


def test_split_and_join_are_views_of_what_they_part() -> None:
    g = nr.Graph("rows", nr.Layout(decode=2, prefill=3))
    x = g.input("x", (5, 3), F32)
    decode, prefill = g.split(x)
    assert (decode.shape, prefill.shape) == ((2, 3), (3, 3))
    assert g.join(decode, prefill) is x
    assert g.join(x[1:2], x[2:4]).placement == x[1:4].placement
    assert not g.nodes, "views are no copies"


def test_joining_results_copies_only_what_lives_elsewhere() -> None:
    g = nr.Graph("join")
    x = g.input("x", (2, 3), F32)
    a, b = double(x), double(x)
    first = g.join(a, b)
    assert first.parts == (a, b)
    assert g.join(g.join(a, b), double(x)).parts[:2] == (a, b), "a longer join holds the shorter"
    assert [node.op.name for node in g.nodes] == ["double"] * 3
    twisted = g.join(b, a)
    assert [node.op.name for node in g.nodes[3:]] == ["copy", "copy"]
    g.output(first=first, twisted=twisted, input=g.join(x, x))
    out = g.eager(x=torch.arange(6.0).view(2, 3))
    rows = torch.arange(6.0).view(2, 3)
    assert torch.equal(out["first"], torch.cat([2 * rows, 2 * rows]))
    assert torch.equal(out["twisted"], out["first"])
    assert torch.equal(out["input"], torch.cat([rows, rows]))


def test_a_part_of_a_join_cannot_be_changed_in_place() -> None:
    g = nr.Graph("join")
    x = g.input("x", (2, 3), F32)
    a = double(x)
    g.join(a, double(x))
    with pytest.raises(GraphError, match="a part of a join"):
        change(a, x)


@pytest.mark.parametrize("index", [0, slice(None, None, 2), (slice(None), slice(None), slice(None)), None], ids=str)
def test_what_is_no_view_is_refused(index: object) -> None:
    x = nr.Graph("g").input("x", (4, 3), F32)
    with pytest.raises(ShapeError):
        x[index]


def test_a_value_is_not_unpacked_by_accident() -> None:
    x = nr.Graph("g").input("x", (2, 3), F32)
    with pytest.raises(ShapeError, match="one value, not several"):
        _, _ = double(x)


# What is refused, and what the error says.


def test_value_of_another_graph() -> None:
    a, b = nr.Graph("a"), nr.Graph("b")
    x, y = a.input("x", (2, 3), F32), b.input("y", (2, 3), F32)
    with pytest.raises(ForeignValueError, match=r"total: y: float32\[2, 3\] belongs to graph 'b', not to 'a'"):
        total(x, y)
    for use in (lambda: a.output(y=y), lambda: a.join(x, y), lambda: a.call(double, x, after=(y,))):
        with pytest.raises(ForeignValueError):
            use()


def test_shapes_that_the_reference_refuses() -> None:
    g = nr.Graph("g")
    x, w = g.input("x", (2, 3), F32), g.constant("w", (4, 5), F32)
    here = where()
    with pytest.raises(ShapeError, match=r"matmul\(x: float32\[2, 3\], w: float32\[4, 5\]\) is refused") as caught:
        g.call(torch.matmul, x, w, demand=FREE)
    assert here in str(caught.value)
    assert not g.nodes, "what is refused leaves nothing behind"


def test_name_used_twice() -> None:
    g = nr.Graph("g")
    x = g.input("x", (2, 3), F32)
    for make in (g.input, g.constant, g.state):
        with pytest.raises(DuplicateNameError, match="already has a 'x'"):
            make("x", (1,), F32)
    g.call(double, x, name="twice")
    here = where()
    with pytest.raises(DuplicateNameError, match="already has a 'twice'") as caught:
        g.call(double, x, name="twice")
    assert here in str(caught.value)
    with pytest.raises(DuplicateNameError):
        double(x, name="x")
    g.output(y=x)
    with pytest.raises(DuplicateNameError, match="output 'y'"):
        g.output(y=x)


def test_operators_called_again_get_numbers_and_scopes() -> None:
    g = nr.Graph("g")
    x = g.input("x", (2, 3), F32)
    double(x)
    double(x)
    with g.scope(layer=0), g.scope(part="a"):
        double(x)
        double(x, name="named")
    assert [node.name for node in g.nodes] == ["double", "double.1", "layer0.parta.double", "layer0.parta.named"]
    assert g.nodes[2].scope == (("layer", 0), ("part", "a"))
    assert g.nodes[0].where.startswith("test_graph.py:") or g.nodes[0].where.startswith("tests/test_graph.py:")


@pytest.mark.parametrize("name", ["flops", "hbm_bytes", "h2d_bytes", "d2h_bytes", "net_bytes"])
@pytest.mark.parametrize("figure", [float("nan"), float("inf"), -1.0, "2", True])
def test_a_demand_that_cannot_be(name: str, figure: object) -> None:
    with pytest.raises(DemandError, match=f"^{name}="):
        nr.Demand(**{name: figure})


@pytest.mark.parametrize("sms", [(-1, 2), (4, 2), (0, 3), 8, (1, 2, 3)], ids=str)
def test_sms_that_are_no_range(sms: object) -> None:
    with pytest.raises(DemandError, match=r"^sms="):
        nr.Demand(sms=sms)


def test_a_demand_function_that_goes_wrong_names_operator_and_line() -> None:
    bad = nr.op(demand=lambda x, out: nr.Demand(flops=-x.numel()), name="bad")(torch.clone)
    nothing = nr.op(demand=lambda x, out: 3.0, name="nothing")(torch.clone)
    x = nr.Graph("g").input("x", (2, 3), F32)
    for op, message in ((bad, "bad: flops=-6"), (nothing, "nothing returned 3.0")):
        here = where()
        with pytest.raises(DemandError, match=message) as caught:
            op(x)
        assert here in str(caught.value)


def test_a_function_without_demand() -> None:
    g = nr.Graph("g")
    with pytest.raises(DemandError, match=r"g.call\(relu\) has no demand"):
        g.call(torch.relu, g.input("x", (2, 3), F32))


def sealing(graph: nr.Graph) -> list[Callable[[], object]]:
    x = graph.roots[0]
    return [
        lambda: graph.input("z", (1,), F32),
        lambda: graph.constant("z", (1,), F32),
        lambda: graph.state("z", (1,), F32),
        lambda: graph.output(z=x),
        lambda: double(x),
        lambda: graph.call(torch.relu, x, demand=FREE),
    ]


@pytest.mark.parametrize("change", range(6))
def test_sealed_graph(change: int) -> None:
    g = nr.Graph("g")
    x = g.input("x", (2, 3), F32, batch=0)
    g.output(y=double(x))
    g.eager(x=torch.ones(2, 3))
    before = g.fingerprint
    with pytest.raises(SealedGraphError, match="graph 'g' was already"):
        sealing(g)[change]()
    assert g.fingerprint == before


def test_tensor_by_keyword() -> None:
    g = nr.Graph("g")
    x, w = g.input("x", (2, 3), F32), g.constant("w", (3, 3), F32)
    here = where()
    with pytest.raises(GraphError, match=r"matmul takes tensors by position, \['other'\] came by keyword") as caught:
        g.call(torch.matmul, x, demand=FREE, other=w)
    assert here in str(caught.value)


def test_changing_an_input_or_constant_in_place() -> None:
    g = nr.Graph("g")
    x, w = g.input("x", (2, 3), F32), g.constant("w", (2, 3), F32)
    for value, kind in ((x, "input"), (w[1:], "constant")):
        here = where()
        with pytest.raises(GraphError, match=f"in place, which is {kind}") as caught:
            change(value, x)
        assert here in str(caught.value)


def test_rows_without_a_layout_or_of_another() -> None:
    bare, g = nr.Graph("bare"), nr.Graph("g", nr.Layout(decode=1, prefill=3))
    x = bare.input("x", (4, 3), F32)
    with pytest.raises(LayoutError, match=r"layout=nr\.Layout"):
        bare.split(x)
    with pytest.raises(LayoutError, match="append needs a layout"):
        append(bare.state("kv", (4, 3), F32), x)
    with pytest.raises(ShapeError, match="the layout has 4 rows"):
        g.split(g.input("x", (5, 3), F32))
    with pytest.raises(ShapeError, match="all but dimension 0 must agree"):
        bare.join(x, bare.input("y", (4, 2), F32))


def test_inputs_that_cannot_be() -> None:
    g = nr.Graph("g")
    with pytest.raises(ShapeError, match="no dimension batch=2"):
        g.input("x", (4, 3), F32, batch=2)
    with pytest.raises(ShapeError, match="zero or more"):
        g.input("x", (4, -3), F32)
    with pytest.raises(InputDeviceError, match="'device' or 'host'"):
        g.input("x", (4, 3), F32, device="cuda")
    assert not g.roots, "what is refused leaves nothing behind"
    with pytest.raises(GraphError, match="names no node"):
        g.call(double, g.input("x", (4, 3), F32), after=("later",))


# Eager runs.


def squares() -> nr.Graph:
    g = nr.Graph("squares")
    x, s = g.input("x", (2, 3), F32), g.state("s", (4, 3), F32, device="host")
    change(s[1:3], x)
    g.output(y=total(x, s[:2]), s=s[1:3])
    return g


def test_eager_runs_the_references_and_changes_states_in_place() -> None:
    x, s = torch.arange(6.0).view(2, 3), torch.ones(4, 3)
    out = squares().eager(x=x, s=s)
    assert torch.equal(s, torch.tensor([1.0, 18.0, 18.0, 1.0])[:, None].expand(4, 3))
    assert torch.equal(out["y"], torch.full((2, 3), 15.0 + 3 + 54))
    assert torch.equal(out["s"], s[1:3])


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"s": None}, MissingInputError, r"\['s'\]; given were \['x'\]"),
        ({"z": torch.ones(1)}, UnknownInputError, r"no input or constant or state \['z'\]: it has \['x', 's'\]"),
        ({"x": torch.ones(3, 2)}, InputShapeError, r"x: float32\[2, 3\] was given a tensor of shape \[3, 2\]"),
        ({"x": torch.ones(2, 3, dtype=torch.float64)}, InputDtypeError, r"convert it with .to\(torch.float32\)"),
        ({"x": [[1.0]]}, InputDtypeError, "was given a list"),
        ({"x": torch.ones(2, 3, device="meta")}, InputDeviceError, "a device with memory"),
        ({"s": torch.ones(4, 3, device="meta")}, InputDeviceError, "must be on cpu, its tensor is on meta"),
    ],
)
def test_eager_checks_what_it_is_given(wrong: dict[str, object], error: type[Exception], message: str) -> None:
    given = {"x": torch.ones(2, 3), "s": torch.ones(4, 3), **wrong}
    with pytest.raises(error, match=message):
        squares().eager(**{name: tensor for name, tensor in given.items() if tensor is not None})


def test_a_reference_that_fails_is_named_and_chained() -> None:
    def picky(x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "meta":
            raise ValueError("no thanks")
        return x.clone()

    g = nr.Graph("g")
    g.output(y=g.call(picky, g.input("x", (2, 3), F32), demand=FREE))
    with pytest.raises(ExecutionError, match=r"node picky \(.*test_graph.py:\d+\) failed: no thanks") as caught:
        g.eager(x=torch.ones(2, 3))
    assert caught.value.node == "picky"
    assert isinstance(caught.value.__cause__, ValueError)


def test_no_node_is_made_for_no_rows() -> None:
    g = nr.Graph("g", nr.Layout(prefill=4))
    x = g.input("x", (4, 3), F32)
    decode, prefill = g.split(x)
    joined = g.join(double(decode), double(prefill))
    assert [node.name for node in g.nodes] == ["double"]
    g.output(y=joined, none=double(decode))
    rows = torch.arange(12.0).view(4, 3)
    out = g.eager(x=rows)
    assert torch.equal(out["y"], 2 * rows)
    assert out["none"].shape == (0, 3)


# Identity.


def fingerprinted(**other: Any) -> nr.Graph:
    """A graph with one of everything, in which ``other`` changes something."""
    default = {
        "name": "g", "decode": 1, "shape": (2, 3), "dtype": F32, "batch": 0, "device": "device", "at": 1, "static": 2,
        "op": torch.square, "demand": nr.Demand(flops=1.0), "sms": None, "after": (), "called": "mine", "out": "y",
    }  # fmt: skip
    c = SimpleNamespace(**default | other)
    g = nr.Graph(c.name, nr.Layout(decode=c.decode, prefill=2))
    x = g.input("x", c.shape, c.dtype, batch=c.batch, device=c.device)
    s = g.state("s", (4, 3), F32)
    first = double(x)
    change(s[c.at :], x)
    made = g.call(c.op, x, demand=c.demand, sms=c.sms, after=c.after, name=c.called)
    last = total(made, s[:1], rows=c.static)
    g.output(**{c.out: last, "first": first})
    return g


CHANGES: list[dict[str, Any]] = [
    {"name": "h"}, {"decode": 2}, {"shape": (2, 4)}, {"dtype": torch.float64}, {"batch": 1}, {"device": "host"},
    {"at": 2}, {"demand": nr.Demand(flops=2.0)}, {"static": 3}, {"sms": (8, 16)},
    {"after": ("double",)}, {"called": "yours"},
    {"op": torch.abs}, {"out": "z"},
]  # fmt: skip


def test_fingerprints_differ_when_anything_does() -> None:
    digests = [fingerprinted(**change).fingerprint for change in [{}, *CHANGES]]
    assert len(set(digests)) == len(digests)
    assert fingerprinted().fingerprint == digests[0]


def test_fingerprints_are_equal_in_every_process() -> None:
    code = "from nanort.graphs import synthetic; print(synthetic.random_dag(5, 60).fingerprint)"
    environment = os.environ | {"PYTHONHASHSEED": "123"}  # sets and dicts of another order, if any were looked at
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert run.stdout.strip() == synthetic.random_dag(5, 60).fingerprint


def test_graphs_print_and_become_networkx() -> None:
    g = squares()
    assert str(g) == "Graph squares: 2 nodes, 1 edge, 1 input, 1 state, 2 outputs"
    assert str(g.nodes[1]) == "total = total(x: float32[2, 3], s: float32[2, 3]) -> total: float32[2, 3]"
    digraph = g.to_networkx()
    assert networkx.is_directed_acyclic_graph(digraph)
    assert list(digraph.edges(data="reason")) == [("change", "total", "state")]


def test_equal_literals_of_other_types_are_other_calls() -> None:
    g = nr.Graph("g")
    x = g.input("x", (3,), torch.int32)
    whole, real = (g.call(torch.mul, x, by, demand=nr.Demand(flops=3)) for by in (2, 2.0))
    assert (whole.dtype, real.dtype) == (torch.int32, torch.float32)


def test_what_changes_a_state_is_kept_where_one_argument_is_empty() -> None:
    @nr.op(demand=nr.Demand(flops=1), writes=("state",))
    def bump(state: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
        state += a.sum() + b.sum()

    g = nr.Graph("g")
    bump(g.state("s", (1,), torch.float32), g.input("a", (3,), torch.float32), g.input("b", (0,), torch.float32))
    assert len(g.nodes) == 1


@pytest.mark.parametrize("sms", [(64, 8), (-5, -1), 64])
def test_pins_that_are_no_range_of_sms_are_refused(sms: Any) -> None:
    g = nr.Graph("g")
    with pytest.raises(DemandError, match=r"test_graph.py:\d+: relu: sms="):
        g.call(torch.relu, g.input("x", (3,), torch.float32), demand=nr.Demand(flops=3), sms=sms)


def test_a_tuple_of_one_result_is_refused() -> None:
    g = nr.Graph("g")
    with pytest.raises(ShapeError, match="return the tensor itself"):
        g.call(lambda x: (x + 1,), g.input("x", (3,), torch.float32), demand=nr.Demand(flops=3))


def test_a_method_and_a_function_among_the_arguments_have_fingerprints() -> None:
    g = nr.Graph("g")
    x = g.input("x", (3,), torch.float32)
    g.call(torch.Tensor.relu, x, demand=nr.Demand(flops=3))
    g.call(lambda x, *, by: by(x), x, demand=nr.Demand(flops=3), by=torch.neg)
    assert "0x" not in repr([identity(node.op.reference) for node in g.nodes])
    assert len(g.fingerprint) == 64
