"""DecoderConfig: the sizes of a Llama- or Mixtral-style decoder, and the weights that follow from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from nanort.errors import ModelError, UnsupportedModelError

Weights = dict[str, tuple[tuple[int, ...], torch.dtype]]

# What a config.json of these architectures means where it is silent.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {"num_key_value_heads": 8, "sliding_window": 4096},
    "MixtralForCausalLM": {
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
}
MOST_LAYERS = 4096
"""Each takes time and memory before any weight is read, whatever a damaged config says."""
_ONLY: dict[str, Any] = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "sliding_window": None}


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The sizes of a Llama- or Mixtral-style decoder.

    RMSNorm, rope, grouped-query attention and a SiLU-gated FFN, or a mixture of them as experts; no biases.

    Attributes:
        hidden, ffn: width of the residual stream, and of the gated layer (of each expert).
        heads, kv_heads, head_dim: query heads, heads of the KV cache, and the width of each.
        vocab: rows of the embedding.
        eps, theta: of RMSNorm and of rope.
        tied: whether the output projection is the embedding.
        max_positions: tokens that a request may have.
        experts, experts_per_token: how many experts a layer has, and how many a token uses; 0 and 0 if it is dense.

    Raises:
        ModelError: a size that is not a positive whole number, or sizes that contradict each other.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    eps: float = 1e-5
    theta: float = 10_000.0
    tied: bool = False
    max_positions: int = 2048
    experts: int = 0
    experts_per_token: int = 0

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocab", "max_positions"):
            size = getattr(self, name)
            if type(size) is not int or size < 1:
                raise ModelError(f"{name}={size!r} must be a positive whole number")
        if self.layers > MOST_LAYERS:
            raise ModelError(f"layers={self.layers} are more than any model has: {MOST_LAYERS} are the most")
        for name in ("eps", "theta"):
            figure = getattr(self, name)
            if not (isinstance(figure, (int, float)) and 0 < figure < math.inf):
                raise ModelError(f"{name}={figure!r} must be a positive number")
        if not isinstance(self.tied, bool):
            raise ModelError(f"tied={self.tied!r} must be true or false")
        if self.heads % self.kv_heads:
            raise ModelError(f"{self.heads} query heads cannot share {self.kv_heads} KV heads evenly")
        per_token = self.experts_per_token
        if not (
            type(self.experts) is type(per_token) is int
            and (0 < per_token <= self.experts or per_token == self.experts == 0)
        ):
            raise ModelError(
                f"experts_per_token={per_token!r} of experts={self.experts!r} cannot be chosen: give 1 to all of them, "
                "or 0 of 0 for a dense decoder"
            )
        if self.head_dim % 2:
            raise ModelError(f"head_dim={self.head_dim} is odd: rope turns pairs of dimensions")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> DecoderConfig:
        """The config that a Hugging Face ``config.json`` describes.

        Raises:
            UnsupportedModelError: another architecture, or a part of this one that would be computed wrongly.
            ModelError: a size that is missing or no whole number.
        """
        architecture = _architecture(config)
        config = {**_DEFAULTS[architecture], **config}
        mixture = architecture == "MixtralForCausalLM"
        if other := [f"{key}={config[key]!r}" for key, value in _ONLY.items() if config.get(key, value) != value]:
            raise UnsupportedModelError(f"{', '.join(other)} is not supported: only {_ONLY}")
        ropes = [config.get(key) or {} for key in ("rope_parameters", "rope_scaling")]
        for stated in ropes:
            kind = stated.get("rope_type", stated.get("type", "default")) if isinstance(stated, dict) else stated
            if kind != "default" or not isinstance(stated, dict):
                raise UnsupportedModelError(f"rope of type {kind!r} is not supported: only 'default', without scaling")
        rope = ropes[0] or ropes[1]
        hidden, heads = _whole(config, "hidden_size"), _whole(config, "num_attention_heads")
        if config.get("head_dim") is None and hidden % heads:
            raise ModelError(f"hidden_size={hidden} is no multiple of num_attention_heads={heads}: give head_dim")
        return cls(
            layers=_whole(config, "num_hidden_layers"),
            hidden=hidden,
            ffn=_whole(config, "intermediate_size"),
            heads=heads,
            kv_heads=_whole(config, "num_key_value_heads", heads),
            head_dim=_whole(config, "head_dim", hidden // heads),
            vocab=_whole(config, "vocab_size"),
            eps=config.get("rms_norm_eps", 1e-6),
            theta=config.get("rope_theta") or rope.get("rope_theta", 1e6 if mixture else 10_000.0),
            tied=config.get("tie_word_embeddings", False),
            max_positions=_whole(config, "max_position_embeddings", 2048),
            experts=_whole(config, "num_local_experts") if mixture else 0,
            experts_per_token=_whole(config, "num_experts_per_tok") if mixture else 0,
        )

    @property
    def parameters(self) -> int:
        """How many numbers the weights hold; a tied embedding counts once."""
        return sum(math.prod(shape) for shape, _ in self.weights(torch.float32).values())

    def weights(self, dtype: torch.dtype) -> Weights:
        """Shape and dtype of every weight, by its name in Hugging Face checkpoints.

        Those of experts are stacked: ``experts.w1`` (experts, ffn, hidden) is ``experts.0.w1``, ``experts.1.w1``, ...
        """
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm": (self.hidden,),
            "self_attn.q_proj": (q, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, q),
            "post_attention_layernorm": (self.hidden,),
        }
        if self.experts:
            layer |= {
                "block_sparse_moe.gate": (self.experts, self.hidden),
                "block_sparse_moe.experts.w1": (self.experts, self.ffn, self.hidden),
                "block_sparse_moe.experts.w3": (self.experts, self.ffn, self.hidden),
                "block_sparse_moe.experts.w2": (self.experts, self.hidden, self.ffn),
            }
        else:
            layer |= {
                "mlp.gate_proj": (self.ffn, self.hidden),
                "mlp.up_proj": (self.ffn, self.hidden),
                "mlp.down_proj": (self.hidden, self.ffn),
            }
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (self.vocab, self.hidden)}
        for i in range(self.layers):
            shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
        shapes["model.norm"] = (self.hidden,)
        if not self.tied:
            shapes["lm_head"] = (self.vocab, self.hidden)
        return {f"{name}.weight": (shape, dtype) for name, shape in shapes.items()}


CONFIGS = {
    "tiny": DecoderConfig(2, 64, 128, 4, 2, 16, 257),
    "smollm2-135m": DecoderConfig(30, 576, 1536, 9, 3, 64, 49_152, theta=100_000.0, tied=True, max_positions=8192),
    "llama-3-8b": DecoderConfig(32, 4096, 14_336, 32, 8, 128, 128_256, theta=500_000.0, max_positions=8192),
    "llama-3-70b": DecoderConfig(80, 8192, 28_672, 64, 8, 128, 128_256, theta=500_000.0, max_positions=8192),
    "mixtral-8x7b": DecoderConfig(
        32, 4096, 14_336, 32, 8, 128, 32_000, theta=1e6, max_positions=32_768, experts=8, experts_per_token=2
    ),
}
"""Known decoders by name; "tiny" is for tests: its vocabulary is the bytes and one more."""


def random_weights(config: DecoderConfig, dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights for tests and for trying a model out: matrices keep the variance of what they are applied to."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, (shape, _) in config.weights(dtype).items():
        noise = torch.randn(shape, generator=generator)
        weights[name] = (noise / math.sqrt(shape[-1]) if len(shape) > 1 else 1 + noise / 10).to(dtype)
    return weights


def _architecture(config: Mapping[str, Any]) -> str:
    named = config.get("architectures") or ["none"]
    if not isinstance(named, list) or len(named) != 1 or named[0] not in list(_DEFAULTS):
        called = ", ".join(map(str, named)) if isinstance(named, list) else repr(named)
        raise UnsupportedModelError(f"architecture {called} is not supported: {list(_DEFAULTS)} are")
    return str(named[0])


def _whole(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    size = config.get(key)
    size = default if size is None else size
    if type(size) is not int or size < 1:
        raise ModelError(f"config.json has {key}={size!r}: a positive whole number is needed")
    return size
