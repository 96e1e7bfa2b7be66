from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import nanort as nr
from decoder_steps import PAGE_SIZE, PAGES, TINY, WIDTH, empty_cache, inputs, layout_of, prompts, serve, served_by, step
from greedy import transformers_model
from nanort.errors import ModelError, UnsupportedModelError
from nanort.graphs import CONFIGS, DecoderConfig, decoder, offload, random_weights


@pytest.mark.parametrize(
    "config", [TINY, replace(TINY, tied=True, theta=500.0, kv_heads=1, head_dim=10)], ids=["tiny", "tied"]
)
def test_equals_hugging_face_token_for_token(config: DecoderConfig) -> None:
    weights = random_weights(config, torch.float32, seed=3)
    model = transformers_model(config, weights)
    assert DecoderConfig.from_hf(model.config.to_dict()) == config
    assert config.parameters == sum(parameter.numel() for parameter in model.parameters())
    for ours, theirs in zip(serve(config, weights), served_by(model), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pieces", [2, 3])
def test_nano_batches_give_the_same(pieces: int) -> None:
    weights = random_weights(TINY, torch.float32, seed=3)
    whole, cut = serve(TINY, weights), serve(TINY, weights, cut=lambda graph: nr.nano_batch(graph, pieces))
    for ours, theirs in zip(cut, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_plan_for_a_bucket_is_right_for_the_steps_in_it(pieces: int) -> None:
    weights = random_weights(TINY, torch.float32, seed=3)
    bucket = nr.Layout(decode=4, prefill=12, kv_tokens=64)
    whole = serve(TINY, weights)
    padded = serve(TINY, weights, layout=bucket, cut=lambda graph: nr.nano_batch(graph, pieces))
    for ours, theirs in zip(padded, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_sampling_draws_from_its_inputs() -> None:
    weights, texts = random_weights(TINY, torch.float32), prompts(5, 6)
    prefill = {0: (0, 5), 1: (0, 6)}
    greedy = step(TINY, weights, empty_cache(TINY), texts, {}, prefill)
    how = {"top_k": torch.zeros(3, dtype=torch.int64), "top_p": torch.ones(3)}
    drawn = step(
        TINY,
        weights,
        empty_cache(TINY),
        texts,
        {},
        prefill,
        uniform=torch.tensor([0.9999, 0.9999, 0.0]),
        temperature=torch.tensor([0.0, 100.0, 0.0]),
        **how,
    )
    assert torch.equal(drawn["logits"], greedy["logits"])
    assert drawn["tokens"][0] == greedy["tokens"][0]
    assert drawn["tokens"][1] != greedy["tokens"][1]


def test_a_step_of_decode_or_prefill_alone_has_no_node_for_the_other() -> None:
    def names(layout: nr.Layout) -> set[str]:
        return {node.op.name for node in decoder(TINY, layout, pages=8, requests=2, table_width=2).nodes}

    assert names(nr.Layout(prefill=5)) == names(nr.Layout(decode=2, prefill=5)) - {"decode_attention"}
    assert names(nr.Layout(decode=2)) == names(nr.Layout(decode=2, prefill=5)) - {"prefill_attention"}


def test_only_attention_and_appends_touch_a_layers_cache() -> None:
    graph = decoder(TINY, nr.Layout(decode=2, prefill=5), pages=8, requests=3, table_width=2)
    touching = [node.name for node in graph.nodes if any(value.name == "kv.1" for value in node.inputs)]
    assert touching == ["layer1.rope_kv_append", "layer1.decode_attention", "layer1.prefill_attention"]
    assert [root.name for root in graph.roots if root.batch == 0] == ["tokens", "positions", "slots", "requests"]
    constants = {root.name: (root.shape, root.dtype) for root in graph.roots if root.kind == "constant"}
    assert constants == TINY.weights(torch.float32)


def test_a_token_that_was_drawn_on_the_device_need_not_be_known() -> None:
    """Three requests at seats 2, 0 and nowhere: the next step names the seats instead of what was drawn there."""
    weights, texts, cache = random_weights(TINY, torch.float32, seed=3), prompts(7, 5, 13), empty_cache(TINY)
    seats, drawn = torch.tensor([2, 0, 4, 4]), torch.arange(100, 105)
    first = step(TINY, weights, cache, texts, {}, {0: (0, 7), 1: (0, 5), 2: (0, 13)}, seats=seats, drawn=drawn)
    a, b, c = first["tokens"].tolist()
    assert drawn.tolist()[:4] == [b, 101, a, 103], "the last entry is what nobody waits for"
    decode = {0: (7, 8), 1: (5, 6), 2: (13, 14)}
    known = [[*text, token] for text, token in zip(texts, (a, b, c), strict=True)]
    plain = {name: tensor.clone() for name, tensor in cache.items()}
    wanted = step(TINY, weights, plain, known, decode, {})
    named = [[*texts[0], -3], [*texts[1], -1], [*texts[2], c]]
    found = step(TINY, weights, cache, named, decode, {}, seats=torch.tensor([0, 4, 1, 4]), drawn=drawn)
    assert torch.equal(found["logits"], wanted["logits"])
    assert drawn.tolist()[:4] == [int(wanted["tokens"][0]), int(wanted["tokens"][2]), a, 103]


@pytest.mark.parametrize("pieces", [2, 3])
def test_pieces_recall_what_the_whole_has_drawn(pieces: int) -> None:
    layout = nr.Layout(decode=4, prefill=5, kv_tokens=40)
    graph = nr.nano_batch(decoder(TINY, layout, pages=8, requests=5, table_width=2, seats=6), pieces)
    names = [node.op.name for node in graph.nodes]
    assert names.count("recall") == pieces
    store = names.index("scatter")
    assert store > max(k for k, name in enumerate(names) if name == "recall")
    with nr.Executor(nr.co_schedule(graph, nr.device("cpu"), policy="serial"), backend="sim") as run:
        assert not run.program.hazards()


# Pages swapped beside the compute.


def swapped(**size: int) -> nr.Graph:
    layout = nr.Layout(decode=2, prefill=5, kv_tokens=9)
    return offload(TINY, layout, **size, pages=PAGES, page_size=PAGE_SIZE, requests=4, table_width=WIDTH)


def test_offload_saves_and_loads_pages_and_computes_the_same() -> None:
    texts, weights, cache = prompts(5, 4, 5), random_weights(TINY, torch.float32), empty_cache(TINY)
    step(TINY, weights, cache, texts, {}, {0: (0, 4), 1: (0, 3)})
    decode, prefill = {0: (4, 5), 1: (3, 4)}, {2: (0, 5)}
    given = inputs(texts, decode, prefill, layout_of(decode, prefill))
    plain = {name: tensor.clone() for name, tensor in cache.items()}
    wanted = step(TINY, weights, plain, texts, decode, prefill)
    free = sorted(set(range(1, PAGES)) - set(given["pages"].flatten().tolist()))
    out_pages, in_pages = torch.tensor(free[:3]), torch.tensor(free[1:3])  # two are saved, then loaded over
    for k, kv in enumerate(cache.values()):
        kv[out_pages] = torch.randn(3, *kv.shape[1:], generator=torch.Generator().manual_seed(k))
    loaded = {f"loaded.{i}": torch.randn(2, *cache["kv.0"].shape[1:]) for i in range(TINY.layers)}
    before = {name: kv[out_pages].clone() for name, kv in cache.items()}
    graph = swapped(swap_out=3, swap_in=2)
    out = graph.eager(**given, **weights, **cache, **loaded, swap_out=out_pages, swap_in=in_pages)
    assert torch.equal(out["logits"][:3], wanted["logits"])
    for i in range(TINY.layers):
        assert torch.equal(out[f"saved.{i}"], before[f"kv.{i}"])
        assert torch.equal(cache[f"kv.{i}"][in_pages], loaded[f"loaded.{i}"])
        own = given["pages"].unique()
        torch.testing.assert_close(cache[f"kv.{i}"][own], plain[f"kv.{i}"][own], rtol=0, atol=0, equal_nan=True)


def test_offload_moves_pages_beside_compute_in_both_directions() -> None:
    graph, plain = swapped(swap_out=3, swap_in=2), swapped(swap_out=0, swap_in=0)
    moves = {"page_gather", "to_host", "to_device", "page_scatter"}
    transfers = {node.index for node in graph.nodes if node.op.name in moves}
    assert len(transfers) == 4 * TINY.layers
    assert len(graph.nodes) - len(transfers) == len(plain.nodes), "no pages, no nodes"
    for node in graph.nodes:
        for pred, _ in node.preds:
            assert (pred in transfers) == (node.index in transfers), "no compute waits for pages, no page for compute"
    page_bytes = 2 * PAGE_SIZE * TINY.kv_heads * TINY.head_dim * 4
    assert sum(node.demand.d2h_bytes for node in graph.nodes) == 3 * page_bytes * TINY.layers
    assert sum(node.demand.h2d_bytes for node in graph.nodes) == 2 * page_bytes * TINY.layers
    assert {graph.outputs[f"saved.{i}"].device for i in range(TINY.layers)} == {"host"}
    nr.nano_batch(swapped(swap_out=3, swap_in=2), 2)


# Configurations.

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"], "sliding_window": None}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("llama-3-8b", 8_030_261_248), ("llama-3-70b", 70_553_706_496), ("smollm2-135m", 134_515_008)],
)
def test_known_configs_have_their_published_parameter_counts(name: str, parameters: int) -> None:
    assert CONFIGS[name].parameters == parameters


def test_config_json_of_llama_and_of_mistral_without_a_window() -> None:
    assert DecoderConfig.from_hf(LLAMA) == CONFIGS["llama-3-8b"]
    assert DecoderConfig.from_hf(MISTRAL) == CONFIGS["llama-3-8b"]
    short = {key: LLAMA[key] for key in list(LLAMA)[:6] if key != "max_position_embeddings"} | {"vocab_size": 32000}
    assert DecoderConfig.from_hf(short) == DecoderConfig(32, 4096, 14336, 32, 32, 128, 32000, eps=1e-6)
    newer = {key: value for key, value in LLAMA.items() if not key.startswith("rope")}
    newer["rope_parameters"] = {"rope_type": "default", "rope_theta": 500000.0}
    assert DecoderConfig.from_hf(newer) == CONFIGS["llama-3-8b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, r"GPT2LMHeadModel is not supported: \['LlamaForCausalLM', 'Mistral"),
        ({"architectures": None}, "architecture none is not supported"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 8.0}}, "rope of type 'dynamic'"),
        ({"rope_scaling": {"full_attention": {}, "rope_type": {}}}, "rope of type {}"),
        ({"rope_parameters": [1.0]}, r"rope_parameters=\[1\.0\] is not supported"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope of 0.5 of each head"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config={'quant_method': 'awq'}"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling_my.LlamaForCausalLM"}}, r"LlamaForCausalLM comes with code"),
        ({"architectures": ["Mine"], "auto_map": {"AutoModelForCausalLM": "my.Mine"}}, "without trust_remote_code"),
    ],
)
def test_models_that_would_be_computed_wrongly_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        DecoderConfig.from_hf(LLAMA | change)


def test_requests_end_where_a_sliding_window_would_begin_to_slide() -> None:
    silent = {key: value for key, value in MISTRAL.items() if key != "sliding_window"}
    assert DecoderConfig.from_hf(silent).max_positions == 4096
    assert DecoderConfig.from_hf(MISTRAL | {"sliding_window": 1024}).max_positions == 1024
    assert DecoderConfig.from_hf(MISTRAL | {"sliding_window": 10**6}).max_positions == 8192
    unused = LLAMA | {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 1024}
    assert DecoderConfig.from_hf(unused).max_positions == 8192
    assert DecoderConfig.from_hf(unused | {"use_sliding_window": True}).max_positions == 1024
    with pytest.raises(ModelError, match="sliding_window=0"):
        DecoderConfig.from_hf(MISTRAL | {"sliding_window": 0})


@pytest.mark.parametrize("size", ["4096", 4096.0, None, 0, True])
@pytest.mark.parametrize(
    "key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size"]
)
def test_a_size_that_is_missing_or_no_whole_number(key: str, size: object) -> None:
    with pytest.raises(ModelError, match=f"config.json has {key}={size!r}"):
        DecoderConfig.from_hf(LLAMA | {key: size})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_heads": 3}, "cannot share"),
        ({"head_dim": 15}, "odd"),
        ({"layers": 0}, "layers=0"),
        ({"eps": 0.0}, "eps=0.0"),
        ({"theta": float("nan")}, "theta=nan"),
        ({"tied": 1}, "tied=1"),
        ({"normalize": None}, "normalize=None"),
        ({"layers": 10**6}, "layers=1000000 are more than any model has"),
        ({"head_dim": 10**6}, "head_dim=1000000 are more than any model has"),
        ({"rope_scale": 0.0}, "rope_scale=0.0"),
        ({"frequencies": (1.0,)}, "1 frequencies for the 8 pairs"),
        ({"shared_ffn": -1}, "shared_ffn=-1"),
        ({"model": "bert"}, "model='bert' is not registered"),
        ({"model": "mixtral"}, "experts=0 of model='mixtral'"),
        ({"experts": 4, "experts_per_token": 2}, "experts=4 of model='llama'"),
    ],
)
def test_sizes_that_contradict_each_other(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        replace(TINY, **change)
    with pytest.raises(ModelError, match="no multiple of num_attention_heads=32"):
        DecoderConfig.from_hf(LLAMA | {"hidden_size": 4100})


def test_random_weights_are_the_seeds_and_keep_the_variance() -> None:
    once, again, other = (random_weights(TINY, torch.float32, seed) for seed in (0, 0, 1))
    assert {name: (tuple(w.shape), w.dtype) for name, w in once.items()} == TINY.weights(torch.float32)
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert not any(torch.equal(once[name], other[name]) for name in once)
    rows = torch.randn(200, TINY.hidden, generator=torch.Generator().manual_seed(0))
    assert 0.8 < (rows @ once["model.layers.0.mlp.up_proj.weight"].T).std() < 1.25
