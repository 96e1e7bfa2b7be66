"""What the probe of nano_batch says of operators, against a table of what is true of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import nanort as nr
from nanort.errors import BatchFlowError

WORK = nr.Demand(flops=1)
ROWS, EXAMPLE_ROWS = 8, 6
B = -1
"""Stands for the batch in a shape."""


@dataclass(frozen=True)
class T:
    """A tensor argument: an input if its shape has a batch, a constant if not; whole numbers if ``below`` is set."""

    shape: tuple[int, ...]
    below: int = 0

    @property
    def batch(self) -> int | None:
        return self.shape.index(B) if B in self.shape else None

    def sized(self, rows: int) -> tuple[int, ...]:
        return tuple(rows if size == B else size for size in self.shape)

    def make(self, rows: int, generator: torch.Generator) -> torch.Tensor:
        if self.below:
            return torch.randint(0, self.below, self.sized(rows), generator=generator)
        return torch.randn(self.sized(rows), generator=generator, dtype=torch.float64)


def t(*shape: int, below: int = 0) -> T:
    return T(shape, below)


@dataclass(frozen=True)
class Case:
    """A call, whether its batch may be cut, and the dimension in which its results then carry the batch."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    cut: bool
    axis: int = 0

    def make(self, rows: int, seed: int) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        return tuple(arg.make(rows, generator) if isinstance(arg, T) else arg for arg in self.args)


def yes(name: str, function: Callable[..., Any], *args: Any, axis: int = 0) -> Case:
    return Case(name, function, args, True, axis)


def no(name: str, function: Callable[..., Any], *args: Any) -> Case:
    return Case(name, function, args, False)


def each(function: Callable[..., Any], **static: Any) -> Callable[..., Any]:
    """``function`` with keyword arguments that no graph shows."""
    return lambda *args: function(*args, **static)


def causal(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    scores = (q @ k.T).masked_fill(torch.ones(len(q), len(k), device=q.device).tril() == 0, float("-inf"))
    return scores.softmax(-1) @ k


X, Y, W, IDS = t(B, 4), t(B, 4), t(4, 3), t(B, below=5)

CASES = [
    # One element of the result for one of the argument.
    yes("relu", torch.relu, X),
    yes("gelu", F.gelu, X),
    yes("power", torch.pow, X, 2),
    yes("clamp", torch.clamp, X, -1.0, 1.0),
    yes("add", torch.add, X, Y),
    yes("add_bias", torch.add, X, t(4)),
    yes("add_bias_of_one_row", torch.add, X, t(1, 4)),
    no("add_what_is_not_cut", torch.add, X, t(ROWS, 4)),
    yes("lerp", torch.lerp, X, Y, 0.3),
    yes("cast_to_bfloat16", lambda x: x.to(torch.bfloat16), X),
    yes("compare", torch.gt, X, 0.5),
    no("add_positions", lambda x: x + torch.arange(len(x), device=x.device)[:, None], X),
    no("add_noise", lambda x: x + torch.rand_like(x), X),
    no("dropout", F.dropout, X, 0.5),
    yes("dropout_of_inference", F.dropout, X, 0.5, False),
    # Products.
    yes("matmul", torch.matmul, X, W),
    yes("matmul_in_float32", lambda x, w: (x.float() @ w.float()).to(x.dtype), t(B, 99), t(99, 33)),
    yes("matmul_from_the_left", torch.matmul, t(3, 4), t(4, B), axis=1),
    no("matmul_over_the_batch", torch.matmul, t(3, B), X),
    no("gram", lambda x: x @ x.T, X),
    yes("linear", F.linear, X, t(3, 4), t(3)),
    yes("bmm", torch.bmm, t(B, 2, 3), t(B, 3, 4)),
    yes("outer", torch.outer, t(B), t(3)),
    yes("outer_from_the_left", torch.outer, t(3), t(B), axis=1),
    no("outer_with_itself", lambda x: torch.outer(x, x), t(B)),
    yes("einsum", lambda x, w: torch.einsum("bi,ij->bj", x, w), X, W),
    yes("einsum_of_rows", lambda x, y: torch.einsum("bi,bi->b", x, y), X, Y),
    no("einsum_over_the_batch", lambda x, y: torch.einsum("bi,bj->ij", x, y), X, Y),
    yes("cdist", torch.cdist, X, t(3, 4)),
    yes("cdist_from_the_left", torch.cdist, t(3, 4), X, axis=1),
    no("cdist_with_itself", lambda x: torch.cdist(x, x), X),
    yes("solve", torch.linalg.solve, t(B, 3, 3), t(B, 3, 2)),
    no("qr", lambda x: torch.linalg.qr(x).Q, X),
    # Attention.
    yes("attention_in_rows", F.scaled_dot_product_attention, t(B, 3, 4), t(B, 3, 4), t(B, 3, 4)),
    yes("attention_to_constants", lambda q, k: (q @ k.T).softmax(-1) @ k, X, t(5, 4)),
    no("attention_between_rows", lambda q, k: (q @ k.T).softmax(-1) @ k, X, Y),
    no("causal_attention_between_rows", causal, X, Y),
    # Reductions.
    yes("softmax", torch.softmax, X, 1),
    no("softmax_over_the_batch", torch.softmax, X, 0),
    no("softmax_over_second_last", torch.softmax, X, -2),
    yes("softmax_over_second_last_of_three", torch.softmax, t(B, 3, 4), -2),
    yes("log_softmax", torch.log_softmax, X, -1),
    yes("mean", torch.mean, X, 1),
    yes("mean_kept", each(torch.mean, dim=1, keepdim=True), X),
    no("mean_over_the_batch", torch.mean, X, 0),
    no("mean_over_the_batch_kept", each(torch.mean, dim=0, keepdim=True), X),
    no("mean_over_everything", torch.mean, X),
    no("centre", lambda x: x - x.mean(0, keepdim=True), X),
    yes("sum", torch.sum, X, 1),
    yes("std", torch.std, X, 1),
    no("standardise", lambda x: x / x.std(0), X),
    yes("max", lambda x: x.max(1), X),
    no("below_max", lambda x: x - x.amax(0), X),
    yes("median", lambda x: x.median(1).values, X),
    no("below_median", lambda x: x < x.median(0).values, X),
    yes("quantile", torch.quantile, X, 0.5, 1),
    no("below_quantile", lambda x: x < x.quantile(0.7, 0), X),
    yes("logsumexp", torch.logsumexp, X, 1),
    no("below_logsumexp", lambda x: x - x.logsumexp(0), X),
    no("norm_of_everything", torch.linalg.norm, X),
    no("rows_and_their_sum", lambda x: (x, x.sum(0)), X),
    # Scans and orders.
    yes("cumsum", torch.cumsum, X, 1),
    no("cumsum_over_the_batch", torch.cumsum, X, 0),
    yes("cummax", lambda x: torch.cummax(x, 1), X),
    no("cummax_over_the_batch", lambda x: torch.cummax(x, 0).values, X),
    yes("sort", lambda x: x.sort(1), X),
    no("sort_the_batch", lambda x: x.sort(0).values, X),
    yes("argsort", torch.argsort, X, 1),
    no("argsort_the_batch", torch.argsort, X, 0),
    yes("topk", lambda x: x.topk(2, 1), X),
    no("topk_of_the_batch", lambda x: x.topk(2, 0).values, X),
    no("rank_in_the_batch", lambda x: (x[:, None] > x[None]).sum(1), t(B)),
    yes("flip", torch.flip, X, (1,)),
    yes("flip_by_a_list", torch.flip, X, [1]),
    no("flip_the_batch", torch.flip, X, (0,)),
    yes("roll", torch.roll, X, 1, 1),
    no("roll_the_batch", torch.roll, X, 1, 0),
    yes("searchsorted", torch.searchsorted, t(5), X),
    yes("fft", torch.fft.fft, X, None, 1),
    no("fft_over_the_batch", torch.fft.fft, X, None, 0),
    # Norms.
    yes("layer_norm", F.layer_norm, X, (4,)),
    yes("group_norm", F.group_norm, t(B, 4, 3), 2),
    yes("normalize", F.normalize, X),
    no("normalize_over_the_batch", each(F.normalize, dim=0), X),
    no("batch_norm", lambda x: F.batch_norm(x, None, None, training=True), X),
    yes("batch_norm_of_inference", lambda x, mean: F.batch_norm(x, mean, torch.ones_like(mean)), X, t(4)),
    # Indices.
    yes("embedding", F.embedding, IDS, t(5, 3)),
    yes("index_select", lambda table, ids: table.index_select(0, ids), t(5, 3), IDS),
    yes("one_hot", F.one_hot, IDS, 5),
    yes("gather", lambda x, ids: x.gather(1, ids), X, t(B, 2, below=4)),
    no("gather_from_the_batch", lambda x, ids: x.gather(0, ids), X, t(B, 4, below=3)),
    no("rows_by_index", lambda x, ids: x[ids], X, t(B, below=3)),
    no("rows_by_constant_index", lambda x, ids: x[ids], X, t(ROWS, below=3)),
    no("sum_by_index", lambda x, ids: torch.zeros(5, 4, dtype=x.dtype, device=x.device).index_add(0, ids, x), X, IDS),
    # Shapes.
    yes("transpose", torch.t, X, axis=1),
    yes("unsqueeze_in_front", torch.unsqueeze, X, 0, axis=1),
    yes("flatten_what_follows", torch.flatten, t(B, 2, 3), 1),
    yes("cat", lambda x, y: torch.cat([x, y], 1), X, Y),
    no("cat_batches", lambda x, y: torch.cat([x, y], 0), X, Y),
    yes("stack_in_front", lambda x, y: torch.stack([x, y]), X, Y, axis=1),
    yes("chunk", lambda x: x.chunk(2, 1), X),
    no("tril", torch.tril, X),
    no("diagonal", torch.diag, t(B)),
    # Windows.
    yes("conv1d", F.conv1d, t(B, 2, 5), t(3, 2, 3)),
    no("conv1d_along_the_batch", each(F.conv1d, padding=1), t(1, 2, B), t(2, 2, 3)),
    yes("max_pool1d", F.max_pool1d, t(B, 2, 6), 2),
    yes("interpolate", F.interpolate, t(B, 2, 3), 6),
    no("max_pool1d_along_the_batch", each(F.max_pool1d, kernel_size=3, stride=1, padding=1), t(1, 2, B)),
    # A batch at dimension 1.
    yes("softmax_before_the_batch", torch.softmax, t(3, B), 0, axis=1),
    no("softmax_over_a_batch_at_1", torch.softmax, t(3, B), 1),
    no("softmax_over_a_batch_second_last", torch.softmax, t(2, B, 4), -2),
    yes("mean_before_the_batch", torch.mean, t(3, B), 0),
    no("cumsum_over_a_batch_at_1", torch.cumsum, t(3, B), 1),
    yes("layer_norm_after_the_batch", F.layer_norm, t(2, B, 4), (4,), axis=1),
    yes("transpose_to_the_front", torch.t, t(3, B)),
    no("sort_a_batch_at_1", lambda x: x.sort(1).values, t(3, B)),
]  # fmt: skip


def results(found: Any) -> tuple[torch.Tensor, ...]:
    return tuple(found) if isinstance(found, tuple) else (found,)


def in_pieces(case: Case, args: tuple[Any, ...], cuts: list[int]) -> tuple[torch.Tensor, ...]:
    """The results of the pieces, put together."""
    pieces = []
    for low, high in zip([0, *cuts], [*cuts, ROWS], strict=True):
        parts = [
            arg.narrow(spec.batch, low, high - low) if isinstance(spec, T) and spec.batch is not None else arg
            for spec, arg in zip(case.args, args, strict=True)
        ]
        pieces.append(results(case.function(*parts)))
    return tuple(torch.cat(column, case.axis) for column in zip(*pieces, strict=True))


def equal(found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> bool:
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(found, expected, strict=True)
    )


def build(case: Case) -> nr.Graph:
    """The call on ROWS rows, each of its results turned so that the batch comes first."""
    graph = nr.Graph(case.name)
    values: list[Any] = []
    for index, spec in enumerate(case.args):
        if not isinstance(spec, T):
            values.append(spec)
        elif spec.batch is not None:
            dtype = torch.int64 if spec.below else torch.float64
            values.append(graph.input(f"x{index}", spec.sized(ROWS), dtype, batch=spec.batch))
        else:
            dtype = torch.int64 if spec.below else torch.float64
            values.append(graph.constant(f"x{index}", spec.shape, dtype))
    example = case.make(EXAMPLE_ROWS, 0)
    found = graph.call(case.function, *values, demand=WORK, name=case.name, example=example)
    for index, value in enumerate(results(found)):
        if case.axis:
            made = results(case.function(*example))[index]
            value = graph.call(torch.movedim, value, case.axis, 0, demand=WORK, example=(made, case.axis, 0))
        graph.output(**{f"y{index}": value})
    return graph


def tensors(case: Case, seed: int = 1) -> dict[str, torch.Tensor]:
    made = case.make(ROWS, seed)
    return {f"x{k}": arg for k, (spec, arg) in enumerate(zip(case.args, made, strict=True)) if isinstance(spec, T)}


CUT = [case for case in CASES if case.cut]
REFUSED = [case for case in CASES if not case.cut]


def by_name(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


@by_name(CASES)
def test_table_says_the_truth(case: Case) -> None:
    args = case.make(ROWS, 1)
    whole = results(case.function(*args))

    def same(cuts: list[int]) -> bool:
        try:
            return equal(in_pieces(case, args, cuts), whole)
        except (RuntimeError, ValueError, IndexError):
            return False

    assert all(same(cuts) for cuts in ([4], [1], [3, 5], list(range(1, ROWS)))) == case.cut


@by_name(CUT)
def test_what_can_be_cut_is_cut_and_equals_the_whole(case: Case) -> None:
    graph, given = build(case), tensors(case)
    whole = graph.eager(**given)
    for sizes in (2, [1, 7], [3, 0, 5]):
        cut = nr.nano_batch(graph, sizes)
        pieces = [node for node in cut.nodes if node.origin == case.name]
        assert len(pieces) == 2
        found = cut.eager(**given)
        assert found.keys() == whole.keys()
        assert equal(tuple(found.values()), tuple(whole.values()))


@by_name(REFUSED)
def test_what_cannot_be_cut_is_refused_by_name_and_line(case: Case) -> None:
    graph = build(case)
    node = graph.nodes[0]
    with pytest.raises(
        BatchFlowError, match=re.escape(f"{node.where}: operator {node.op.name} (node {case.name}) cannot")
    ):
        nr.nano_batch(graph)


def one_call(function: Callable[..., Any], *shape: int, **options: Any) -> nr.Graph:
    """``y = function(x)``, on one line."""
    graph = nr.Graph("one")
    x = graph.input("x", shape or (ROWS, 4), torch.float32, batch=0)
    graph.output(y=graph.call(function, x, demand=WORK, **options))  # the line that errors name
    return graph


def test_error_names_the_line_of_the_call() -> None:
    with pytest.raises(BatchFlowError) as caught:
        nr.nano_batch(one_call(torch.softmax, example=(torch.randn(6, 4), 0), dim=0))
    line = one_call.__code__.co_firstlineno + 4
    assert str(caught.value).startswith(
        f"tests/test_batchflow.py:{line}: operator softmax (node softmax) cannot be cut: "
    )


@pytest.mark.parametrize(
    ("example", "advice"),
    [
        (None, "give it example= or axes='rows'"),
        ((), r"its example has tensors of \[\] dimensions, the call of \[2\]: give one like the call"),
        ((torch.randn(6, 4, 2),), r"its example has tensors of \[3\] dimensions, the call of \[2\]"),
        ((3,), r"its example has tensors of \[None\] dimensions, the call of \[2\]"),
        ((torch.randn(2, 4),), r"its example has batches of \[2\] rows: give one of at least 3"),
        ((torch.randn(6, 1),), r"its reference refuses rows 0:6 of its example: .*out of range"),
    ],
    ids=["none", "empty", "rank", "literal", "short", "narrow"],
)
def test_example_that_proves_nothing_is_refused_with_advice(example: Any, advice: str) -> None:
    with pytest.raises(BatchFlowError, match=advice):
        nr.nano_batch(one_call(lambda x: x.topk(2, 1).values, example=example))


def test_example_whose_batches_differ_is_refused() -> None:
    graph = nr.Graph("two")
    x, y = (graph.input(name, (ROWS, 4), torch.float32, batch=0) for name in "xy")
    graph.output(z=graph.call(torch.add, x, y, demand=WORK, example=(torch.randn(6, 4), torch.randn(1, 4))))
    with pytest.raises(BatchFlowError, match=r"its example has batches of \[1, 6\] rows"):
        nr.nano_batch(graph)


def test_reference_that_refuses_pieces_of_its_example_is_refused() -> None:
    def pairs(x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "meta" and len(x) % 2:
            raise ValueError("rows come in pairs")
        return x.flip(1)

    with pytest.raises(BatchFlowError, match="its reference refuses rows 0:3 of its example: rows come in pairs"):
        nr.nano_batch(one_call(pairs, example=(torch.randn(6, 4),)))


def test_reference_that_refuses_other_sizes_is_refused() -> None:
    with pytest.raises(BatchFlowError, match="its reference refuses a batch of 13 rows"):
        nr.nano_batch(one_call(torch.reshape, example=(torch.randn(6, 4), (8, 2, 2)), shape=(8, 2, 2)))


@pytest.mark.parametrize(
    ("function", "shape"), [(torch.flatten, r"\[52\]"), (lambda x: x.repeat_interleave(2, 0), r"\[26, 4\]")]
)
def test_result_of_several_rows_a_row_is_refused(function: Callable[..., Any], shape: str) -> None:
    with pytest.raises(BatchFlowError, match=f"no dimension of its result {shape} follows a batch of 13 rows"):
        nr.nano_batch(one_call(function, example=(torch.randn(6, 4),)))


def test_example_may_depend_on_static_arguments() -> None:
    @nr.op(demand=WORK, example=lambda *, dim: (torch.randn(6, dim + 3),))
    def top(x: torch.Tensor, *, dim: int) -> torch.Tensor:
        return x.topk(3, dim).values

    graph = nr.Graph("static")
    x = graph.input("x", (ROWS, 4), torch.float32, batch=0)
    graph.output(y=top(x, dim=1))
    assert len(nr.nano_batch(graph).nodes) == 2
    graph = nr.Graph("static")
    x = graph.input("x", (ROWS, 4), torch.float32, batch=0)
    graph.output(y=top(x, dim=0))
    with pytest.raises(BatchFlowError, match=r"no dimension of its result \[3, 4\] follows a batch of 13 rows"):
        nr.nano_batch(graph)


def test_axes_rows_is_trusted() -> None:
    """Dimension 0 is taken at its word, even by an operator that mixes rows."""
    cut = nr.nano_batch(one_call(lambda x: x.cumsum(0), axes="rows"))
    assert [node.piece for node in cut.nodes] == [0, 1]
    x = torch.ones(ROWS, 4)
    assert cut.eager(x=x)["y"][:, 0].tolist() == [1, 2, 3, 4, 1, 2, 3, 4]


def test_axes_whole_is_not_cut() -> None:
    graph = nr.Graph("whole")
    x = graph.input("x", (ROWS, 4), torch.float32, batch=0)
    y = graph.call(torch.relu, x, demand=WORK, example=(torch.randn(6, 4),))
    z = graph.call(torch.cumsum, y, 0, demand=WORK, axes="whole", name="scan")
    graph.output(z=graph.call(torch.relu, z, demand=WORK, axes="rows", name="after"))
    cut = nr.nano_batch(graph, 4)
    assert [node.name for node in cut.nodes] == ["relu/0", "relu/1", "relu/2", "relu/3", "scan", "after"]
    assert dict(cut.nodes[4].preds) == dict.fromkeys(range(4), "data")
    given = torch.randn(ROWS, 4)
    assert torch.equal(cut.eager(x=given)["z"], graph.eager(x=given)["z"])


def test_shape_rule_stands_in_for_a_reference_that_reads_values() -> None:
    """Which number a row has among the distinct ones depends on the other rows, which no shape shows."""

    def same(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x, dtype=torch.int64)

    numbers = torch.tensor([3.0, 1.0, 3.0, 2.0, 1.0, 5.0])
    distinct = nr.op(demand=WORK, name="distinct", shape=same, example=(numbers,))(
        lambda x: torch.unique(x, return_inverse=True)[1]
    )
    whole = nr.op(demand=WORK, name="round", shape=same, example=(numbers,))(
        lambda x: torch.tensor([round(number) for number in x.tolist()])
    )
    graph = nr.Graph("values")
    x = graph.input("x", (ROWS,), torch.float32, batch=0)
    graph.output(y=whole(x))
    cut, given = nr.nano_batch(graph, 3), torch.randn(ROWS) * 9
    assert torch.equal(cut.eager(x=given)["y"], given.round().to(torch.int64))
    graph = nr.Graph("values")
    x = graph.input("x", (ROWS,), torch.float32, batch=0)
    graph.output(y=distinct(x))
    with pytest.raises(BatchFlowError, match=r"operator distinct .* other numbers: rows depend on one another"):
        nr.nano_batch(graph)


# What an operator changes in place counts as a result.


def into(function: Callable[..., None], *state: int) -> nr.Graph:
    """A graph that changes a state by rows of its input and returns how it is afterwards."""
    graph = nr.Graph("into")
    x = graph.input("x", (ROWS, 4), torch.float64, batch=0)
    slots = graph.input("slots", (ROWS,), torch.int64, batch=0)
    store = graph.state("store", state, torch.float64)
    change = nr.op(
        demand=WORK,
        name="change",
        writes=("store",),
        example=(torch.zeros(8, 4), torch.randn(6, 4), torch.arange(6) + 1),
    )(function)
    change(store, x, slots)
    graph.output(store=graph.call(torch.clone, store, demand=WORK))
    return graph


def put(store: torch.Tensor, x: torch.Tensor, slots: torch.Tensor) -> None:
    store[slots] = x


def count(store: torch.Tensor, x: torch.Tensor, slots: torch.Tensor) -> None:
    store += x.sum(0)


def average(store: torch.Tensor, x: torch.Tensor, slots: torch.Tensor) -> None:
    store.copy_(x.mean(0).expand_as(store))


@pytest.mark.parametrize("change", [put, count])
def test_write_in_pieces_is_cut_where_it_leaves_the_same_state(change: Callable[..., None]) -> None:
    graph = into(change, 9, 4)
    given = {"x": torch.randn(ROWS, 4, dtype=torch.float64), "slots": torch.randperm(9)[:ROWS]}
    found, expected = (
        each.eager(**given, store=torch.zeros(9, 4, dtype=torch.float64))["store"]
        for each in (nr.nano_batch(graph, [3, 4, 1]), graph)
    )
    assert torch.allclose(found, expected, rtol=1e-12)


def test_write_of_what_depends_on_all_rows_is_refused() -> None:
    with pytest.raises(BatchFlowError, match=r"operator change \(node change\) cannot be cut: cut at \[3\]"):
        nr.nano_batch(into(average, 9, 4))


# The probe itself.


def test_probe_leaves_random_numbers_and_examples_as_they_were() -> None:
    def spoil(x: torch.Tensor) -> torch.Tensor:
        y = torch.rand_like(x)
        x.zero_()
        return y

    example = torch.randn(6, 4)
    before, state = example.clone(), torch.get_rng_state()
    with pytest.raises(BatchFlowError, match="depend on one another, or on chance"):
        nr.nano_batch(one_call(spoil, example=(example,)))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(example, before)


def test_operator_is_proved_once() -> None:
    calls = []

    @nr.op(demand=WORK, example=(torch.randn(6, 4),))
    def double(x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "meta":
            calls.append(len(x))
        return 2 * x

    def graph(rows: int) -> nr.Graph:
        g = nr.Graph("again")
        x = g.input("x", (rows, 4), torch.float32, batch=0)
        g.output(y=double(double(x)))
        return g

    nr.nano_batch(graph(ROWS))
    proof = list(calls)
    assert sorted(set(proof)) == [1, 2, 3, 5, 6]
    nr.nano_batch(graph(100), 4)
    assert calls == proof


def test_results_may_carry_the_batch_in_different_dimensions() -> None:
    graph = nr.Graph("both")
    x = graph.input("x", (ROWS, 4), torch.float64, batch=0)
    example = torch.randn(6, 4)
    a, b = graph.call(lambda x: (2 * x, x.t().clone()), x, demand=WORK, example=(example,))
    graph.output(a=a, b=graph.call(torch.t, b, demand=WORK, example=(example.t(),)))
    given = torch.randn(ROWS, 4, dtype=torch.float64)
    found = nr.nano_batch(graph, 3).eager(x=given)
    assert torch.equal(found["a"], 2 * given)
    assert torch.equal(found["b"], given)


def test_batch_at_dimension_1_cannot_be_put_together_again() -> None:
    graph = one_call(torch.t, example=(torch.randn(6, 4),))
    with pytest.raises(BatchFlowError, match=r"output 'y' .*needed whole: its batch is dimension 1"):
        nr.nano_batch(graph)
