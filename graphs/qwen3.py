"""Qwen3: Llama with every head of queries and keys normalised before it is rotated."""

from __future__ import annotations

import nanort as nr
from nanort import ops
from nanort.graphs import llama
from nanort.graphs.config import DecoderConfig
from nanort.graphs.decoder import Layer
from nanort.graphs.model import Model, Shapes, register
from nanort.graphs.qwen2 import SILENT


def attention_weights(config: DecoderConfig) -> Shapes:
    """Llama's, and a norm for the heads of queries, one for those of keys."""
    norms = {f"self_attn.{name}_norm.weight": (config.head_dim,) for name in "qk"}
    return llama.attention_weights(config) | norms


def weights(config: DecoderConfig) -> Shapes:
    """All of a layer."""
    return attention_weights(config) | llama.ffn_weights(config)


def attention(at: Layer, x: nr.Value) -> nr.Value:
    """Llama's, with the norms between projection and rotation."""
    q, k, v = (at.heads(at.linear(f"self_attn.{name}_proj", x)) for name in "qkv")
    q = ops.rms_norm(q, at.weight("self_attn.q_norm.weight"), eps=at.config.eps, name="q_norm")
    k = ops.rms_norm(k, at.weight("self_attn.k_norm.weight"), eps=at.config.eps, name="k_norm")
    return at.linear("self_attn.o_proj", at.attention(q, k, v))


def layer(at: Layer, x: nr.Value, residual: nr.Value) -> tuple[nr.Value, nr.Value]:
    """Attention, then Llama's gated layer."""
    x, residual = at.add_norm(attention(at, x), residual, "post_attention_layernorm.weight")
    return llama.ffn(at, x), residual


register(Model("qwen3", {"Qwen3ForCausalLM": SILENT | {"head_dim": 128}}, weights, layer))
