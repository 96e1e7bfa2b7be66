"""Every architecture beside transformers' own: tiny random models by way of the files that transformers writes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import nanort as nr
import serving_models
from decoder_steps import serve, served_by
from nanort import graphs, ops
from nanort.checkpoints.weights import load_weights, open_checkpoint
from nanort.errors import ModelError, UnsupportedModelError
from nanort.graphs import MODELS, DecoderConfig, Model, decoder, llama, random_weights
from nanort.graphs.decoder import Layer
from nanort.graphs.rope import scaled
from serving_models import TinyModel
from tree import ROOT

gguf = pytest.importorskip("gguf")
NAMES = list(serving_models.MODELS)
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1 + k / 10 for k in range(8)],
    "long_factor": [3.0] * 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[TinyModel, Path]]:
    """A model by its name, made once, and its folder."""
    made: dict[str, tuple[TinyModel, Path]] = {}

    def make(name: str) -> tuple[TinyModel, Path]:
        if name not in made:
            folder = tmp_path_factory.mktemp("model")
            made[name] = TinyModel.make(name, folder), folder
        return made[name]

    return make


Tiny = Callable[[str], tuple[TinyModel, Path]]


@pytest.mark.parametrize("name", NAMES)
def test_prefill_and_decode_give_the_logits_of_transformers(tiny: Tiny, name: str) -> None:
    model, _ = tiny(name)
    assert model.config.parameters == sum(parameter.numel() for parameter in model.theirs.parameters())
    for ours, theirs in zip(serve(model.config, model.weights), served_by(model.theirs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_halves_are_as_near_to_the_whole_as_those_of_transformers(tiny: Tiny, name: str, dtype: torch.dtype) -> None:
    model, folder = tiny(name)
    with open_checkpoint(folder) as checkpoint:
        weights = load_weights(checkpoint, model.config, dtype)
    assert {name for name, weight in weights.items() if weight.dtype != dtype} <= {"rope.frequencies"}
    prompt = torch.arange(1, 8)[None]
    with torch.no_grad():
        exact = model.theirs(prompt).logits[0, -1].double()
    theirs = type(model.theirs).from_pretrained(folder, dtype=dtype)
    with torch.no_grad():
        rounded = theirs(prompt).logits[0, -1].double()
    how = {"decode": 0, "context": 0, "prefill": 7}
    graph = graphs.decoder_step(model.config, **how, dtype=dtype)
    given = graphs.step_inputs(model.config, graph.layout or nr.Layout(), **how) | {"tokens": prompt[0]}
    cache = {root.name: torch.full(root.shape, torch.nan, dtype=dtype) for root in graph.roots if root.kind == "state"}
    ours = graph.eager(**given, **weights, **cache)["logits"][0].double()
    assert (ours - exact).norm() < 2 * (rounded - exact).norm() + 1e-3 * exact.norm()


@pytest.mark.parametrize("name", ["phi3", "mixtral", "qwen2_moe"])
def test_shards_hold_what_one_file_does(tiny: Tiny, name: str, tmp_path: Path) -> None:
    model, _ = tiny(name)
    model.theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    with open_checkpoint(tmp_path) as checkpoint:
        weights = load_weights(checkpoint, model.config, torch.float32)
    assert all(torch.equal(weights[name], weight) for name, weight in model.weights.items())


# GGUF.

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA, "llama, scaled as llama3": gguf.MODEL_ARCH.LLAMA,
    "llama, scaled linearly": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen2, scaled by yarn": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3, "phi3": gguf.MODEL_ARCH.PHI3,
    "mixtral": gguf.MODEL_ARCH.LLAMA, "qwen2_moe": gguf.MODEL_ARCH.QWEN2MOE, "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
}  # fmt: skip


def write_gguf(path: Path, model: TinyModel, folder: Path, architecture: Any) -> None:
    """The file that llama.cpp's converter makes of a folder, names by the table that comes with the gguf package."""
    config, writer = model.config, gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_block_count(config.layers)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden)
    writer.add_feed_forward_length(config.ffn)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.eps)
    writer.add_rope_freq_base(config.theta)
    if config.experts:
        writer.add_expert_count(config.experts)
        writer.add_expert_used_count(config.experts_per_token)
    if config.model in ("qwen2_moe", "qwen3_moe"):
        writer.add_expert_feed_forward_length(config.ffn)
    rope = model.theirs.config.rope_parameters
    if rope["rope_type"] == "llama3":
        plain = config.theta ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / torch.tensor(config.frequencies)).numpy())
    elif rope["rope_type"] != "default":
        kinds = {"linear": gguf.RopeScalingType.LINEAR, "yarn": gguf.RopeScalingType.YARN}
        writer.add_rope_scaling_type(kinds[rope["rope_type"]])
        writer.add_rope_scaling_factor(rope["factor"])
        if known := rope.get("original_max_position_embeddings"):
            writer.add_rope_scaling_orig_ctx_len(known)
    table = gguf.get_tensor_name_map(architecture, config.layers)
    with open_checkpoint(folder) as checkpoint:
        stored = checkpoint.load({name: shape for name, (shape, _) in checkpoint.names.items()}, torch.float32)
    stacks: dict[str, list[torch.Tensor]] = {}
    for name, tensor in stored.items():
        module, _, kind = re.sub(r"experts\.\d+\.", "experts.", name).rpartition(".")
        if architecture == gguf.MODEL_ARCH.LLAMA and (heads := {"q": config.heads, "k": config.kv_heads}.get(
            module.removesuffix("_proj").rpartition(".")[2]
        )):  # fmt: skip
            tensor = tensor.view(heads, 2, -1, config.hidden).transpose(1, 2).reshape(tensor.shape)
        stacks.setdefault(f"{table.get_name(module)}.{kind}", []).append(tensor)
    for name, parts in stacks.items():
        whole = torch.stack(parts) if len(parts) > 1 else parts[0].squeeze()
        writer.add_tensor(name, whole.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gguf_holds_what_the_folder_does(tiny: Tiny, name: str, tmp_path: Path) -> None:
    model, folder = tiny(name)
    write_gguf(tmp_path / "model.gguf", model, folder, ARCHITECTURES[name])
    with open_checkpoint(tmp_path / "model.gguf") as checkpoint:
        config = DecoderConfig.from_hf(checkpoint.config)
        weights = load_weights(checkpoint, config, torch.float32)
    assert weights.keys() == model.weights.keys()
    assert all(torch.equal(weights[name], model.weights[name]) for name in model.config.weights(torch.float32))
    torch.testing.assert_close(config.frequencies, model.config.frequencies, rtol=1e-5, atol=0)
    figures = ("eps", "theta", "rope_scale")
    assert [getattr(config, name) for name in figures] == pytest.approx(
        [getattr(model.config, name) for name in figures]
    )
    exact = {name: getattr(model.config, name) for name in (*figures, "frequencies")}
    assert replace(config, **exact) == model.config


# Published models, by what their config.json says of their sizes: hidden, ffn, layers, heads, KV heads and vocabulary.

PUBLISHED: list[tuple[str, tuple[int, ...], dict[str, Any], int, int]] = [
    ("Qwen2", (3584, 18944, 28, 28, 4, 152064), {"sliding_window": 131072}, 7_615_616_512, 32768),
    ("Qwen3", (4096, 12288, 36, 32, 8, 151936), {"max_position_embeddings": 40960}, 8_190_735_360, 40960),
    ("Phi3", (3072, 8192, 32, 32, 32, 32064), {"sliding_window": 2047}, 3_821_079_552, 2047),
    ("Qwen3Moe", (2048, 6144, 48, 32, 4, 151936), {"head_dim": 128, "moe_intermediate_size": 768, "num_experts": 128,
     "num_experts_per_tok": 8, "norm_topk_prob": True}, 30_532_122_624, 32768),
    ("Qwen2Moe", (2048, 5632, 24, 16, 16, 151936), {"moe_intermediate_size": 1408, "num_experts": 60,
     "num_experts_per_tok": 4, "shared_expert_intermediate_size": 5632}, 14_315_784_192, 32768),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "sizes", "more", "parameters", "context"), PUBLISHED, ids=lambda value: str(value)[:8]
)
def test_published_models_have_their_parameters(
    name: str, sizes: tuple[int, ...], more: dict[str, Any], parameters: int, context: int
) -> None:
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    stated = dict(zip((*keys, "vocab_size"), sizes, strict=True)) | more
    config = DecoderConfig.from_hf({"architectures": [f"{name}ForCausalLM"], **stated})
    assert (config.parameters, config.max_positions) == (parameters, context)


def test_a_window_is_kept_where_transformers_keeps_it() -> None:
    """Only Qwen's models ask ``use_sliding_window`` whether there is one."""
    keys = {"vocab_size": 257, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
            "num_attention_heads": 8, "max_position_embeddings": 512, "sliding_window": 32}  # fmt: skip
    for name, reach in (("Mistral", 32), ("Mixtral", 32), ("Phi3", 32), ("Qwen2", 512), ("Qwen3", 512)):
        stated = keys | {"architectures": [f"{name}ForCausalLM"], "use_sliding_window": False}
        assert DecoderConfig.from_hf(stated).max_positions == reach


def test_yarn_serves_the_texts_that_it_stretches_to() -> None:
    """A config may state the length before it was stretched, as Qwen's do, or the one after."""
    keys = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 100,
            "num_attention_heads": 8, "architectures": ["Qwen2ForCausalLM"]}  # fmt: skip
    rope = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768}
    for stated in (32768, 131072):
        config = keys | {"max_position_embeddings": stated, "rope_parameters": rope}
        assert DecoderConfig.from_hf(config).max_positions == 131072
        windowed = config | {"sliding_window": 4096, "use_sliding_window": True}
        assert DecoderConfig.from_hf(windowed).max_positions == 4096


def test_more_experts_than_any_model_has_are_refused() -> None:
    with pytest.raises(ModelError, match="more than any model has"):
        DecoderConfig(2, 64, 32, 4, 2, 16, 257, experts=1 << 30, experts_per_token=2, model="mixtral")


# Rope.

ROPES: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 8192},
    {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 64},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    {"rope_type": "yarn", "factor": 0.5, "original_max_position_embeddings": 32},
    {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0,
     "mscale_all_dim": 0.707, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
    {"rope_type": "yarn", "factor": 8.0, "attention_factor": 0.7, "original_max_position_embeddings": 1024},
    LONGROPE | {"original_max_position_embeddings": 4096},
    LONGROPE | {"original_max_position_embeddings": 512, "factor": 4.0, "attention_factor": 1.5},
]  # fmt: skip


@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: str(rope["rope_type"]))
def test_scaled_angles_are_those_of_transformers(rope: dict[str, Any], theta: float) -> None:
    settings = LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        max_position_embeddings=65536,
        rope_parameters=rope | {"rope_theta": theta},
    )
    wanted, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](settings, "cpu")
    found = scaled(rope, theta, 16, 65536)
    assert found is not None
    torch.testing.assert_close(torch.tensor(found.frequencies), wanted, rtol=1e-6, atol=0)
    assert found.scale == pytest.approx(scale, rel=1e-12)


def test_longrope_serves_texts_of_the_original_length(tmp_path: Path) -> None:
    sizes = {"vocab_size": 257, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "max_position_embeddings": 512, "original_max_position_embeddings": 128}
    settings = Phi3Config(**sizes, **heads, rope_parameters=dict(LONGROPE), pad_token_id=0, eos_token_id=0)
    model = serving_models.AutoModelForCausalLM.from_config(settings, dtype=torch.float32).eval()
    model.save_pretrained(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        config = DecoderConfig.from_hf(checkpoint.config)
        weights = load_weights(checkpoint, config, torch.float32)
    assert config.max_positions == 128
    assert config.rope_scale > 1
    for ours, theirs in zip(serve(config, weights), served_by(model), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear"},
        {"rope_type": "linear", "factor": 0},
        {"rope_type": "linear", "factor": 10**400},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0},
        {"rope_type": "yarn", "factor": "4"},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 10**400},
        {"rope_type": "longrope", "short_factor": [1.0] * 7},
        {"rope_type": "longrope", "short_factor": [1.0] * 7 + [None]},
        {"rope_type": "divided", "factors": 1.0},
    ],
)
def test_ropes_that_cannot_be_are_refused(rope: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        scaled(rope, 1e4, 16, 512)
    with pytest.raises(UnsupportedModelError, match="only 'default', 'linear', 'llama3'"):
        scaled({"rope_type": "ntk"}, 1e4, 16, 512)
    with pytest.raises(ModelError, match="yarn needs more than 1"):
        scaled({"rope_type": "yarn", "factor": 2.0}, 1.0, 16, 512)


# Writing one.


def files() -> list[Path]:
    """The files of the models that come with nanort."""
    return [path for path in (ROOT / "graphs").glob("*.py") if "\nregister(" in path.read_text(encoding="utf-8")]


def test_a_model_is_one_file_of_at_most_80_lines() -> None:
    assert {path.stem for path in files()} <= MODELS.keys()
    assert [path.name for path in files() if len(path.read_text(encoding="utf-8").splitlines()) > 80] == []


def test_the_shared_expert_and_the_routed_ones_wait_for_each_other_only_where_they_are_added() -> None:
    config = DecoderConfig(1, 64, 32, 4, 2, 16, 257, experts=4, experts_per_token=2, model="qwen2_moe", shared_ffn=48)
    nodes = decoder(config, nr.Layout(decode=4, kv_tokens=40), pages=8, requests=4, table_width=2).nodes
    before: list[set[str]] = []
    for node in nodes:
        before.append({nodes[pred].op.name for pred, _ in node.preds}.union(*(before[pred] for pred, _ in node.preds)))
    names = {node.name: reached for node, reached in zip(nodes, before, strict=True)}
    assert "route" not in names["layer0.shared_down_proj"]
    assert "route" in names["layer0.expert_down"]
    assert names["layer0.gated_add"] >= {"route", "expert_combine", "silu_mul"}


@pytest.fixture
def own() -> Iterator[Model]:
    """A Llama whose layers run attention and the gated layer side by side, on the same input."""

    def layer(at: Layer, x: nr.Value, residual: nr.Value) -> tuple[nr.Value, nr.Value]:
        return ops.add(llama.attention(at, x), llama.ffn(at, x)), residual

    def weights(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, shape in llama.weights(config).items() if not name.startswith("post_")}

    yield graphs.register(Model("own", {"OwnForCausalLM": {"vocab_size": 257}}, weights, layer))
    del MODELS["own"]


def test_a_model_of_ones_own(own: Model) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = DecoderConfig.from_hf({"architectures": ["OwnForCausalLM"], **sizes})
    assert (config.model, config.vocab) == ("own", 257)
    weights = random_weights(config, torch.float32)
    nodes = decoder(config, nr.Layout(decode=4, kv_tokens=40), pages=8, requests=4, table_width=2).nodes
    assert [node.name for node in nodes].count("layer1.add") == 1
    assert len(serve(config, weights)) == 5
    for again in (Model("own", {"Other": {}}, llama.weights, llama.layer), replace(own, name="other")):
        with pytest.raises(ModelError, match="is registered already"):
            graphs.register(again)


def test_phi3_names_code_that_is_in_transformers(tiny: Tiny) -> None:
    """Its folders still do; what computes it is known, and nothing of the folder is run."""
    keys = {**tiny("phi3")[0].theirs.config.to_dict(), "architectures": ["Phi3ForCausalLM"]}
    code = {"auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}}
    assert DecoderConfig.from_hf(keys | code) == tiny("phi3")[0].config


def test_a_mixture_needs_all_its_layers_to_be_one(tiny: Tiny) -> None:
    keys = {**tiny("qwen3_moe")[0].theirs.config.to_dict(), "architectures": ["Qwen3MoeForCausalLM"]}
    assert DecoderConfig.from_hf(keys) == tiny("qwen3_moe")[0].config
    for other in ({"decoder_sparse_step": 2}, {"mlp_only_layers": [0]}):
        with pytest.raises(UnsupportedModelError, match="is not supported by qwen3_moe"):
            DecoderConfig.from_hf(keys | other)


def test_the_walk_shows_the_file_as_it_is() -> None:
    walk = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").partition("## One of your own")[0]
    blocks = re.findall(r"^```python\n(.*?)^```$", walk, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    source = (ROOT / "graphs" / "qwen3.py").read_text(encoding="utf-8")
    assert source.endswith("\n\n\n".join(block.rstrip() for block in blocks) + "\n")
