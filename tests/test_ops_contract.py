from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

import nanort as nr
from nanort import ops
from nanort.errors import ShapeError
from nanort.operators import meta

ROWS = 7

BATCHED = {
    "add": (0, 1),
    "add_rms_norm": (0, 1),
    "argmax": (0,),
    "decode_attention": (0, 2, 3),
    "embedding": (0,),
    "expert_combine": (0, 1, 2),
    "expert_linear": (0, 1),
    "gated_add": (0, 1, 2),
    "kv_append": (1, 2, 3),
    "linear": (0, 3),
    "prefill_attention": (0, 3, 4),
    "recall": (0,),
    "rms_norm": (0,),
    "rope": (0, 1),
    "rope_kv_append": (1, 2, 3, 4, 5),
    "route": (0,),
    "sample": (0, 1, 2, 3, 4),
    "silu_mul": (0, 1),
    "to_device": (0,),
    "to_host": (0,),
}
"""Of the operators that may be cut, the arguments whose rows are the batch."""

LAYOUTS = {
    "decode_attention": nr.Layout(decode=ROWS, kv_tokens=42),
    "kv_append": nr.Layout(decode=ROWS, kv_tokens=42),
    "prefill_attention": nr.Layout(prefill=(nr.Segment(4, past=5), nr.Segment(3))),
    "rope_kv_append": nr.Layout(decode=ROWS, kv_tokens=42),
}


def operator(name: str) -> nr.Op:
    return getattr(ops, name)


def example(name: str) -> tuple[torch.Tensor, ...]:
    found = operator(name).arguments()
    assert found is not None
    return found


@pytest.mark.parametrize("name", ops.__all__)
def test_kernels_are_where_the_operator_says(name: str) -> None:
    for path in operator(name).kernels.values():
        module, _, function = path.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def tuple_of(result: Any) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else () if result is None else (result,)


def test_public_names_are_sorted() -> None:
    assert ops.__all__ == sorted(set(ops.__all__))


def test_every_operator_is_cut_in_these_tests_or_takes_the_whole_batch() -> None:
    assert {name for name in ops.__all__ if operator(name).axes != "whole"} == set(BATCHED)


# What holds for all of them, on their examples.


@pytest.mark.parametrize("name", ops.__all__)
def test_operator_is_named_and_documented(name: str) -> None:
    documentation = operator(name).reference.__doc__
    assert operator(name).name == name
    assert documentation
    assert "Demand: " in documentation


@pytest.mark.parametrize("name", ops.__all__)
def test_example_is_the_same_at_every_call_and_draws_nothing(name: str) -> None:
    before = torch.random.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(example(name), example(name), strict=True))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(len(example(name)[position]) == ROWS for position in BATCHED.get(name, ()))


@pytest.mark.parametrize("name", ops.__all__)
def test_shapes_on_meta_tensors_are_those_of_the_results(name: str) -> None:
    args = example(name)
    found = operator(name).outputs(tuple(meta(tuple(arg.shape), arg.dtype) for arg in args), {})
    results = tuple_of(operator(name)(*args))
    assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in results]


def check_fresh(args: list[torch.Tensor], results: tuple[torch.Tensor, ...]) -> None:
    mine = {arg.untyped_storage().data_ptr() for arg in args}
    fresh = [result.untyped_storage().data_ptr() for result in results]
    assert len({*fresh, *mine}) == len(fresh) + len(mine)
    assert all(result.is_contiguous() for result in results)


@pytest.mark.parametrize("name", ops.__all__)
def test_results_are_fresh_and_contiguous_whatever_the_strides_of_the_arguments(name: str) -> None:
    plain = list(example(name))
    strided = [torch.stack((arg, arg), dim=-1)[..., 0] for arg in plain]
    assert not any(arg.is_contiguous() for arg in strided)
    results = [tuple_of(operator(name)(*args)) for args in (plain, strided)]
    check_fresh(plain, results[0])
    check_fresh(strided, results[1])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    for position in operator(name).writes:
        assert torch.equal(plain[position], strided[position])


@pytest.mark.parametrize("name", ops.__all__)
def test_only_what_is_written_changes(name: str) -> None:
    args, before = example(name), example(name)
    operator(name)(*args)
    changed = {k for k, (a, b) in enumerate(zip(args, before, strict=True)) if not torch.equal(a, b)}
    assert changed == set(operator(name).writes)


@pytest.mark.parametrize("name", BATCHED)
def test_no_rows_are_fine(name: str) -> None:
    args = [arg[:0] if k in BATCHED[name] else arg for k, arg in enumerate(example(name))]
    results = tuple_of(operator(name)(*args))
    whole = tuple_of(operator(name)(*example(name)))
    assert [tuple(result.shape) for result in results] == [(0, *result.shape[1:]) for result in whole]


@pytest.mark.parametrize("name", BATCHED)
@pytest.mark.parametrize("cut", range(1, ROWS))
def test_pieces_make_the_whole(name: str, cut: int) -> None:
    op, args = operator(name), example(name)
    g = nr.Graph(name, LAYOUTS.get(name))
    for k, arg in enumerate(args):
        shape = tuple(arg.shape)
        if k in BATCHED[name]:
            g.input(f"a{k}", shape, arg.dtype, batch=0)
        else:
            g.state(f"a{k}", shape, arg.dtype) if k in op.writes else g.constant(f"a{k}", shape, arg.dtype)
    g.output(**{f"y{k}": value for k, value in enumerate(tuple_of(op(*g.roots)))})
    runs = []
    for graph in (g, nr.nano_batch(g, [cut, ROWS - cut])):
        tensors = {f"a{k}": arg for k, arg in enumerate(example(name))}
        outputs = graph.eager(**tensors)
        runs.append([*outputs.values(), *(tensors[f"a{position}"] for position in op.writes)])
    for whole, pieces in zip(*runs, strict=True):
        torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-12)


# What they refuse.

F32, I64 = torch.float32, torch.int64
KV = ((5, 2, 4, 2, 6), F32)
REFUSED: list[tuple[str, list[tuple[tuple[int, ...], torch.dtype]]]] = [
    ("linear", [((4, 5), F32), ((3, 6), F32)]),
    ("linear", [((4, 5), F32), ((5,), F32)]),
    ("linear", [((4, 5), F32), ((3, 5), torch.float16)]),
    ("linear", [((4, 5), F32), ((3, 5), F32), ((1,), F32)]),
    ("linear", [((4, 5), F32), ((3, 5), F32), ((3,), F32), ((1, 3), F32)]),
    ("rms_norm", [((4, 5), F32), ((1,), F32)]),
    ("add_rms_norm", [((4, 5), F32), ((1, 5), F32), ((5,), F32)]),
    ("rope", [((4, 2, 5), F32), ((4,), I64)]),
    ("rope", [((4, 2, 6), F32), ((1,), I64)]),
    ("rope", [((4, 2, 6), F32), ((4,), F32)]),
    ("rope", [((4, 2, 6), F32), ((4,), I64), ((6,), F32)]),
    ("rope", [((4, 2, 6), F32), ((4,), I64), ((3,), I64)]),
    ("rope", [((4, 2, 6), F32), ((4,), I64), ((3, 1), F32)]),
    ("add", [((4, 5), F32), ((1, 5), F32)]),
    ("silu_mul", [((4, 5), F32), ((1, 5), F32)]),
    ("gated_add", [((4, 5), F32), ((4,), F32), ((4, 5), F32)]),
    ("gated_add", [((4, 5), F32), ((4, 5), F32), ((4, 5), F32)]),
    ("gated_add", [((4, 5), F32), ((4, 1), F32), ((1, 5), F32)]),
    ("recall", [((4,), I64), ((3,), torch.int32)]),
    ("recall", [((4,), I64), ((3, 1), I64)]),
    ("recall", [((4,), F32), ((3,), F32)]),
    ("embedding", [((4,), F32), ((9, 5), F32)]),
    ("embedding", [((4,), I64), ((9,), F32)]),
    ("argmax", [((4,), F32)]),
    ("sample", [((4, 9), F32), ((4,), F32), ((4,), F32), ((1,), I64), ((4,), F32)]),
    ("gather", [((4, 5), F32), ((2, 2), I64)]),
    ("scatter", [((4, 5), F32), ((2,), I64), ((1, 5), F32)]),
    ("store", [((4, 5), F32), ((1, 5), F32)]),
    ("store", [((4, 5), F32), ((4, 5), torch.float16)]),
    ("kv_append", [KV, ((3, 2, 6), F32), ((3, 2, 6), F32), ((4,), I64)]),
    ("kv_append", [KV, ((3, 2, 6), F32), ((1, 2, 6), F32), ((3,), I64)]),
    ("kv_append", [KV, ((3, 2, 6), torch.float16), ((3, 2, 6), F32), ((3,), I64)]),
    ("rope_kv_append", [KV, ((3, 4, 6), F32), ((3, 2, 6), F32), ((3, 2, 6), F32), ((3,), I64), ((4,), I64)]),
    ("rope_kv_append", [KV, ((3, 4, 8), F32), ((3, 2, 6), F32), ((3, 2, 6), F32), ((3,), I64), ((3,), I64)]),
    ("rope_kv_append", [KV, ((4, 4, 6), F32), ((3, 2, 6), F32), ((3, 2, 6), F32), ((3,), I64), ((3,), I64)]),
    ("rope_kv_append", [KV, ((3, 4, 6), F32), ((3, 2, 6), F32), ((1, 2, 6), F32), ((3,), I64), ((3,), I64)]),
    ("page_gather", [KV, ((3,), F32)]),
    ("page_scatter", [KV, ((3,), I64), ((1, 2, 4, 2, 6), F32)]),
    ("decode_attention", [((3, 3, 6), F32), KV, ((3, 4), I64), ((3,), I64)]),
    ("decode_attention", [((3, 4, 6), torch.float16), KV, ((3, 4), I64), ((3,), I64)]),
    ("decode_attention", [((3, 4, 6), F32), KV, ((2, 4), I64), ((3,), I64)]),
    ("decode_attention", [((3, 4, 6), F32), KV, ((2, 4), I64), ((3,), I64), ((2,), I64)]),
    ("prefill_attention", [((3, 4, 6), F32), KV, ((2, 4), I64), ((3,), I64), ((3,), F32)]),
    ("prefill_attention", [((3, 4, 7), F32), KV, ((2, 4), I64), ((3,), I64), ((3,), I64)]),
    ("prefill_attention", [((3, 4, 6), F32), KV, ((2, 4), I64), ((3,), I64)]),
]


@pytest.mark.parametrize(("name", "given"), REFUSED)
def test_wrong_shapes_are_refused_where_the_user_wrote_them(
    name: str, given: list[tuple[tuple[int, ...], torch.dtype]]
) -> None:
    g = nr.Graph("refused", nr.Layout(decode=3, kv_tokens=3))
    values = [
        (g.state if k in operator(name).writes else g.input)(f"a{k}", shape, dtype)
        for k, (shape, dtype) in enumerate(given)
    ]
    with pytest.raises(ShapeError, match=rf"test_ops_contract\.py:\d+: {name}"):
        operator(name)(*values)
    assert not g.nodes


# What waits for what.


def test_pieces_wait_for_the_tokens_they_read_and_for_nothing_else() -> None:
    g = nr.Graph("layer", nr.Layout(decode=4, prefill=4, kv_tokens=40))
    kv = g.state("kv", (9, 2, 4, 2, 6), F32)
    k, q = (g.input(name, (8, heads, 6), F32, batch=0) for name, heads in (("k", 2), ("q", 4)))
    slots, positions, requests = (g.input(name, (8,), I64, batch=0) for name in ("slots", "positions", "requests"))
    pages, idle = g.input("pages", (5, 3), torch.int32), g.input("idle", (2,), I64)
    ops.page_scatter(kv, g.input("due", (2,), I64), g.input("staging", (2, 2, 4, 2, 6), F32), needed=True)
    ops.kv_append(kv, k, k, slots)
    for operate, *rows in zip(
        (ops.decode_attention, ops.prefill_attention), g.split(q), g.split(positions), g.split(requests), strict=True
    ):
        operate(rows[0], kv, pages, *rows[1:])
    ops.page_gather(kv, idle)
    cut = nr.nano_batch(g, 2)
    waits = {node.name: {cut.nodes[pred].name for pred, _ in node.preds} for node in cut.nodes}
    assert waits == {
        "page_scatter": set(),
        "kv_append/0": set(),
        "kv_append/1": set(),
        "decode_attention/0": {"page_scatter", "kv_append/0"},
        "decode_attention/1": {"page_scatter", "kv_append/1"},
        "prefill_attention/0": {"page_scatter", "kv_append/0"},
        "prefill_attention/1": {"page_scatter", "kv_append/0", "kv_append/1"},
        "page_gather": set(),
    }
