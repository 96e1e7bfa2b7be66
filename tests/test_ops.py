from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import nanort as nr
from nanort import ops
from tolerances import TOLERANCES, assert_near

DTYPES = list(TOLERANCES)
SHAPES = [(0, 8), (1, 8), (5, 7), (33, 129)]


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 3, 5)])
def test_linear(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, bias = normal(*shape, dtype=dtype), normal(6, shape[-1], dtype=dtype), normal(6, dtype=dtype)
    scale = shape[-1] ** -0.5  # so that results are of the size that the tolerances are made for
    exact = torch.einsum("...k,nk->...n", x.double(), weight.double() * scale)
    assert_near(ops.linear(x, weight * scale), exact)
    assert_near(ops.linear(x, weight * scale, bias), exact + bias.double())
    residual = normal(*shape[:-1], 6, dtype=dtype, seed=1)
    assert_near(ops.linear(x, weight * scale, bias, residual), exact + bias.double() + residual.double())
    assert_near(ops.linear(x, weight * scale, None, residual), exact + residual.double())


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


def test_norms_of_heads_are_cut_along_the_rows() -> None:
    g = nr.Graph("heads", nr.Layout(decode=5))
    x = g.input("x", (5, 3, 8), torch.float64, batch=0)
    g.output(y=ops.rms_norm(x, g.constant("weight", (8,), torch.float64)))
    given = {"x": normal(5, 3, 8), "weight": normal(8, seed=1)}
    cut = nr.nano_batch(g, [2, 3])
    assert len(cut.nodes) == 2
    torch.testing.assert_close(cut.eager(1, **given)["y"], ops.rms_norm(*given.values()))


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


ROPES: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0},
    {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("given", ROPES, ids=lambda given: given["rope_type"])
def test_rope_by_frequencies_rounds_as_hugging_face_does(given: dict[str, Any], dtype: torch.dtype) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    x, positions = normal(33, 3, 64, dtype=dtype), torch.arange(1000, 1033)
    config = LlamaConfig(
        hidden_size=192,
        num_attention_heads=3,
        max_position_embeddings=1024,
        rope_parameters={**given, "rope_theta": 5e5},
    )
    theirs = LlamaRotaryEmbedding(config)
    rotated, _ = apply_rotary_pos_emb(x.transpose(0, 1)[None], x.transpose(0, 1)[None], *theirs(x, positions[None]))
    ours = ops.rope(x, positions, theirs.inv_freq, scale=theirs.attention_scaling)
    assert torch.equal(ours, rotated[0].transpose(0, 1))
    assert (theirs.attention_scaling != 1) == (given["rope_type"] == "yarn")


def test_rope_by_its_own_frequencies_is_rope() -> None:
    x, positions = normal(5, 3, 64, dtype=torch.float32), torch.tensor([9, 0, 4, 1, 300])
    frequencies = 1.0 / 5e5 ** (torch.arange(0, 64, 2, dtype=torch.float32) / 64)
    assert torch.equal(ops.rope(x, positions, frequencies), ops.rope(x, positions, theta=5e5))


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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gated_add(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, y = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype, seed=1)
    gate = normal(shape[0], 1, dtype=dtype, seed=2)
    assert_near(ops.gated_add(x, gate, y), x.double() + y.double() / (1 + torch.exp(-gate.double())))


@pytest.mark.parametrize("integer", [torch.int32, torch.int64])
def test_negative_tokens_are_recalled_and_others_are_themselves(integer: torch.dtype) -> None:
    drawn = torch.tensor([50, 51, 52], dtype=integer)
    recalled = ops.recall(torch.tensor([7, -1, 0, -3, -2, 2, -1], dtype=integer), drawn)
    assert recalled.tolist() == [7, 50, 0, 52, 51, 2, 50]
    assert recalled.dtype == integer


def test_a_token_that_no_seat_drew_is_refused() -> None:
    with pytest.raises(IndexError):
        ops.recall(torch.tensor([5, -4]), torch.tensor([50, 51, 52]))


def test_a_step_reads_what_the_one_before_drew() -> None:
    """Padding has the last place of the state to itself."""
    g = nr.Graph("step", nr.Layout(decode=2, prefill=2))
    tokens, seats = g.input("tokens", (4,), torch.int64, batch=0), g.input("seats", (3,), torch.int64)
    drawn, logits = g.state("drawn", (4,), torch.int64), g.input("logits", (3, 5), torch.float32)
    g.output(recalled=ops.recall(tokens, drawn))
    ops.scatter(drawn, seats, ops.argmax(logits))
    state = torch.tensor([20, 21, 22, 23])
    for graph in (g, nr.nano_batch(g, 2)):
        given = {"tokens": torch.tensor([-3, 9, 4, -1]), "seats": torch.tensor([2, 3, 3]), "drawn": state.clone()}
        out = graph.eager(1, **given, logits=torch.eye(3, 5))
        assert out["recalled"].tolist() == [22, 9, 4, 20]
        assert given["drawn"].tolist()[:3] == [20, 21, 0]


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


def test_store_keeps_rows_in_a_part_of_a_state() -> None:
    g = nr.Graph("kept")
    x = g.input("x", (3, 5), torch.float64)
    ops.store(g.state("kept", (7, 5), torch.float64).narrow(0, 2, 5), x)
    kept, rows = normal(7, 5), normal(3, 5, seed=1)
    wanted = torch.cat((kept[:2], rows, kept[5:]))
    g.eager(x=rows, kept=kept)
    assert torch.equal(kept, wanted)


@pytest.mark.parametrize("page_size", [4, 16, 64])
def test_kv_append_fills_the_slots_and_nothing_else(page_size: int) -> None:
    kv, k, v = torch.zeros(3, 2, page_size, 2, 5), normal(4, 2, 5, dtype=torch.float32), normal(4, 2, 5).float() + 1
    slots = [0, page_size - 1, 2 * page_size, page_size + 1]
    ops.kv_append(kv, k, v, torch.tensor(slots))
    for slot, key, value in zip(slots, k, v, strict=True):
        assert torch.equal(kv[slot // page_size, :, slot % page_size], torch.stack((key, value)))
    assert kv.ne(0).sum() == k.numel() + v.numel()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rope_kv_append_is_rope_then_kv_append(dtype: torch.dtype) -> None:
    q, k, v = (normal(5, heads, 6, dtype=dtype, seed=heads) for heads in (4, 2, 3))
    v, positions, slots = v[:, :2], torch.tensor([9, 0, 4, 1, 300]), torch.tensor([11, 0, 3, 4, 7])
    for given, how in (((), {"theta": 500.0}), ((torch.tensor([0.5, 0.3, 0.01]),), {"scale": 1.5})):
        kv, wanted = (torch.full((3, 2, 4, 2, 6), torch.nan, dtype=dtype) for _ in range(2))
        ops.kv_append(wanted, ops.rope(k, positions, *given, **how), v, slots)
        found = ops.rope_kv_append(kv, q, k, v, positions, slots, *given, **how)
        assert torch.equal(found, ops.rope(q, positions, *given, **how))
        torch.testing.assert_close(kv, wanted, rtol=0, atol=0, equal_nan=True)


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


@pytest.mark.parametrize("dtype", DTYPES)
def test_argmax(dtype: torch.dtype) -> None:
    logits = normal(33, 129, dtype=dtype)
    assert ops.argmax(logits).tolist() == [max(range(129), key=row.__getitem__) for row in logits.tolist()]
