"""Qwen2 and Qwen2.5: Llama with biases on what makes queries, keys and values."""

from __future__ import annotations

import nanort as nr
from nanort.graphs import llama
from nanort.graphs.config import DecoderConfig
from nanort.graphs.decoder import Layer
from nanort.graphs.model import Model, Shapes, register


def attention_weights(config: DecoderConfig) -> Shapes:
    """Llama's, and a bias for each projection to heads."""
    shapes = llama.attention_weights(config)
    biases = {f"self_attn.{name}_proj.bias": shapes[f"self_attn.{name}_proj.weight"][:1] for name in "qkv"}
    return shapes | biases


def weights(config: DecoderConfig) -> Shapes:
    """All of a layer."""
    return attention_weights(config) | llama.ffn_weights(config)


def layer(at: Layer, x: nr.Value, residual: nr.Value) -> tuple[nr.Value, nr.Value]:
    """Llama's, with biases in attention."""
    x, residual = at.add_norm(llama.attention(at, x, bias=True), residual, "post_attention_layernorm.weight")
    return llama.ffn(at, x), residual


SILENT = {"use_sliding_window": False, "max_position_embeddings": 32768}
"""What a config.json of this family means where it is silent."""

register(Model("qwen2", {"Qwen2ForCausalLM": SILENT}, weights, layer))
