"""GGUF's words in Hugging Face's: which architectures it knows, what its metadata and its tensors are called there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanort.errors import FileError, TruncatedFileError, UnsupportedModelError

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
    "phi3": "Phi3ForCausalLM",
}
"""Those that are read; Mixtral's files call themselves llama."""
MODEL_TYPES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe"}
"""Where config.json's model_type is another word."""
FREQUENCIES = {"rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"}
"""Tensors that config.json has as lists of numbers."""

_MODULES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_OTHERWISE = {
    "phi3": {"ffn_up": "mlp.gate_up_proj"},
    "llama": {
        "ffn_gate_inp": "block_sparse_moe.gate",
        "ffn_gate_exps": "block_sparse_moe.experts.w1",
        "ffn_up_exps": "block_sparse_moe.experts.w3",
        "ffn_down_exps": "block_sparse_moe.experts.w2",
    },
}
_SCALING = {"type", "factor", "original_context_length", "attn_factor", "yarn_beta_fast", "yarn_beta_slow", "finetuned"}
_Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Words:
    """The metadata of one file, whose keys begin with the name of its architecture.

    Raises:
        UnsupportedModelError: another architecture, or a rope that would be computed wrongly.
        FileError: what every file must state is missing, or cannot be.
    """

    path: Path
    metadata: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.metadata.get("general.architecture") not in list(ARCHITECTURES):
            raise UnsupportedModelError(
                f"{self.path} is of the architecture {self.metadata.get('general.architecture')!r:.80}: "
                f"only {', '.join(ARCHITECTURES)} are read"
            )

    @property
    def architecture(self) -> str:
        """By GGUF's name."""
        return str(self.metadata["general.architecture"])

    def name(self, stored: str) -> str:
        """The name in Hugging Face checkpoints of the tensor ``stored``; experts are stacked."""
        layer = re.match(r"blk\.(\d+)\.", stored)
        module, _, kind = stored[layer.end() if layer else 0 :].rpartition(".")
        known = _LAYER_MODULES | _OTHERWISE.get(self.architecture, {}) if layer else _MODULES
        if module not in known:
            raise UnsupportedModelError(
                f"{self.path} holds {stored}, for which no model that nanort serves has a place"
            )
        return f"model.layers.{layer[1]}.{known[module]}.{kind}" if layer else f"{known[module]}.{kind}"

    def config(self, shapes: _Shapes, frequencies: Mapping[str, list[float]]) -> dict[str, Any]:
        """The file's sizes with the keys of config.json; ``frequencies`` are the numbers of its tensors for rope."""
        heads = self.whole("attention.head_count")
        hidden_size = self.whole("embedding_length")
        if not shapes.get("model.embed_tokens.weight"):
            raise TruncatedFileError(f"{self.path} has no token_embd.weight: a language model's file has one")
        head_dim = self._get("attention.key_length", hidden_size // heads)
        for key in ("attention.value_length", "rope.dimension_count"):
            if self._get(key, head_dim) != head_dim:
                raise UnsupportedModelError(
                    f"{self.path} states {key}={self._get(key)!r:.80} for heads of {head_dim!r:.80}: "
                    "only the same is read"
                )
        config = {
            "architectures": [ARCHITECTURES[self.architecture]],
            "model_type": MODEL_TYPES.get(self.architecture, self.architecture),
            "hidden_act": "silu",
            "hidden_size": hidden_size,
            "intermediate_size": self._get("feed_forward_length"),
            "num_hidden_layers": self.need("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self.whole("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "vocab_size": shapes["model.embed_tokens.weight"][0],
            "rms_norm_eps": self.need("attention.layer_norm_rms_epsilon"),
            "rope_theta": self._get("rope.freq_base", 10000.0),
            "max_position_embeddings": self.need("context_length"),
            "tie_word_embeddings": "lm_head.weight" not in shapes,
            "bos_token_id": self.metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.metadata.get("tokenizer.ggml.eos_token_id"),
        }
        if window := self._get("attention.sliding_window"):
            config |= {"sliding_window": window, "use_sliding_window": True}
        return config | self._experts(shapes) | self._rope(frequencies)

    def _experts(self, shapes: _Shapes) -> dict[str, Any]:
        """The keys that a mixture of experts has besides."""
        if not self._get("expert_count"):
            self.need("feed_forward_length")
            return {}
        counts = {"num_experts_per_tok": self.need("expert_used_count")}
        if self.architecture == "llama":
            mixtral = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
            return mixtral | counts | {"num_local_experts": self._get("expert_count")}
        usual = {"qwen3moe": True}.get(self.architecture, False)  # files say it only where they were made of late
        found = counts | {
            "num_experts": self._get("expert_count"),
            "intermediate_size": self._get("feed_forward_length") or self.need("expert_feed_forward_length"),
            "moe_intermediate_size": self.need("expert_feed_forward_length"),
            "norm_topk_prob": self._get("expert_weights_norm", usual),
        }
        if shared := shapes.get("model.layers.0.mlp.shared_expert.gate_proj.weight"):
            found["shared_expert_intermediate_size"] = shared[0]
        return found

    def _rope(self, frequencies: Mapping[str, list[float]]) -> dict[str, Any]:
        """The key that a scaled rope has."""
        prefix = f"{self.architecture}.rope.scaling."
        if unknown := {key for key in self.metadata if key.startswith(prefix)} - {prefix + key for key in _SCALING}:
            raise UnsupportedModelError(f"{self.path} states {min(unknown)}, which nanort does not know how to follow")
        # Files of old have a factor under another name, and none says of which kind it is: it is linear.
        factor = self._get("rope.scaling.factor", self._get("rope.scale_linear")) or 1.0
        kind = self._get("rope.scaling.type", "none" if factor == 1.0 else "linear")
        known, attention = self._get("rope.scaling.original_context_length"), self._get("rope.scaling.attn_factor")
        if divisors := frequencies.get("rope_freqs.weight"):
            stated: dict[str, Any] = {"rope_type": "divided", "factors": divisors}
        elif short := frequencies.get("rope_factors_short.weight"):
            # A factor of 1 where nothing is stated: config.json would have it follow from the lengths.
            stated = {"rope_type": "longrope", "short_factor": short, "attention_factor": attention or 1.0}
        elif kind == "linear":
            stated = {"rope_type": "linear", "factor": factor}
        elif kind == "yarn" and attention in (None, 1.0):
            ends = {f"beta_{end}": self._get(f"rope.scaling.yarn_beta_{end}") for end in ("fast", "slow")}
            stated = {"rope_type": "yarn", "factor": factor, **ends}
        elif kind == "none":
            return {}
        else:
            raise UnsupportedModelError(
                f"{self.path} scales its rope by {kind!r:.80} with attn_factor={attention!r:.80}: only linear and yarn "
                "without one are read from GGUF, and tensors of factors"
            )
        if known is not None:
            stated["original_max_position_embeddings"] = known
        return {"rope_parameters": stated}

    def whole(self, key: str, usual: int | None = None) -> int:
        """The positive whole number under ``key``."""
        size = self.need(key) if usual is None else self._get(key, usual)
        if type(size) is not int or size < 1:
            raise FileError(
                f"{self.path} states {self.architecture}.{key}={size!r:.80}, not a positive whole number: "
                "convert it again"
            )
        return size

    def need(self, key: str) -> Any:
        """What is stated under ``key``, which must be something."""
        if not self._get(key):
            raise TruncatedFileError(
                f"{self.path} does not state {self.architecture}.{key}, which its architecture's files must: "
                "convert it again"
            )
        return self._get(key)

    def _get(self, key: str, usual: Any = None) -> Any:
        return self.metadata.get(f"{self.architecture}.{key}", usual)
