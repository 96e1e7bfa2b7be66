"""Every format that nanort reads, with small sound files of it that are made anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import jinja2.debug  # noqa: F401  # imported late otherwise, where a template fails
import numpy as np
import safetensors.torch
import tokenizers
import torch

import kineto_profiles
import nanort as nr
from fuzz import mutations
from fuzz.judge import Target
from nanort import graphs
from nanort.checkpoints.tokenizer import Tokenizer
from nanort.checkpoints.weights import load_weights, open_checkpoint
from nanort.costs import footprint
from nanort.costs.footprint import Footprint
from nanort.costs.profile import Measurement, Pair, Profile
from nanort.costs.samples import Call, Place, Sample
from nanort.costs.store import Store
from nanort.errors import CostError, FileError, ModelError, ProblemError, RequestError, ScheduleError, TimelineError
from nanort.graphs.config import DecoderConfig
from nanort.http.bodies import ApiError, error_body
from nanort.http.openai_api import parse
from nanort.scheduling.problem import Problem
from nanort.scheduling.schedule import Schedule
from nanort.timeline.events import Timeline

H200 = nr.device("h200")
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where files are written and read without a disk."""
PLACE = Place("h200", 132, "NVIDIA H200", "580.65", (("torch", "2.13"),))
CHAT = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{% endfor %}"
JINJA = frozenset({"compile", "exec"})
"""What it makes of a chat template, in its sandbox."""
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 259, "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "tie_word_embeddings": True,
    "max_position_embeddings": 16, "eos_token_id": 1,
}  # fmt: skip
ROPES: list[dict[str, Any]] = [
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 8, "rope_theta": 500000.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "beta_fast": 32.0, "mscale": 1.0,
     "mscale_all_dim": 0.5, "truncate": False},
    {"rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [1.0, 2.0],
     "original_max_position_embeddings": 8, "attention_factor": 1.2},
]  # fmt: skip
MIXTURE = {
    "architectures": ["Qwen2MoeForCausalLM"], "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
}  # fmt: skip
WEIGHTS = DecoderConfig.from_hf(CONFIG).weights(torch.float32)
GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    **{f"mlp.experts.{name}_proj": f"ffn_{name}_exps" for name in ("gate", "up", "down")},
    **{f"mlp.shared_expert.{name}_proj": f"ffn_{name}_shexp" for name in ("gate", "up", "down")},
}  # fmt: skip
SAID = [{"role": "system", "content": "Be short."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
CHATS: list[dict[str, Any]] = [
    {"model": "m", "messages": SAID, "max_completion_tokens": 9, "stream": True, "user": "u", "n": 1,
     "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 2, "temperature": 0.5},
    {"model": "m", "messages": SAID[:1], "stop": ["a", "b"], "seed": 7, "top_p": 0.9, "tools": [], "logit_bias": {}},
]  # fmt: skip
COMPLETIONS: list[dict[str, Any]] = [
    {"model": "m", "prompt": ["a", [1, 2]], "max_tokens": 9, "stop": "x", "top_k": 3, "logprobs": 2, "echo": False},
    {"model": "m", "prompt": "é", "stop_token_ids": [0, 7], "ignore_eos": True, "include_stop_str_in_output": True},
]  # fmt: skip
PATTERSON = b"4 2\n5 3\n0 0 0 2 2 3\n4 2 1 1 4\n3 5 0 1 4\n0 0 0 0\n"
RULE = b"*" * 72
PSPLIB = b"\n".join([
    RULE, b"jobs (incl. supersource/sink ):  4", b"RESOURCES", b"  - renewable                 :  2   R",
    b"  - nonrenewable              :  1   N", b"  - doubly constrained        :  0   D", RULE,
    b"PRECEDENCE RELATIONS:", b"jobnr.    #modes  #successors   successors", b"1 1 2 2 3", b"2 2 1 4", b"3 1 1 4",
    b"4 1 0", RULE, b"REQUESTS/DURATIONS:", b"jobnr. mode duration R 1 R 2 N 1", b"-" * 72, b"1 1 0 0 0 0",
    b"2 1 4 2 1 3", b"2 5 1 0 2", b"3 1 3 5 0 4", b"4 1 0 0 0 0", RULE, b"RESOURCEAVAILABILITIES:", b"R 1 R 2 N 1",
    b"5 3 7", RULE, b"",
])  # fmt: skip


def targets() -> dict[str, Target]:
    """Every format by its name."""
    tree = mutations.either(mutations.tree, weight=0.85)
    with TemporaryDirectory() as folder:
        sound = partial(_written, Path(folder) / "sound")
        graph, whole, plan = _plans()
        config, tokenizer = json.dumps(CONFIG).encode(), _tokenizer().to_str().encode()
        scaled = [json.dumps(CONFIG | {"rope_parameters": rope}).encode() for rope in ROPES]
        weights = safetensors.torch.save({name: torch.ones(shape) for name, (shape, _) in WEIGHTS.items()})
        half = safetensors.torch.save({name: torch.ones(shape).half() for name, (shape, _) in WEIGHTS.items()})
        folder_of_model = (("config.json", config), ("tokenizer.json", tokenizer), ("model.safetensors", weights))
        found = [
            Target("schedule", "plan.json", (sound(plan.save), sound(whole.save)), tree,
                   lambda path: repr(Schedule.load(path, graph)), (FileError, ScheduleError)),
            Target("profile", "profile.json", (sound(_profile().save),), tree, _read_profile, (FileError, CostError)),
            Target("footprints", "footprints.json", (sound(lambda path: footprint.save(
                {(90, "linear.reference"): Footprint(37, 0, 128), (80, "x"): Footprint(1, 2, 3)}, "3.6", path)),),
                tree, footprint.load, (FileError,)),
            Target("timeline", "timeline.json", (sound(_partial().save), sound(plan.timeline().save)), tree,
                   lambda path: repr(Timeline.load(path)), (FileError, TimelineError)),
            Target("torch_profile", "profile.json", (sound(kineto_profiles.small().write), sound(_cpu_profile)), tree,
                   lambda path: str(Timeline.from_torch_profile(path)), (FileError,)),
            Target("store", "store.sqlite", (sound(_store),), mutations.either(_database),
                   _read_store, (FileError, CostError)),
            Target("rcp", "problem.rcp", (PATTERSON,), mutations.either(mutations.words), Problem.read,
                   (FileError, ProblemError)),
            Target("psplib", "problem.mm", (PSPLIB,), mutations.either(mutations.words), Problem.read,
                   (FileError, ProblemError)),
            Target("gguf", "model.gguf", (sound(partial(_gguf, "F32")), sound(partial(_gguf, "Q8_0")),
                    sound(partial(_gguf, "F32", mixture=True))),
                   mutations.either(mutations.gguf, weight=0.85), _read_gguf, (FileError, ModelError), does=JINJA),
            Target("safetensors", "model.safetensors", (weights, half), mutations.either(mutations.safetensors),
                   lambda path: _read_weights(path.parent), (FileError, ModelError), folder_of_model),
            Target("config", "config.json", (config, *scaled), tree, lambda path: _read_weights(path.parent),
                   (FileError, ModelError), folder_of_model),
            Target("index", "model.safetensors.index.json",
                   (json.dumps({"weight_map": dict.fromkeys(WEIGHTS, "model.safetensors")}).encode(),), tree,
                   lambda path: _read_weights(path.parent), (FileError, ModelError), folder_of_model),
            Target("tokenizer", "tokenizer.json", (tokenizer,), tree, lambda path: _read_tokenizer(path.parent),
                   (FileError, ModelError), folder_of_model),
            Target("tokenizer_config", "tokenizer_config.json",
                   (json.dumps({"bos_token": "<s>", "eos_token": {"content": "<end>"}, "chat_template": CHAT}).encode(),
                    json.dumps({"chat_template": [{"name": "default", "template": CHAT}]}).encode()), tree,
                   lambda path: _read_tokenizer(path.parent), (FileError, ModelError), folder_of_model,
                   JINJA),
            Target("chat", "body.json", tuple(json.dumps(body).encode() for body in CHATS), tree,
                   partial(_read_body, True), (ApiError,), named=False),
            Target("completion", "body.json", tuple(json.dumps(body).encode() for body in COMPLETIONS), tree,
                   partial(_read_body, False), (ApiError,), named=False),
        ]  # fmt: skip
        return {target.name: target for target in found}


def _written(path: Path, write: Callable[[Path], object]) -> bytes:
    path.unlink(missing_ok=True)
    write(path)
    return path.read_bytes()


def _plans() -> tuple[nr.Graph, Schedule, Schedule]:
    graph = graphs.synthetic.random_dag(3, 8)
    return graph, nr.co_schedule(graph, H200, policy="list"), nr.co_schedule(graph, H200, policy="serial")


def _profile() -> Profile:
    rows = [Measurement("linear", "a", ((8, 4), (2, 4)), "bfloat16", 128.0, 1e9, sms, 1 / sms) for sms in (8, 16)]
    curve = {"gemv": ((0.1, 0.2), (0.4, 0.8))}
    figures = {"launch_seconds": 1e-6, "hbm_saturation_sms": 60.0, "flops.bfloat16": 1e14}
    return Profile("h200", 132, "a test", rows, [Pair("x", "y", 1.5, 1.0)], curve, (), figures, {"by": "hand"})


def _read_profile(path: Path) -> None:
    profile = Profile.load(path, stale=True)
    repr((profile.identity, profile))


def _partial() -> Timeline:
    activity = nr.timeline.activities.Activity
    made = [
        activity("a", "linear", "g0", "g0", 8, 1.0, 2.0, scope=(("layer", 3),)),
        activity("b", "norm", "g1", "g1", 4, waits=((0, "data"),)),
        activity("c", "copy", "h2d", waits=((1, "state"),)),
    ]
    return Timeline(made, [0.0, 1e-3, np.nan], [1e-3, np.nan, np.nan], kind="measured", device="h200", failure="b")


def _cpu_profile(path: Path) -> None:
    stack = {"Call stack": "torch/nn/functional.py(1): f;b.py(2): g"}
    operator = {"ph": "X", "cat": "cpu_op", "ts": 1, "dur": 2, "tid": 1, "args": stack}
    rows = [operator | {"name": name} for name in ("aten::add", "autograd::x", "aten::mul")]
    path.write_text(json.dumps({"traceEvents": rows}), encoding="ascii")


def _store(path: Path) -> None:
    call = Call("linear", "reference", ((8, 4), (), (2, 4)), "bfloat16", 128.0, 1e18, 132)
    other = call._replace(operator="norm", sms=64)
    with Store(path, PLACE) as store:
        store.add(Sample(call, 0.3, 0.25, 0.5, 9, (("sm", 1980.0),)), Sample(call, 0.5, 0.5, 0.5, 1, beside=other))


def _database(random: Random, data: bytes) -> bytes:
    with TemporaryDirectory(prefix="nanort-fuzz-", dir=MEMORY) as folder:
        return mutations.database(random, data, Path(folder) / "store.sqlite")


def _read_store(path: Path) -> None:
    with Store(path, PLACE) as store:
        store.samples()


def _tokenizer() -> Any:
    alphabet = ["<s>", "<end>", *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()), "in"]
    vocab = {token: number for number, token in enumerate(alphabet)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[("i", "n")]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made.add_special_tokens(["<s>", "<end>"])
    return made


def _use(tokenizer: Tokenizer) -> None:
    """What a server does with it; a request may be refused, in words that need no file."""
    every = "".join(map(chr, range(0x180))) + "\u2028\u3042\ufffd\U0010ffff"
    asks: list[Callable[[], object]] = [
        lambda: tokenizer.decode(tokenizer.encode("in 12 é <end>")),
        lambda: tokenizer.encode(tokenizer.chat([{"role": "user", "content": "Hi"}]), special=True),
        lambda: tokenizer.encode(every, special=True),
        lambda: tokenizer.inside(range(tokenizer.vocab_size)),
    ]
    for ask in asks:
        with suppress(RequestError):
            ask()
    for token in (0, 1, tokenizer.vocab_size - 1, tokenizer.vocab_size):
        with suppress(RequestError):
            tokenizer.stream([token]).push(token)


def _read_tokenizer(path: Path) -> None:
    _use(Tokenizer.of(path))


def _read_body(chat: bool, path: Path) -> None:
    """What a server does with it, up to the request; what it answers where it refuses one is JSON, and short."""
    try:
        parse(path.read_bytes(), chat=chat).params(room=16)
    except ApiError as error:
        _answer(error)
        raise


def _answer(error: ApiError) -> None:
    answer = json.dumps(error_body(str(error), param=error.param, code=error.code))
    assert len(answer) < 2000, answer[:300]
    assert 400 <= error.status < 500


def _read_weights(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        kinds = {name: shape for name, (shape, kind) in checkpoint.names.items() if kind.is_floating_point}
        checkpoint.load(kinds, torch.float32)
        try:
            config = DecoderConfig.from_hf(checkpoint.config)
        except ModelError:
            return  # it knows a config, not where that came from
        load_weights(checkpoint, config, torch.float32)


def _read_gguf(path: Path) -> None:
    _read_weights(path)
    _read_tokenizer(path)


def _gguf(quantised: str, path: Path, mixture: bool = False) -> None:
    """A model whose embedding is of that kind: a plain Llama, or one with experts, biases and a scaled rope."""
    family = "qwen2moe" if mixture else "llama"
    hidden = max(8, gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[quantised]][0])
    alphabet = ["<s>", "<end>", *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()), "in"]
    writer = gguf.GGUFWriter(path, family)
    sizes = {"block_count": 1, "context_length": 16, "embedding_length": hidden, "feed_forward_length": 8}
    if mixture:
        sizes |= {"expert_count": 2, "expert_used_count": 1, "expert_feed_forward_length": 8}
        sizes |= {"rope.scaling.factor": 2, "rope.scaling.original_context_length": 8}
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    heads = {"attention.head_count": 2, "attention.head_count_kv": 1, "attention.key_length": 4}
    for key, value in (sizes | heads).items():
        writer.add_uint32(f"{family}.{key}", value)
    writer.add_float32(f"{family}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_string("tokenizer.ggml.model", "llama" if mixture else "gpt2")
    writer.add_string("tokenizer.ggml.pre", "smollm")
    writer.add_array("tokenizer.ggml.tokens", alphabet)
    writer.add_array("tokenizer.ggml.token_type", [3, 3] + [1] * 257)
    writer.add_array(*(("tokenizer.ggml.scores", [0.0] * 259) if mixture else ("tokenizer.ggml.merges", ["i n"])))
    writer.add_uint32("tokenizer.ggml.eos_token_id", 1)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_uint32("tokenizer.ggml.bos_token_id", 0)
    writer.add_string("tokenizer.chat_template", CHAT)
    config = {**CONFIG, "hidden_size": hidden, **(MIXTURE if mixture else {})}
    for name, (shape, _) in DecoderConfig.from_hf(config).weights(torch.float32).items():
        (layer, _, module), suffix = name.rpartition(".")[0].rpartition("layers.0."), name.rpartition(".")[2]
        kind = gguf.GGMLQuantizationType["F32" if layer else quantised]
        stored = f"{'blk.0.' * bool(layer)}{GGUF_NAMES[module]}.{suffix}"
        writer.add_tensor(stored, gguf.quantize(np.ones(shape, np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
