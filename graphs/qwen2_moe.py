"""Qwen2-MoE: Qwen2's attention, then the experts that each row chooses and, beside them, one that all rows use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nanort as nr
from nanort import ops
from nanort.graphs import llama, mixtral, qwen2, qwen3_moe
from nanort.graphs.config import DecoderConfig
from nanort.graphs.decoder import Layer
from nanort.graphs.model import Model, Shapes, register, whole

SHARED = "mlp.shared_expert"


def sizes(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Those of Qwen3-MoE, and the width of the shared expert."""
    return qwen3_moe.sizes(keys) | {"shared_ffn": whole(keys, "shared_expert_intermediate_size")}


def weights(config: DecoderConfig) -> Shapes:
    """All of a layer."""
    experts = mixtral.expert_weights(config, "mlp", qwen3_moe.NAMES)
    shared = llama.ffn_weights(config, SHARED, config.shared_ffn)
    return qwen2.attention_weights(config) | experts | shared | {f"{SHARED}_gate.weight": (1, config.hidden)}


def shared(at: Layer, x: nr.Value) -> nr.Value:
    """The gated layer of the expert that all rows use: no node of it waits for routing."""
    gate = at.linear(f"{SHARED}.gate_proj", x, name="shared_gate_proj")
    up = at.linear(f"{SHARED}.up_proj", x, name="shared_up_proj")
    return at.linear(f"{SHARED}.down_proj", ops.silu_mul(gate, up, name="shared_silu_mul"), name="shared_down_proj")


def layer(at: Layer, x: nr.Value, residual: nr.Value) -> tuple[nr.Value, nr.Value]:
    """Attention, then both kinds of experts, the shared one weighed by a gate of its own."""
    x, residual = at.add_norm(llama.attention(at, x, bias=True), residual, "post_attention_layernorm.weight")
    routed = mixtral.mixture(at, x, "mlp", qwen3_moe.NAMES)
    y: nr.Value = ops.gated_add(routed, at.linear(f"{SHARED}_gate", x), shared(at, x))
    return y, residual


register(
    Model(
        "qwen2_moe",
        {"Qwen2MoeForCausalLM": qwen2.SILENT},
        weights,
        layer,
        sizes=sizes,
        only=qwen3_moe.ONLY | {"qkv_bias": True},
        sources=qwen3_moe.sources,
        mixture=True,
    )
)
