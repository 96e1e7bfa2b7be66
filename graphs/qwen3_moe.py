"""Qwen3-MoE: Qwen3's attention, then the experts that each row chooses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nanort as nr
from nanort.graphs import mixtral, qwen3
from nanort.graphs.config import DecoderConfig
from nanort.graphs.decoder import Layer
from nanort.graphs.model import Model, Shapes, Sources, register, whole
from nanort.graphs.qwen2 import SILENT

NAMES = ("gate_proj", "up_proj", "down_proj")
"""What a checkpoint calls the parts of each expert."""
ONLY = {"decoder_sparse_step": 1, "mlp_only_layers": []}
"""All layers have experts."""


def sizes(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Experts have a width of their own; their shares of a row add up to 1 only where that is said."""
    experts = "num_experts" if "num_experts" in keys else "num_local_experts"
    return {
        "ffn": whole(keys, "moe_intermediate_size"),
        "experts": whole(keys, experts),
        "experts_per_token": whole(keys, "num_experts_per_tok"),
        "normalize": keys.get("norm_topk_prob", False),
    }


def weights(config: DecoderConfig) -> Shapes:
    """All of a layer."""
    return qwen3.attention_weights(config) | mixtral.expert_weights(config, "mlp", NAMES)


def sources(config: DecoderConfig) -> Sources:
    """A tensor for each expert, in place of the stacks."""
    return mixtral.expert_sources(config, "mlp", NAMES)


def layer(at: Layer, x: nr.Value, residual: nr.Value) -> tuple[nr.Value, nr.Value]:
    """Attention, then the experts."""
    x, residual = at.add_norm(qwen3.attention(at, x), residual, "post_attention_layernorm.weight")
    return mixtral.mixture(at, x, "mlp", NAMES), residual


register(
    Model(
        "qwen3_moe",
        {"Qwen3MoeForCausalLM": SILENT | {"num_key_value_heads": 4}},
        weights,
        layer,
        sizes=sizes,
        only=ONLY,
        sources=sources,
        mixture=True,
    )
)
