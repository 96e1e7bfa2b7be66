"""Mixtral: Llama's attention, then the gated layers of the few experts that each row chooses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nanort as nr
from nanort import ops
from nanort.graphs import llama
from nanort.graphs.config import DecoderConfig
from nanort.graphs.decoder import Layer
from nanort.graphs.model import Model, Shapes, Sources, Stack, register, whole

MODULE, NAMES = "block_sparse_moe", ("w1", "w3", "w2")
"""Where the experts are in a checkpoint, and what it calls the gate, the way up and the way down of each."""


def expert_weights(config: DecoderConfig, module: str, names: tuple[str, str, str]) -> Shapes:
    """The router, and what the experts have, stacked."""
    gate, up, down = (f"{module}.experts.{name}.weight" for name in names)
    return {
        f"{module}.gate.weight": (config.experts, config.hidden),
        gate: (config.experts, config.ffn, config.hidden),
        up: (config.experts, config.ffn, config.hidden),
        down: (config.experts, config.hidden, config.ffn),
    }


def expert_sources(config: DecoderConfig, module: str, names: tuple[str, str, str]) -> Sources:
    """A tensor for each expert, in place of the stacks."""
    return {
        f"{module}.experts.{name}.weight": Stack(
            tuple(f"{module}.experts.{expert}.{name}.weight" for expert in range(config.experts))
        )
        for name in names
    }


def mixture(at: Layer, x: nr.Value, module: str, names: tuple[str, str, str]) -> nr.Value:
    """The gated layer of each row's experts, weighted and summed."""
    config = at.config
    w_gate, w_up, w_down = (at.weight(f"{module}.experts.{name}.weight") for name in names)
    router, chosen = at.weight(f"{module}.gate.weight"), config.experts_per_token
    experts, shares = ops.route(x, router, top_k=chosen, normalize=config.normalize)
    gate = ops.expert_linear(x, experts, w_gate, name="expert_gate")
    up = ops.expert_linear(x, experts, w_up, name="expert_up")
    y: nr.Value = ops.expert_combine(ops.silu_mul(gate, up), experts, shares, w_down, name="expert_down")
    return y


def layer(at: Layer, x: nr.Value, residual: nr.Value) -> tuple[nr.Value, nr.Value]:
    """Attention, then the experts."""
    x, residual = at.add_norm(llama.attention(at, x), residual, "post_attention_layernorm.weight")
    return mixture(at, x, MODULE, NAMES), residual


def sizes(keys: Mapping[str, Any]) -> dict[str, Any]:
    """How many experts there are, and how many a row uses."""
    return {"experts": whole(keys, "num_local_experts"), "experts_per_token": whole(keys, "num_experts_per_tok")}


SILENT = {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "num_local_experts": 8, "num_experts_per_tok": 2}

register(
    Model(
        "mixtral",
        {"MixtralForCausalLM": SILENT | {"rope_theta": 1e6}},
        lambda config: llama.attention_weights(config) | expert_weights(config, MODULE, NAMES),
        layer,
        sizes=sizes,
        sources=lambda config: expert_sources(config, MODULE, NAMES),
        mixture=True,
    )
)
