from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import nanort as nr
from nanort import ops
from nanort.errors import ShapeError
from nanort.operators import meta
from tolerances import TOLERANCES, assert_near

DTYPES = list(TOLERANCES)
SHAPES = [(0, 8), (1, 8), (5, 7), (33, 129)]
ROWS = 7

BATCHED = {
    "add_rms_norm": (0, 1),
    "argmax": (0,),
    "decode_attention": (0, 2, 3),
    "embedding": (0,),
    "kv_append": (1, 2, 3),
    "linear": (0,),
    "prefill_attention": (0, 3, 4),
    "rms_norm": (0,),
    "rope": (0, 1),
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
}


def operator(name: str) -> nr.Op:
    return getattr(ops, name)


def example(name: str) -> tuple[torch.Tensor, ...]:
    found = operator(name).arguments()
    assert found is not None
    return found


def tuple_of(result: Any) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else () if result is None else (result,)


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


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


@pytest.mark.parametrize("name", ops.__all__)
def test_results_are_fresh_and_contiguous_whatever_the_strides_of_the_arguments(name: str) -> None:
    args = example(name)
    strided = [torch.stack((arg, arg), dim=-1)[..., 0] for arg in args]
    assert not any(arg.is_contiguous() for arg in strided)
    results = tuple_of(operator(name)(*strided))
    mine = {arg.untyped_storage().data_ptr() for arg in strided}
    fresh = [result.untyped_storage().data_ptr() for result in results]
    assert len({*fresh, *mine}) == len(fresh) + len(mine)
    assert all(result.is_contiguous() for result in results)
    for result, plain in zip(results, tuple_of(operator(name)(*args)), strict=True):
        torch.testing.assert_close(result, plain)
    for position in operator(name).writes:
        torch.testing.assert_close(strided[position], args[position])


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


# What each of them computes.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 3, 5)])
def test_linear(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, bias = normal(*shape, dtype=dtype), normal(6, shape[-1], dtype=dtype), normal(6, dtype=dtype)
    scale = shape[-1] ** -0.5  # so that results are of the size that the tolerances are made for
    exact = torch.einsum("...k,nk->...n", x.double(), weight.double() * scale)
    assert_near(ops.linear(x, weight * scale), exact)
    assert_near(ops.linear(x, weight * scale, bias), exact + bias.double())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = normal(*shape, dtype=dtype), normal(shape[1], dtype=dtype, seed=1)
    exact = F.rms_norm(x.double(), (shape[1],), weight.double(), eps=1e-3)
    assert_near(ops.rms_norm(x, weight, eps=1e-3), exact)
    residual = normal(*shape, dtype=dtype, seed=2)
    normed, total = ops.add_rms_norm(x, residual, weight, eps=1e-3)
    assert torch.equal(total, x + residual)
    assert_near(normed, F.rms_norm(total.double(), (shape[1],), weight.double(), eps=1e-3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_norms_and_rope_round_as_hugging_face_does(dtype: torch.dtype) -> None:
    """Greedy tokens flip where the two best logits are close: the order of roundings matters."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding, apply_rotary_pos_emb

    x, positions = normal(33, 3, 64, dtype=dtype), torch.arange(1000, 1033)
    theirs = LlamaRMSNorm(64, eps=1e-6).to(dtype)
    theirs.weight.data = normal(64, dtype=dtype, seed=1)
    assert torch.equal(ops.rms_norm(x, theirs.weight.data, eps=1e-6), theirs(x).detach())
    config = LlamaConfig(
        hidden_size=192, num_attention_heads=3, rope_parameters={"rope_type": "default", "rope_theta": 5e5}
    )
    cos, sin = LlamaRotaryEmbedding(config)(x, positions[None])
    rotated, _ = apply_rotary_pos_emb(x.transpose(0, 1)[None], x.transpose(0, 1)[None], cos, sin)
    assert torch.equal(ops.rope(x, positions, theta=5e5), rotated[0].transpose(0, 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "heads", "dim"), [(1, 1, 2), (5, 3, 6), (33, 4, 64)])
def test_rope_turns_pairs_of_numbers_in_the_plane(rows: int, heads: int, dim: int, dtype: torch.dtype) -> None:
    x, positions = normal(rows, heads, dim, dtype=dtype), torch.arange(rows) * 3
    plane = torch.complex(*x.double().chunk(2, dim=-1))
    angles = positions[:, None, None] / 1e4 ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    turned = plane * torch.polar(torch.ones_like(angles), angles)
    exact = torch.cat((turned.real, turned.imag), dim=-1)
    if dtype is torch.float64:  # the angles are float32 even then
        torch.testing.assert_close(ops.rope(x, positions), exact, rtol=1e-4, atol=1e-4)
    else:
        assert_near(ops.rope(x, positions), exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_silu_mul(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    gate, up = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype, seed=1)
    assert_near(ops.silu_mul(gate, up), gate.double() / (1 + torch.exp(-gate.double())) * up.double())


@pytest.mark.parametrize("integer", [torch.int32, torch.int64])
def test_embedding_and_gather_take_rows(integer: torch.dtype) -> None:
    table, index = normal(9, 5), torch.tensor([8, 0, 8, 3], dtype=integer)
    rows = torch.stack([table[k] for k in (8, 0, 8, 3)])
    assert torch.equal(ops.embedding(index, table), rows)
    assert torch.equal(ops.gather(table, index), rows)


@pytest.mark.parametrize("integer", [torch.int32, torch.int64])
def test_scatter_undoes_gather(integer: torch.dtype) -> None:
    x, index = normal(9, 5), torch.tensor([8, 0, 3], dtype=integer)
    y = torch.zeros(9, 5, dtype=torch.float64)
    ops.scatter(y, index, ops.gather(x, index))
    assert torch.equal(y, torch.stack([row * (k in (8, 0, 3)) for k, row in enumerate(x)]))


@pytest.mark.parametrize("page_size", [4, 16, 64])
def test_kv_append_fills_the_slots_and_nothing_else(page_size: int) -> None:
    kv, k, v = torch.zeros(3, 2, page_size, 2, 5), normal(4, 2, 5, dtype=torch.float32), normal(4, 2, 5).float() + 1
    slots = [0, page_size - 1, 2 * page_size, page_size + 1]
    ops.kv_append(kv, k, v, torch.tensor(slots))
    for slot, key, value in zip(slots, k, v, strict=True):
        assert torch.equal(kv[slot // page_size, :, slot % page_size], torch.stack((key, value)))
    assert kv.ne(0).sum() == k.numel() + v.numel()


@pytest.mark.parametrize("integer", [torch.int32, torch.int64])
def test_pages_travel(integer: torch.dtype) -> None:
    kv, pages = normal(5, 2, 4, 3, 6), torch.tensor([4, 0, 2], dtype=integer)
    staging = ops.to_device(ops.to_host(ops.page_gather(kv, pages)))
    assert torch.equal(staging, torch.stack([kv[4], kv[0], kv[2]]))
    other = torch.zeros_like(kv)
    ops.page_scatter(other, pages, staging)
    assert torch.equal(other, torch.stack([kv[0], other[1], kv[2], other[3], kv[4]]))
    assert not other[[1, 3]].any()


def test_transfers_say_where_their_results_live() -> None:
    g = nr.Graph("there and back")
    there = ops.to_device(g.input("x", (4,), torch.float32, device="host"))
    assert (there.device, ops.to_host(there).device) == ("device", "host")


# Sampling.


def rows_of(logits: torch.Tensor, uniform: torch.Tensor, t: float, k: int = 0, p: float = 1.0) -> torch.Tensor:
    """Tokens of one row of logits at many draws, with the same parameters."""
    n = len(uniform)
    return ops.sample(logits.expand(n, -1), uniform, torch.full((n,), t), torch.full((n,), k), torch.full((n,), p))


def frequencies(tokens: torch.Tensor, vocabulary: int) -> torch.Tensor:
    return torch.bincount(tokens, minlength=vocabulary) / len(tokens)


EVEN = (torch.arange(4096) + 0.5) / 4096  # draws that meet every part of the distribution as often as it is likely


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_sample_draws_as_often_as_likely(temperature: float) -> None:
    logits = normal(11, dtype=torch.float32)
    found = frequencies(rows_of(logits, EVEN, temperature), 11)
    torch.testing.assert_close(found, (logits / temperature).softmax(0), rtol=0, atol=2 / 4096)


@pytest.mark.parametrize(("k", "p"), [(1, 1.0), (3, 1.0), (99, 1.0), (0, 0.6), (0, 1e-6), (5, 0.7)])
def test_sample_filters_as_hugging_face_does(k: int, p: float) -> None:
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    logits = normal(1, 11, dtype=torch.float32)
    kept = TopKLogitsWarper(k)(None, logits) if k else logits
    kept = TopPLogitsWarper(p)(None, kept) if p < 1 else kept
    found = frequencies(rows_of(logits[0], EVEN, 1.0, k, p), 11)
    torch.testing.assert_close(found, kept[0].softmax(0), rtol=0, atol=2 / 4096)


def test_sample_at_temperature_zero_is_argmax_whatever_the_rest_says() -> None:
    logits = normal(20, 9, dtype=torch.float32)
    logits[:, 4] = logits[:, 7] = 10.0  # of equals, the first
    half = torch.full((20,), 0.5)
    tokens = ops.sample(logits, half, torch.zeros(20), torch.full((20,), 3), half)
    assert torch.equal(tokens, ops.argmax(logits))
    assert torch.equal(tokens, torch.full((20,), 4))


def test_sample_never_takes_what_is_impossible() -> None:
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0])
    ends = torch.tensor([0.0, 1.0 - 2.0**-24])
    assert rows_of(logits, ends, 1.0).tolist() == [1, 3]
    assert rows_of(logits, ends, 1.0, k=1).tolist() == [1, 1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_argmax(dtype: torch.dtype) -> None:
    logits = normal(33, 129, dtype=dtype)
    assert ops.argmax(logits).tolist() == [max(range(129), key=row.__getitem__) for row in logits.tolist()]


# What they refuse.

F32, I64 = torch.float32, torch.int64
KV = ((5, 2, 4, 2, 6), F32)
REFUSED: list[tuple[str, list[tuple[tuple[int, ...], torch.dtype]]]] = [
    ("linear", [((4, 5), F32), ((3, 6), F32)]),
    ("linear", [((4, 5), F32), ((5,), F32)]),
    ("linear", [((4, 5), F32), ((3, 5), torch.float16)]),
    ("linear", [((4, 5), F32), ((3, 5), F32), ((1,), F32)]),
    ("rms_norm", [((4, 5), F32), ((1,), F32)]),
    ("add_rms_norm", [((4, 5), F32), ((1, 5), F32), ((5,), F32)]),
    ("rope", [((4, 2, 5), F32), ((4,), I64)]),
    ("rope", [((4, 2, 6), F32), ((1,), I64)]),
    ("rope", [((4, 2, 6), F32), ((4,), F32)]),
    ("silu_mul", [((4, 5), F32), ((1, 5), F32)]),
    ("embedding", [((4,), F32), ((9, 5), F32)]),
    ("embedding", [((4,), I64), ((9,), F32)]),
    ("argmax", [((4,), F32)]),
    ("sample", [((4, 9), F32), ((4,), F32), ((4,), F32), ((1,), I64), ((4,), F32)]),
    ("gather", [((4, 5), F32), ((2, 2), I64)]),
    ("scatter", [((4, 5), F32), ((2,), I64), ((1, 5), F32)]),
    ("kv_append", [KV, ((3, 2, 6), F32), ((3, 2, 6), F32), ((4,), I64)]),
    ("kv_append", [KV, ((3, 2, 6), F32), ((1, 2, 6), F32), ((3,), I64)]),
    ("kv_append", [KV, ((3, 2, 6), torch.float16), ((3, 2, 6), F32), ((3,), I64)]),
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
    with pytest.raises(ShapeError, match=rf"test_ops\.py:\d+: {name}"):
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
