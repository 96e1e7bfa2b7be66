"""DecoderConfig: the sizes of a decoder, as config.json has them, and the weights that follow from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from nanort.errors import ModelError, UnsupportedModelError
from nanort.graphs.model import MODELS, Model, Rows, Shapes, Sources, Stack, figure, whole
from nanort.graphs.rope import scaled

Weights = dict[str, tuple[tuple[int, ...], torch.dtype]]

MOST_LAYERS = 4096
"""Each takes time and memory before any weight is read, whatever a damaged config says."""
MOST_DIMENSIONS = 1 << 14
"""Of a head: rope has a figure for every second one."""
MOST_EXPERTS = 1 << 18
"""Of all layers together: each is a few names of tensors."""
_ONLY: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}
_ADOPTED = {"Phi3ForCausalLM"}
"""Architectures whose folders still name the code that once came with them; it is in transformers under that name."""


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The sizes of a decoder, and which model it is one of.

    Attributes:
        hidden, ffn: width of the residual stream, and of the gated layer (of each expert).
        heads, kv_heads, head_dim: query heads, heads of the KV cache, and the width of each.
        vocab: rows of the embedding.
        eps, theta: of RMSNorm and of rope.
        tied: whether the output projection is the embedding.
        max_positions: tokens that a request may have.
        experts, experts_per_token: how many experts a layer has, and how many a token uses; 0 and 0 if it is dense.
        model: the name of a Model, which says what weights a layer has and what it computes.
        shared_ffn: width of the expert that all tokens use, beside those that each chooses.
        normalize: whether the weights of a token's experts add up to 1.
        frequencies: what rope turns each pair of dimensions by where that is scaled; () for what theta says.
        rope_scale: a factor on what rope has turned.

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
    model: str = "llama"
    shared_ffn: int = 0
    normalize: bool = True
    frequencies: tuple[float, ...] = ()
    rope_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocab", "max_positions"):
            size = getattr(self, name)
            if type(size) is not int or size < 1:
                raise ModelError(f"{name}={size!r} must be a positive whole number")
        for name, most in (("layers", MOST_LAYERS), ("head_dim", MOST_DIMENSIONS)):
            if getattr(self, name) > most:
                raise ModelError(f"{name}={getattr(self, name)} are more than any model has: {most} are the most")
        for name in ("eps", "theta", "rope_scale"):
            number = getattr(self, name)
            if not (isinstance(number, (int, float)) and 0 < number < math.inf):
                raise ModelError(f"{name}={number!r} must be a positive number")
        for name in ("tied", "normalize"):
            if not isinstance(getattr(self, name), bool):
                raise ModelError(f"{name}={getattr(self, name)!r} must be true or false")
        if self.heads % self.kv_heads:
            raise ModelError(f"{self.heads} query heads cannot share {self.kv_heads} KV heads evenly")
        if self.head_dim % 2:
            raise ModelError(f"head_dim={self.head_dim} is odd: rope turns pairs of dimensions")
        if self.frequencies and len(self.frequencies) != self.head_dim // 2:
            raise ModelError(f"{len(self.frequencies)} frequencies for the {self.head_dim // 2} pairs that rope turns")
        self._check_experts()

    def _check_experts(self) -> None:
        per_token = self.experts_per_token
        if not (
            type(self.experts) is type(per_token) is int
            and (0 < per_token <= self.experts or per_token == self.experts == 0)
        ):
            raise ModelError(
                f"experts_per_token={per_token!r} of experts={self.experts!r} cannot be chosen: give 1 to all of them, "
                "or 0 of 0 for a dense decoder"
            )
        if self.layers * self.experts > MOST_EXPERTS:
            raise ModelError(
                f"experts={self.experts} in each of layers={self.layers} are more than any model has: "
                f"{MOST_EXPERTS} in all are the most"
            )
        if type(self.shared_ffn) is not int or self.shared_ffn < 0:
            raise ModelError(f"shared_ffn={self.shared_ffn!r} must be a whole number, 0 for none")
        if self.model not in MODELS:
            raise ModelError(f"model={self.model!r} is not registered: {list(MODELS)} are")
        if MODELS[self.model].mixture != (self.experts > 0):
            raise ModelError(f"experts={self.experts} of model={self.model!r}: give the model that has as many")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> DecoderConfig:
        """The config that a Hugging Face ``config.json`` describes.

        Where a model stops to see its whole context, at a sliding window or beyond the length that its rope was made
        for, ``max_positions`` ends: up to there it computes the same without.

        Raises:
            UnsupportedModelError: another architecture, or a part of this one that would be computed wrongly.
            ModelError: a size that is missing or no whole number.
        """
        model, config = _model(config)
        allowed = {**_ONLY, **model.only}
        if other := [f"{key}={config[key]!r:.80}" for key in allowed if config.get(key) not in (None, allowed[key])]:
            raise UnsupportedModelError(f"{', '.join(other)} is not supported by {model.name}: only {allowed}")
        rope = _rope(config)
        hidden, heads = whole(config, "hidden_size"), whole(config, "num_attention_heads")
        if config.get("head_dim") is None and hidden % heads:
            raise ModelError(f"hidden_size={hidden} is no multiple of num_attention_heads={heads}: give head_dim")
        sizes: dict[str, Any] = {
            "layers": whole(config, "num_hidden_layers"),
            "hidden": hidden,
            "ffn": whole(config, "intermediate_size"),
            "heads": heads,
            "kv_heads": whole(config, "num_key_value_heads", heads),
            "head_dim": whole(config, "head_dim", hidden // heads),
            "vocab": whole(config, "vocab_size"),
            "eps": figure(config, "rms_norm_eps", 1e-6),
            "theta": figure(rope, "rope_theta", config.get("rope_theta") or 10_000.0),
            "tied": config.get("tie_word_embeddings", False),
            "max_positions": whole(config, "max_position_embeddings", 2048),
        }
        found = cls(**(sizes | model.sizes(config)), model=model.name)
        angles = scaled(rope, found.theta, found.head_dim, found.max_positions)
        reach = found.max_positions if angles is None or angles.positions is None else angles.positions
        if config.get("use_sliding_window", True) and config.get("sliding_window") is not None:
            reach = min(reach, whole(config, "sliding_window"))
        if angles is None:
            return replace(found, max_positions=reach)
        return replace(found, frequencies=angles.frequencies, rope_scale=angles.scale, max_positions=reach)

    @property
    def parameters(self) -> int:
        """How many numbers the weights hold; a tied embedding counts once."""
        return sum(math.prod(shape) for shape, _ in self.weights(torch.float32).values())

    def weights(self, dtype: torch.dtype) -> Weights:
        """Shape and dtype of every weight, by its name in Hugging Face checkpoints.

        Those of experts are stacked: ``experts.w1`` (experts, ffn, hidden) is ``experts.0.w1``, ``experts.1.w1``, ...

        Raises:
            ModelError: the dtype is none of torch's floating point types.
        """
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ModelError(f"{dtype=}: give torch.float32, torch.bfloat16 or torch.float16")
        layer = MODELS[self.model].weights(self)
        shapes: Shapes = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        for i in range(self.layers):
            shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
        shapes["model.norm.weight"] = (self.hidden,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab, self.hidden)
        return {name: (shape, dtype) for name, shape in shapes.items()}

    @property
    def sources(self) -> Sources:
        """The weights that checkpoints keep in other tensors than one of their name."""
        found: Sources = {}
        for name, source in MODELS[self.model].sources(self).items():
            for layer in (f"model.layers.{i}." for i in range(self.layers)):
                if isinstance(source, Rows):
                    found[layer + name] = replace(source, name=layer + source.name)
                else:
                    found[layer + name] = Stack(tuple(layer + part for part in source.names))
        return found

    @property
    def tables(self) -> dict[str, torch.Tensor]:
        """Constants of a decoder's graph that no checkpoint holds: ``rope.frequencies`` where rope is scaled."""
        return {"rope.frequencies": torch.tensor(self.frequencies)} if self.frequencies else {}


def random_weights(config: DecoderConfig, dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights for tests and for trying a model out: matrices keep the variance of what they are applied to."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, (shape, _) in config.weights(dtype).items():
        noise = torch.randn(shape, generator=generator)
        weights[name] = (noise / math.sqrt(shape[-1]) if len(shape) > 1 else 1 + noise / 10).to(dtype)
    return weights | config.tables


def _model(config: Mapping[str, Any]) -> tuple[Model, dict[str, Any]]:
    """The model that ``config`` names, and ``config`` with what that means where it is silent."""
    known = {architecture: model for model in MODELS.values() for architecture in model.architectures}
    named = config.get("architectures") or ["none"]
    called = ", ".join(map(str, named)) if isinstance(named, list) else repr(named)
    if config.get("auto_map") and called not in _ADOPTED:
        raise UnsupportedModelError(
            f"{called} comes with code of its own (auto_map in config.json), which nanort does not run, so what it "
            f"computes is not known: {list(known)} are supported, as transformers has them without trust_remote_code"
        )
    if called not in known or not isinstance(named, list):
        raise UnsupportedModelError(f"architecture {called} is not supported: {list(known)} are")
    silent = known[called].architectures[called]
    meant = {**silent, **config}
    if "use_sliding_window" not in silent:  # transformers reads it for Qwen's models only
        meant.pop("use_sliding_window", None)
    return known[called], meant


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """What ``config`` says of rope: newer files put theta and scaling together in rope_parameters."""
    for key in ("rope_scaling", "rope_parameters"):
        if not isinstance(config.get(key) or {}, Mapping):
            raise UnsupportedModelError(f"{key}={config[key]!r:.80} is not supported: it has to be an object")
    rope = {**(config.get("rope_parameters") or {}), **(config.get("rope_scaling") or {})}
    if "original_max_position_embeddings" in config:
        rope["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    if rope.get("partial_rotary_factor") not in (None, 1.0):
        raise UnsupportedModelError(f"rope of {rope['partial_rotary_factor']!r:.80} of each head is not supported")
    return rope
