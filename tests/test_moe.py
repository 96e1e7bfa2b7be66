from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, product
from statistics import mean
from typing import Any

import pytest
import torch

import nanort as nr
from nanort import ops
from nanort.errors import ModelError, ShapeError
from nanort.graphs import CONFIGS, DecoderConfig, decoder, decoder_step, random_weights, step_inputs
from nanort.operators import meta
from nanort.ops.moe import touched
from tolerances import TOLERANCES, assert_near

TINY = replace(CONFIGS["tiny"], model="mixtral", experts=4, experts_per_token=2)
EXPERTS, CHOSEN, HIDDEN, FFN = 5, 3, 16, 24


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def chosen(rows: int) -> torch.Tensor:
    """Different experts for each row."""
    generator = torch.Generator().manual_seed(4)
    return torch.stack([torch.randperm(EXPERTS, generator=generator)[:CHOSEN] for _ in range(rows)])


# Numbers.


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("top_k", [1, 2, EXPERTS])
def test_route_takes_the_largest_logits_and_weighs_them_alone(top_k: int, dtype: torch.dtype) -> None:
    x, weight = normal(1, 33, HIDDEN, dtype=dtype), normal(2, EXPERTS, HIDDEN, dtype=dtype) / 4
    experts, weights = ops.route(x, weight, top_k=top_k)
    logits = x.double() @ weight.double().T
    found = logits.gather(1, experts)
    assert all(len(set(row)) == top_k for row in experts.tolist())
    assert_near(found.to(dtype), logits.topk(top_k).values)  # which of two equal ones is chosen may be rounding
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(weights.double(), found.softmax(dim=1), rtol=tolerance, atol=tolerance)
    assert weights.dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_route_can_weigh_experts_among_all(dtype: torch.dtype) -> None:
    x, weight = normal(1, 33, HIDDEN, dtype=dtype), normal(2, EXPERTS, HIDDEN, dtype=dtype) / 4
    experts, weights = ops.route(x, weight, top_k=2, normalize=False)
    assert torch.equal(experts, ops.route(x, weight, top_k=2)[0])
    exact = (x.double() @ weight.double().T).softmax(dim=1).gather(1, experts)
    torch.testing.assert_close(weights.double(), exact, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])
    assert weights.dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("rows", [0, 1, 33])
def test_products_are_those_of_each_rows_experts(rows: int, dtype: torch.dtype) -> None:
    x, experts, weights = normal(1, rows, HIDDEN, dtype=dtype), chosen(rows or 1)[:rows], normal(2, rows, CHOSEN)
    up, down = normal(3, EXPERTS, FFN, HIDDEN, dtype=dtype) / 4, normal(4, EXPERTS, HIDDEN, FFN, dtype=dtype) / 8
    wide = torch.einsum("rkmn,rn->rkm", up.double()[experts], x.double())
    assert_near(ops.expert_linear(x, experts, up), wide.flatten(1))
    y = normal(5, rows, CHOSEN * FFN, dtype=dtype)
    exact = torch.einsum("rkmn,rkn,rk->rm", down.double()[experts], y.double().view(-1, CHOSEN, FFN), weights.double())
    assert_near(ops.expert_combine(y, experts, weights, down), exact)


@pytest.mark.parametrize("wrong", [-1, EXPERTS])
def test_an_expert_that_is_not_there_is_refused(wrong: int) -> None:
    experts = torch.tensor([[0, wrong, 2]])
    with pytest.raises((RuntimeError, ValueError)):
        ops.expert_linear(normal(1, 1, HIDDEN), experts, normal(2, EXPERTS, FFN, HIDDEN))


def mixtral(config: DecoderConfig, weights: dict[str, torch.Tensor]) -> Any:
    """transformers' Mixtral with our weights."""
    from transformers import MixtralConfig, MixtralForCausalLM

    from greedy import transformers_sizes

    settings = MixtralConfig(
        architectures=["MixtralForCausalLM"],
        **transformers_sizes(config),
        num_local_experts=config.experts,
        num_experts_per_tok=config.experts_per_token,
    )
    model = MixtralForCausalLM(settings).eval()
    theirs = {name: tensor for name, tensor in weights.items() if "block_sparse_moe" not in name}
    for i in range(config.layers):
        layer = {name: weights[f"model.layers.{i}.block_sparse_moe.{name}.weight"] for name in MOE}
        theirs[f"model.layers.{i}.mlp.gate.weight"] = layer["gate"]
        theirs[f"model.layers.{i}.mlp.experts.down_proj"] = layer["experts.w2"]
        gate_up = torch.cat((layer["experts.w1"], layer["experts.w3"]), dim=1)
        theirs[f"model.layers.{i}.mlp.experts.gate_up_proj"] = gate_up
    model.load_state_dict(theirs)
    return model


MOE = ("gate", "experts.w1", "experts.w2", "experts.w3")


@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_a_prompt_gives_the_logits_of_hugging_faces_mixtral(pieces: int) -> None:
    weights = random_weights(TINY, torch.float32, seed=3)
    model = mixtral(TINY, weights)
    assert DecoderConfig.from_hf(model.config.to_dict()) == TINY
    assert TINY.parameters == sum(parameter.numel() for parameter in model.parameters())
    graph = nr.nano_batch(decoder_step(TINY, decode=0, context=0, prefill=13, dtype=torch.float32), pieces)
    assert graph.layout is not None
    given = step_inputs(TINY, graph.layout, decode=0, context=0, prefill=13)
    cache = {root.name: torch.full(root.shape, torch.nan) for root in graph.roots if root.kind == "state"}
    with torch.no_grad():
        wanted = model(graph.layout.unpack(given["tokens"])[None]).logits[0, -1:]
    torch.testing.assert_close(graph.eager(**given, **weights, **cache)["logits"], wanted, rtol=1e-4, atol=1e-4)


def test_pieces_of_a_mixed_step_make_the_whole() -> None:
    how = {"decode": 5, "context": 20, "prefill": 12}
    graph = decoder_step(TINY, **how, dtype=torch.float32)
    outputs = []
    for cut in (graph, nr.nano_batch(graph, 2)):
        assert cut.layout is not None
        cache = {root.name: normal(0, *root.shape) for root in graph.roots if root.kind == "state"}
        given = step_inputs(TINY, cut.layout, **how)
        outputs.append(cut.eager(**given, **random_weights(TINY, torch.float32), **cache)["logits"])
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


# Demands.


def demand(op: nr.Op, *shapes: tuple[tuple[int, ...], torch.dtype], **static: Any) -> nr.Demand:
    args = tuple(meta(*shape) for shape in shapes)
    return op.work(args, op.outputs(args, static), static)


@pytest.mark.parametrize("rows", [1, 2])
def test_touched_is_the_mean_over_all_draws(rows: int) -> None:
    draws = product(combinations(range(EXPERTS), CHOSEN), repeat=rows)
    assert touched(EXPERTS, CHOSEN, rows) == pytest.approx(mean(len(set().union(*draw)) for draw in draws))


@pytest.mark.parametrize(("rows", "read"), [(0, 0.0), (1, CHOSEN), (1000, EXPERTS)])
def test_products_count_the_experts_that_rows_touch(rows: int, read: float) -> None:
    bf16, index = torch.bfloat16, ((rows, CHOSEN), torch.int64)
    up = demand(ops.expert_linear, ((rows, HIDDEN), bf16), index, ((EXPERTS, FFN, HIDDEN), bf16))
    assert up.flops == 2 * rows * CHOSEN * HIDDEN * FFN
    assert up.hbm_bytes == pytest.approx(rows * (2 * HIDDEN + 8 * CHOSEN + 2 * CHOSEN * FFN) + read * 2 * HIDDEN * FFN)
    wide, weights = ((rows, CHOSEN * FFN), bf16), ((rows, CHOSEN), torch.float32)
    down = demand(ops.expert_combine, wide, index, weights, ((EXPERTS, HIDDEN, FFN), bf16))
    assert down.flops == 2 * rows * CHOSEN * (FFN + 1) * HIDDEN
    assert down.hbm_bytes == pytest.approx(up.hbm_bytes + 4 * rows * CHOSEN)


def test_routing_reads_rows_once_and_writes_indices_and_weights() -> None:
    asked = demand(ops.route, ((9, HIDDEN), torch.bfloat16), ((EXPERTS, HIDDEN), torch.bfloat16), top_k=CHOSEN)
    assert asked.flops == 2 * 9 * EXPERTS * HIDDEN + 4 * 9 * CHOSEN
    assert asked.hbm_bytes == 2 * (9 + EXPERTS) * HIDDEN + 9 * CHOSEN * (8 + 4)
    among_all = demand(
        ops.route, ((9, HIDDEN), torch.bfloat16), ((EXPERTS, HIDDEN), torch.bfloat16), top_k=CHOSEN, normalize=False
    )
    assert among_all == replace(asked, flops=asked.flops + 4 * 9 * (EXPERTS - CHOSEN))


F32, BF16, I64 = torch.float32, torch.bfloat16, torch.int64
REFUSED: list[tuple[str, list[tuple[tuple[int, ...], torch.dtype]]]] = [
    ("route", [((7, 5), F32), ((4, 6), F32)]),
    ("route", [((7, 5), F32), ((4, 5), BF16)]),
    ("route", [((7, 5), F32), ((1, 5), F32)]),
    ("expert_linear", [((7, 5), F32), ((7, 2), F32), ((4, 3, 5), F32)]),
    ("expert_linear", [((7, 5), F32), ((6, 2), I64), ((4, 3, 5), F32)]),
    ("expert_linear", [((7, 5), F32), ((7, 2), I64), ((4, 5, 3), F32)]),
    ("expert_linear", [((7, 5), F32), ((7, 5), I64), ((4, 3, 5), F32)]),
    ("expert_linear", [((7, 5), F32), ((7, 2), I64), ((4, 3, 5), BF16)]),
    ("expert_linear", [((7, 5), F32), ((7, 0), I64), ((0, 3, 5), F32)]),
    ("expert_combine", [((7, 5), F32), ((7, 2), I64), ((7, 2), F32), ((4, 3, 5), F32)]),
    ("expert_combine", [((7, 10), F32), ((7, 2), I64), ((7, 1), F32), ((4, 3, 5), F32)]),
    ("expert_combine", [((7, 10), F32), ((7, 2), I64), ((7, 2), I64), ((4, 3, 5), F32)]),
]


@pytest.mark.parametrize(("name", "given"), REFUSED)
def test_wrong_shapes_are_refused(name: str, given: list[tuple[tuple[int, ...], torch.dtype]]) -> None:
    g = nr.Graph("refused")
    values = [g.input(f"a{k}", shape, dtype) for k, (shape, dtype) in enumerate(given)]
    operator: Callable[..., Any] = getattr(ops, name)
    with pytest.raises(ShapeError, match=rf"test_moe\.py:\d+: {name}"):
        operator(*values)


# Graphs and configurations.


def test_a_layer_routes_once_and_multiplies_by_three_stacks() -> None:
    layout = nr.Layout(decode=4, kv_tokens=40)
    nodes = decoder(TINY, layout, pages=8, requests=4, table_width=2).nodes
    names = [node.name for node in nodes if ("layer", 1) in node.scope]
    assert names[-6:-1] == [
        f"layer1.{name}" for name in ("route", "expert_gate", "expert_up", "silu_mul", "expert_down")
    ]


def test_a_dense_decoder_is_what_it_was_before_there_were_experts() -> None:
    """Schedules that were saved are found by their graph's fingerprint."""
    layout = nr.Layout(decode=4, prefill=5, kv_tokens=40)
    dense = decoder(CONFIGS["tiny"], layout, pages=8, requests=5, table_width=2)
    assert dense.fingerprint == "ef0798fb2f2cbec7dedacd2900b9597dfd7492f1f3b21dd7782ed0edcf09f254"


MIXTRAL: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}


def test_mixtral_8x7b_by_its_config_json() -> None:
    assert DecoderConfig.from_hf(MIXTRAL) == CONFIGS["mixtral-8x7b"]
    assert CONFIGS["mixtral-8x7b"].parameters == 46_702_792_704
    silent = {"num_experts_per_tok", "num_local_experts", "num_key_value_heads", "rms_norm_eps", "rope_theta"}
    spoken = {key: value for key, value in MIXTRAL.items() if key not in silent}
    assert DecoderConfig.from_hf(spoken) == CONFIGS["mixtral-8x7b"]
    newer = spoken | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
    assert DecoderConfig.from_hf(newer).theta == 500.0


@pytest.mark.parametrize("key", ["num_local_experts", "num_experts_per_tok"])
@pytest.mark.parametrize("size", [0, 2.0, "2"])
def test_a_count_of_experts_that_is_none(key: str, size: object) -> None:
    with pytest.raises(ModelError, match=f"config.json has {key}={size!r}"):
        DecoderConfig.from_hf(MIXTRAL | {key: size})


@pytest.mark.parametrize(("experts", "per_token"), [(4, 0), (4, 5), (0, 1), (-1, -1), (2.0, 1), ("4", 2), (4, True)])
def test_experts_that_cannot_be_chosen(experts: Any, per_token: Any) -> None:
    with pytest.raises(ModelError, match=f"experts_per_token={per_token!r} of experts={experts!r} cannot be chosen"):
        replace(TINY, experts=experts, experts_per_token=per_token)
