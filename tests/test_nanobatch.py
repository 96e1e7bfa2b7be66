from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
import torch

import nanort as nr
import random_dags
from nanort.errors import BatchFlowError, SealedGraphError, ShapeError, SizesError, SplitError
from random_dags import WORK

ROWS = 8
double = nr.op(demand=WORK, name="double", example=(torch.arange(12.0).view(6, 2),))(lambda x: 2 * x)
plus = nr.op(demand=WORK, name="plus", axes="rows")(torch.add)
total = nr.op(demand=WORK, name="total", axes="whole")(lambda x: x.sum(0))


def chain(*operators: nr.Op, rows: int = ROWS) -> nr.Graph:
    """``y``, made of ``x`` by the operators in turn."""
    graph = nr.Graph("chain")
    x = graph.input("x", (rows, 3), torch.float32, batch=0)
    for operator in operators:
        x = operator(x)
    graph.output(y=x)
    return graph


def names(graph: nr.Graph) -> list[str]:
    return [node.name for node in graph.nodes]


def edges(graph: nr.Graph) -> set[tuple[str, str]]:
    return {(graph.nodes[pred].name, node.name) for node in graph.nodes for pred, _ in node.preds}


def same(graph: nr.Graph, sizes: int | Sequence[int], per_op: dict[str, int] | None = None) -> nr.Graph:
    """The graph cut, after its outputs have been compared with the whole's."""
    tensors = {root.name: torch.randn(root.shape) for root in graph.roots if root.kind in ("input", "constant")}
    cut = nr.nano_batch(graph, sizes, per_op)
    expected, found = graph.eager(**tensors), cut.eager(**tensors)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    return cut


def same_rows(graph: nr.Graph, sizes: int | Sequence[int]) -> nr.Graph:
    """The graph cut, after y of x has been compared with the whole's, rows packed by the layout."""
    cut, x = nr.nano_batch(graph, sizes), torch.randn(8, 6)
    assert cut.layout is not None
    assert torch.equal(cut.layout.unpack(cut.eager(x=cut.layout.pack(x))["y"]), graph.eager(x=x)["y"])
    return cut


# Equal to the whole.


@pytest.mark.parametrize("make", [random_dags.ragged, random_dags.synthetic])
@pytest.mark.parametrize("seed", range(40))
def test_random_cut_equals_the_whole(make: random_dags.Family, seed: int) -> None:
    graph, tensors = make(seed)
    states = [root.name for root in graph.roots if root.kind == "state"]
    given = {name: tensor.clone() for name, tensor in tensors.items()}
    expected = graph.eager(**given)
    cut = random_dags.cut(graph, random.Random(seed))
    ordered = random_dags.packed(cut, tensors)
    found = cut.eager(**ordered)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(random_dags.unpacked(cut, name, tensor), expected[name])
    assert all(torch.equal(ordered[name], given[name]) for name in states)
    assert {node.origin for node in cut.nodes if node.op.name != "copy"} == set(names(graph))


def test_random_cuts_reach_every_kind_of_them() -> None:
    """That the test above can fail: pieces, overrides, prompts cut in two and operators that need rows of several."""
    graphs = [random_dags.ragged(seed)[0] for seed in range(40)]
    cuts = [random_dags.cut(graph, random.Random(seed)) for seed, graph in enumerate(graphs)]
    layouts = [node.static["layout"] for graph in cuts for node in graph.nodes if node.op.name == "prefill_attend"]
    assert {len(graph.layout.cuts) for graph in cuts if graph.layout} == {1, 2, 3, 4}
    assert sum(any(segment.earlier for segment in layout.segments) for layout in layouts) > 30
    assert sum(len(layout.segments) > 1 for layout in layouts) > 30
    assert sum(node.op.name == "copy" for graph in cuts for node in graph.nodes) > 5
    kinds = Counter(node.op.name for graph in cuts for node in graph.nodes)
    assert min(kinds[name] for name in ("linear", "append", "decode_attend", "prefill_attend", "gather")) >= 40


# Sizes, names, structure.


def test_pieces_carry_names_origins_and_places() -> None:
    graph = nr.Graph("named")
    x = graph.input("x", (ROWS, 3), torch.float32, batch=0)
    with graph.scope(layer=3):
        y = graph.call(double, x, name="first", sms=(8, 16), stream="g1")
    graph.output(y=total(y))
    cut = nr.nano_batch(graph, 2)
    assert names(cut) == ["layer3.first/0", "layer3.first/1", "total"]
    assert [(node.origin, node.piece) for node in cut.nodes] == [("layer3.first", 0), ("layer3.first", 1), ("total", 0)]
    source, *pieces = graph.nodes[0], *cut.nodes[:2]
    for piece in pieces:
        assert (piece.where, piece.scope, piece.sms, piece.stream) == (
            source.where, (("layer", 3),), (8, 16), "g1"
        )  # fmt: skip  # side by side


def test_inputs_constants_states_and_outputs_stay_as_they_are() -> None:
    graph, _ = random_dags.ragged(3)
    cut = nr.nano_batch(graph, 2)
    for kind in ("input", "constant", "state"):
        kept, cut_kept = (
            [(root.name, root.shape, root.dtype, root.batch, root.device) for root in each.roots if root.kind == kind]
            for each in (graph, cut)
        )
        assert cut_kept == kept
    assert {name: value.shape for name, value in cut.outputs.items()} == {
        name: value.shape for name, value in graph.outputs.items()
    }


def test_cutting_seals_the_graph_and_leaves_it_as_it_is() -> None:
    graph = chain(double)
    before = graph.fingerprint
    nr.nano_batch(graph, 2)
    assert graph.fingerprint == before
    with pytest.raises(SealedGraphError):
        graph.input("late", (ROWS,), torch.float32)


def test_one_piece_is_the_graph_again() -> None:
    for graph in (chain(double, total), random_dags.ragged(3)[0], random_dags.synthetic(3)[0]):
        cut = nr.nano_batch(graph, 1)
        assert names(cut) == names(graph)
        assert edges(cut) == edges(graph)


@pytest.mark.parametrize(
    ("sizes", "rows"),
    [
        (1, [8]),
        (2, [4, 4]),
        (3, [2, 3, 3]),
        (8, [1] * 8),
        (20, [1] * 8),
        ([8], [8]),
        ([1, 7], [1, 7]),
        ((3, 0, 5), [3, 5]),
        ([0, 0, 8, 0], [8]),
    ],
)
def test_sizes(sizes: int | Sequence[int], rows: list[int]) -> None:
    cut = same(chain(double, double), sizes)
    assert [node.outputs[0].shape[0] for node in cut.nodes] == rows * 2


def test_two_pieces_are_the_default() -> None:
    assert names(nr.nano_batch(chain(double))) == ["double/0", "double/1"]


def test_batch_without_rows_stays_without() -> None:
    graph = chain(double, rows=0)
    assert names(same(graph, 2)) == []


def test_smaller_batches_are_cut_in_proportion() -> None:
    graph = nr.Graph("two")
    x = graph.input("x", (8, 2), torch.float32, batch=0)
    z = graph.input("z", (4, 2), torch.float32, batch=0)
    graph.output(a=double(x), b=double(z))
    cut = same(graph, [2, 6])
    assert [node.outputs[0].shape[0] for node in cut.nodes] == [2, 6, 1, 3]


@pytest.mark.parametrize(
    ("per_op", "pieces"),
    [
        ({"plus": 4}, (2, 4, 2)),  # finer
        ({"plus": 1}, (2, 1, 2)),  # coarser
        ({"plus": 3}, (2, 3, 2)),  # neither divides the other
        ({"first": 5, "plus": 8}, (5, 8, 2)),
        ({"double": 3, "first": 4}, (4, 2, 3)),  # a node's name goes before its operator's
        ({"plus": 100}, (2, 8, 2)),  # no empty pieces
    ],
)
def test_per_op_counts_and_no_node_for_splits_and_joins(per_op: dict[str, int], pieces: tuple[int, ...]) -> None:
    graph = nr.Graph("three")
    x = graph.input("x", (ROWS, 3), torch.float32, batch=0)
    graph.output(z=double(plus(graph.call(double, x, name="first"), x)))
    cut = same(graph, 2, per_op=per_op)
    counts = Counter(node.origin for node in cut.nodes)
    assert tuple(counts[origin] for origin in ("first", "plus", "double")) == pieces
    assert len(cut.nodes) == sum(pieces)


@pytest.mark.parametrize(
    ("count", "read"),
    [
        (4, [(0, 0), (0, 1), (1, 2), (1, 3)]),  # 0:3 and 3:8 in two each
        (3, [(0, 0), (0, 1), (1, 1), (1, 2)]),  # 0:2, 2:5 and 5:8
        (1, [(0, 0), (1, 0)]),
    ],
)
def test_pieces_wait_for_the_pieces_whose_rows_they_read(count: int, read: list[tuple[int, int]]) -> None:
    cut = same(chain(double, double), [3, 5], per_op={"double.1": count})
    assert [(pred, node.piece) for node in cut.nodes[2:] for pred, _ in node.preds] == read


@pytest.mark.parametrize("seed", range(10))
def test_ragged_pieces_are_split_and_joined_without_a_copy(seed: int) -> None:
    graph, _ = random_dags.ragged(seed)
    cut = nr.nano_batch(graph, 3)
    assert cut.layout is not None
    mixes = [(bool(decode), bool(prefill)) for decode, prefill in cut.layout.cuts]
    decode, prefill = (sum(mix[kind] for mix in mixes) for kind in (0, 1))
    pieces = {"linear": len(mixes), "append": len(mixes), "add": len(mixes), "decode_attend": decode}
    pieces |= {"prefill_attend": prefill, "gather": 1}
    source = Counter(node.op.name for node in graph.nodes)
    expected = {name: pieces[name] * count for name, count in source.items()}
    assert Counter(node.op.name for node in cut.nodes) == expected


def test_pins_are_carried_to_the_pieces() -> None:
    graph = nr.Graph("pinned")
    x = graph.input("x", (ROWS, 3), torch.float32, batch=0)
    y = graph.call(double, x, name="y")
    z = graph.call(double, x, name="z", after=(y,))
    graph.output(y=y, z=z)
    cut = same(graph, 2, per_op={"y": 3})
    assert [node.preds for node in cut.nodes[3:]] == [((0, "after"), (1, "after"), (2, "after"))] * 2


# Demands.


def test_constant_demand_is_scaled_by_rows() -> None:
    whole = nr.Demand(flops=80, hbm_bytes=8, h2d_bytes=16, sms=(4, 64))
    operator = nr.op(demand=whole, name="work", axes="rows")(torch.neg)
    cut = nr.nano_batch(chain(operator), [1, 2, 5])
    assert [node.demand for node in cut.nodes] == [whole.scaled(rows / 8) for rows in (1, 2, 5)]
    assert sum(node.demand.flops for node in cut.nodes) == 80
    assert nr.nano_batch(chain(operator), 1).nodes[0].demand == whole


@pytest.mark.parametrize("seed", range(10))
def test_constant_demands_of_pieces_add_up(seed: int) -> None:
    graph, _ = random_dags.ragged(seed)
    cut = random_dags.cut(graph, random.Random(seed))
    for node in graph.nodes:
        flops = sum(piece.demand.flops for piece in cut.nodes if piece.origin == node.name and piece.op is node.op)
        assert flops == pytest.approx(node.demand.flops)


def test_demand_function_is_asked_for_every_piece() -> None:
    def demand(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> nr.Demand:
        return nr.Demand(flops=2 * x.numel() * weight.shape[0], hbm_bytes=x.nbytes + weight.nbytes + out.nbytes)

    product = nr.op(demand=demand, name="product", axes="rows")(lambda x, weight: x @ weight.T)
    graph = nr.Graph("product")
    x = graph.input("x", (ROWS, 4), torch.float32, batch=0)
    weight = graph.constant("weight", (16, 4), torch.float32)
    graph.output(y=product(x, weight))
    cut = nr.nano_batch(graph, [3, 5])
    assert [node.demand.flops for node in cut.nodes] == [2 * 3 * 4 * 16, 2 * 5 * 4 * 16]
    assert [node.demand.hbm_bytes for node in cut.nodes] == [4 * (r * 4 + 64 + r * 16) for r in (3, 5)]  # weights again


def test_demand_function_sees_the_layout_of_its_piece() -> None:
    def demand(q: torch.Tensor, out: torch.Tensor, layout: nr.Layout) -> nr.Demand:
        return nr.Demand(flops=layout.pairs, hbm_bytes=layout.kv_tokens)

    def attention(q: torch.Tensor, *, layout: nr.Layout | None = None) -> torch.Tensor:
        return q.clone()

    operator = nr.op(demand=demand, axes="rows")(attention)
    graph = nr.Graph(
        "layout", layout=nr.Layout(decode=4, prefill=(nr.Segment(4), nr.Segment(2, past=7)), kv_tokens=400)
    )
    x = graph.input("x", (10, 2), torch.float32, batch=0)
    graph.output(y=operator(x))
    assert graph.nodes[0].demand == nr.Demand(flops=10 + 2 * 7 + 3, hbm_bytes=400)
    cut = nr.nano_batch(graph, 2)
    # Two decode rows each, and rows 0:3 of the first prompt, then its row 3 and the other prompt.
    flops = [1 + 2 + 3, 4 + 2 * 7 + 1 + 2]
    assert [node.demand for node in cut.nodes] == [nr.Demand(flops=count, hbm_bytes=200) for count in flops]
    assert [node.static["layout"].rows for node in cut.nodes] == [5, 5]


def test_rigid_demand_is_not_cut() -> None:
    operator = nr.op(demand=nr.Demand.rigid(seconds=1e-3, sms=8), name="measured", axes="rows")(torch.neg)
    with pytest.raises(
        BatchFlowError, match=r"test_nanobatch.py:\d+: operator measured .* a rigid demand cannot be cut"
    ):
        nr.nano_batch(chain(double, operator), 2)
    assert names(same(chain(double, operator), 1)) == ["double", "measured"]


# State through an index: the edges that are needed, and no others.


def tokens(node: nr.Node, graph: nr.Graph, given: dict[str, torch.Tensor]) -> set[tuple[int, int]]:
    """The (request, position) of the rows that a node of a cut graph is called for."""
    assert graph.layout is not None
    ((low, high), *_) = node.inputs[-1].placement.box  # the positions, an input in packed order
    rows = graph.layout.order[low:high]
    return {(int(given["requests"][row]), int(given["positions"][row])) for row in rows}


@pytest.mark.parametrize("seed", range(30))
def test_attention_waits_for_the_appends_it_reads_and_no_others(seed: int) -> None:
    graph, given = random_dags.ragged(seed)
    rng = random.Random(seed)
    count = rng.randint(1, 5)
    pieces = len(nr.nano_batch(graph, count).layout.cuts)  # it has a layout
    ragged = {node.op.name for node in graph.nodes if node.op.takes_layout}
    cut = nr.nano_batch(graph, count, {name: pieces * rng.randint(1, 3) for name in sorted(ragged)})
    appends = [node for node in cut.nodes if node.op.name == "append"]
    attends = [node for node in cut.nodes if node.op.name.endswith("attend")]
    assert attends
    for node in attends:
        rows = tokens(node, cut, given)
        needed = {
            append.index
            for append in appends
            if append.scope == node.scope
            and any(
                other == owner and earlier <= position
                for other, earlier in tokens(append, cut, given)
                for owner, position in rows
            )
        }
        assert {pred for pred, reason in node.preds if reason == "state"} == needed
    assert not any(reason == "state" for append in appends for _, reason in append.preds)


def test_pieces_of_a_prompt_wait_for_the_earlier_ones() -> None:
    """A prompt of 6 rows cut in 3: piece k reads what pieces 0 to k have stored."""
    graph = nr.Graph("prompt", layout=nr.Layout(prefill=6))
    x = graph.input("x", (6, 4), torch.float64, batch=0)
    requests, positions = (graph.input(name, (6,), torch.int64, batch=0) for name in ("requests", "positions"))
    kv = graph.state("kv", (1, 6, 4), torch.float64)
    random_dags.append(kv, x, requests, positions)
    graph.output(y=random_dags.prefill_attend(x, kv, requests, positions))
    cut = nr.nano_batch(graph, 3)
    assert edges(cut) == {(f"append/{i}", f"prefill_attend/{k}") for k in range(3) for i in range(k + 1)}


def test_empty_pieces_are_dropped() -> None:
    graph = nr.Graph("one", layout=nr.Layout(decode=1, prefill=7))
    x = graph.input("x", (8, 6), torch.float32, batch=0)
    decode, prefill = graph.split(x)
    graph.output(y=graph.join(double(decode), plus(prefill, prefill)))
    cut = same_rows(graph, [4, 0, 4])
    assert names(cut) == ["double", "plus/0", "plus/1"]
    assert cut.layout is not None
    assert cut.layout.cuts == ((0, 4), (1, 3))


@pytest.mark.parametrize(("decode", "prefill"), [(0, 8), (8, 0)])
def test_step_of_one_kind_of_rows(decode: int, prefill: int) -> None:
    graph = nr.Graph("pure", layout=nr.Layout(decode=decode, prefill=prefill))
    x = graph.input("x", (8, 6), torch.float32, batch=0)
    first, second = graph.split(x)
    graph.output(y=double(graph.join(double(first), plus(second, second))))
    assert len(same_rows(graph, [3, 5]).nodes) == 4


def test_views_of_the_rest_of_a_row_are_views_of_every_piece() -> None:
    graph = nr.Graph("heads", layout=nr.Layout(decode=3, prefill=5))
    x = graph.input("x", (8, 6), torch.float32, batch=0)
    heads = double(x).reshape(8, 2, 3)
    decode, prefill = graph.split(heads[:, 1:])
    turned = graph.join(plus(decode, decode), plus(prefill, prefill)).reshape(8, 3)
    graph.output(y=plus(turned, x[:, 3:]))
    cut = same_rows(graph, 2)
    assert Counter(node.op.name for node in cut.nodes) == {"double": 2, "plus": 6}


def test_needed_again_whole() -> None:
    """Decode rows that are joined with prefill rows piece by piece, and with one another for the output."""
    graph = nr.Graph("twice", layout=nr.Layout(decode=4, prefill=4))
    x = graph.input("x", (8, 6), torch.float32, batch=0)
    decode, prefill = graph.split(x)
    decode = double(decode)
    graph.output(y=double(graph.join(decode, double(prefill))), decode=decode, total=total(decode))
    cut = nr.nano_batch(graph, 2)
    assert cut.layout is not None
    given = torch.randn(8, 6)
    found, expected = cut.eager(x=cut.layout.pack(given)), graph.eager(x=given)
    assert torch.equal(cut.layout.unpack(found["y"]), expected["y"])
    assert torch.equal(found["decode"], expected["decode"])
    assert torch.allclose(found["total"], expected["total"])


def test_what_is_changed_between_two_readings_of_the_whole_is_read_anew() -> None:
    @nr.op(demand=WORK, writes=("x",), axes="rows")
    def grow(x: torch.Tensor) -> None:
        x += 1

    graph = nr.Graph("grown")
    y = double(graph.input("x", (ROWS, 3), torch.float32, batch=0))
    for reading in range(3):
        grow(y)
        graph.output(**{f"total{reading}": total(y)})
    same(graph, 2)


# What cannot be.


@pytest.mark.parametrize("sizes", [[3, 4], [9], [9, -1], [], [4.0, 4.0], [3.5, 4.5]])
def test_sizes_that_do_not_add_up_are_refused(sizes: list[int]) -> None:
    with pytest.raises(SizesError, match=r"whole numbers that add up to the batch's 8 rows"):
        nr.nano_batch(chain(double), sizes)


@pytest.mark.parametrize("count", [0, -2])
def test_count_below_one_is_refused(count: int) -> None:
    with pytest.raises(SizesError, match="give a count of one or more"):
        nr.nano_batch(chain(double), count)


def test_graph_without_a_batch_is_not_cut() -> None:
    graph = nr.Graph("fixed")
    x = graph.input("x", (8, 2), torch.float32)
    graph.output(y=double(x))
    with pytest.raises(SplitError, match="no input with batch="):
        nr.nano_batch(graph, 2)
    assert names(same(graph, 1)) == ["double"]


def test_per_op_of_an_unknown_operator_is_refused() -> None:
    with pytest.raises(SplitError, match=r"per_op names \['attention'\], which graph 'chain' does not have: it has"):
        nr.nano_batch(chain(double), 2, {"attention": 2})


@pytest.mark.parametrize("count", [0, -1, 1.5])
def test_per_op_that_is_no_count_is_refused(count: int) -> None:
    with pytest.raises(SizesError, match="whole numbers, one or more"):
        nr.nano_batch(chain(double), 2, {"double": count})


def test_per_op_only_cuts_finer_where_a_layout_is_taken() -> None:
    graph, _ = random_dags.ragged(3)
    for count in (1, 3):
        with pytest.raises(BatchFlowError, match=rf"operator append .*per_op={count} does not divide its 2 pieces"):
            nr.nano_batch(graph, 2, {"append": count})


def test_rows_taken_by_number_are_refused() -> None:
    graph = nr.Graph("slice")
    x = graph.input("x", (ROWS, 3), torch.float32, batch=0)
    graph.output(y=double(x[2:6]))
    with pytest.raises(
        BatchFlowError, match=r"test_nanobatch.py:\d+: operator double .* takes rows 2:6 of the batch: use g"
    ):
        nr.nano_batch(graph, 2)


def test_cut_graph_is_not_cut_again() -> None:
    with pytest.raises(BatchFlowError, match="takes rows 0:4 of the batch"):
        nr.nano_batch(nr.nano_batch(chain(double), 2), 2)


@pytest.mark.parametrize("shape", [(24,), (4, 6), (2, 4, 3), (3, 8)])
def test_reshape_that_mixes_the_batch_is_refused(shape: tuple[int, ...]) -> None:
    graph = nr.Graph("mixed")
    x = graph.input("x", (ROWS, 3), torch.float32, batch=0)
    graph.output(y=double(x.reshape(*shape)))
    with pytest.raises(BatchFlowError, match=r"operator double .* mixes the batch with other dimensions"):
        nr.nano_batch(graph, 2)


def test_join_of_what_was_not_split_is_refused() -> None:
    graph = nr.Graph("stacked")
    x = graph.input("x", (ROWS, 3), torch.float32, batch=0)
    graph.output(y=total(graph.join(double(x), plus(x, x))))
    with pytest.raises(BatchFlowError, match=r"operator total .* only what g.split parted can be joined in pieces"):
        nr.nano_batch(graph, 2)


def test_batches_of_different_rows_do_not_mix() -> None:
    graph = nr.Graph("layout", layout=nr.Layout(decode=3, prefill=5))
    x = graph.input("x", (8, 3), torch.float32, batch=0)
    decode, prefill = graph.split(x)
    graph.output(y=graph.call(lambda a, b: a.sum() + b, decode, prefill, demand=WORK, axes="rows", name="mix"))
    with pytest.raises(BatchFlowError, match=r"\(node mix\) .* cut along different rows: \['decode', 'prefill'\]"):
        nr.nano_batch(graph, 2)


def test_operator_that_takes_a_layout_refuses_rows_it_does_not_know() -> None:
    def ragged(x: torch.Tensor, *, layout: nr.Layout | None = None) -> torch.Tensor:
        return x.clone()

    graph = nr.Graph("images", layout=nr.Layout(decode=3, prefill=5))
    x = graph.input("x", (6, 3), torch.float32, batch=0)
    graph.output(y=graph.call(nr.op(demand=WORK, axes="rows")(ragged), x))
    with pytest.raises(BatchFlowError, match=r"operator ragged .* the layout says nothing of a batch of 6 rows"):
        nr.nano_batch(graph, 2)


def test_batch_dimension_must_exist() -> None:
    with pytest.raises(ShapeError, match="has no dimension batch=2"):
        nr.Graph("bad").input("x", (8, 3), torch.float32, batch=2)


def test_names_that_pieces_would_take_twice_are_numbered() -> None:
    g = nr.Graph("g")
    x, w = g.input("x", (8, 3), torch.float32, batch=0), g.constant("w", (2, 3), torch.float32)
    first = g.call(torch.neg, w, demand=nr.Demand(flops=1), name="y/0")
    g.output(first=first, y=g.call(torch.relu, x, demand=nr.Demand(flops=8), axes="rows", name="y"))
    assert [node.name for node in nr.nano_batch(g, 2).nodes] == ["y/0", "y/0.1", "y/1"]
