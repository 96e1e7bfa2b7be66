"""Phi-3: what Llama computes; checkpoints keep the projections of a layer's input in two tensors."""

from __future__ import annotations

from nanort.graphs import llama
from nanort.graphs.config import DecoderConfig
from nanort.graphs.model import Model, Rows, Sources, register


def sources(config: DecoderConfig) -> Sources:
    """Queries, keys and values one after the other, and the halves of the gated layer."""
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    qkv, gate_up = "self_attn.qkv_proj.weight", "mlp.gate_up_proj.weight"
    return {
        "self_attn.q_proj.weight": Rows(qkv, 0, q + 2 * kv),
        "self_attn.k_proj.weight": Rows(qkv, q, q + 2 * kv),
        "self_attn.v_proj.weight": Rows(qkv, q + kv, q + 2 * kv),
        "mlp.gate_proj.weight": Rows(gate_up, 0, 2 * config.ffn),
        "mlp.up_proj.weight": Rows(gate_up, config.ffn, 2 * config.ffn),
    }


SILENT = {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096}

register(Model("phi3", {"Phi3ForCausalLM": SILENT}, llama.weights, llama.layer, sources=sources))
