"""Llama 2 and 3, and Mistral: attention with few heads in the cache, then a gated feed-forward layer."""

from __future__ import annotations

import nanort as nr
from nanort import ops
from nanort.graphs.config import DecoderConfig
from nanort.graphs.decoder import Layer
from nanort.graphs.model import Model, Shapes, register


def attention_weights(config: DecoderConfig) -> Shapes:
    """Both norms of a layer, and the projections to and from the heads."""
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return {
        "input_layernorm.weight": (config.hidden,),
        "self_attn.q_proj.weight": (q, config.hidden),
        "self_attn.k_proj.weight": (kv, config.hidden),
        "self_attn.v_proj.weight": (kv, config.hidden),
        "self_attn.o_proj.weight": (config.hidden, q),
        "post_attention_layernorm.weight": (config.hidden,),
    }


def ffn_weights(config: DecoderConfig, module: str = "mlp", ffn: int = 0) -> Shapes:
    """A gated layer of ``ffn`` (the config's) as wide in the middle."""
    wide = ffn or config.ffn
    return {
        f"{module}.gate_proj.weight": (wide, config.hidden),
        f"{module}.up_proj.weight": (wide, config.hidden),
        f"{module}.down_proj.weight": (config.hidden, wide),
    }


def weights(config: DecoderConfig) -> Shapes:
    """All of a layer."""
    return attention_weights(config) | ffn_weights(config)


def attention(at: Layer, x: nr.Value, *, bias: bool = False) -> nr.Value:
    """Attention between its projections."""
    q, k, v = (at.heads(at.linear(f"self_attn.{name}_proj", x, bias=bias)) for name in "qkv")
    return at.linear("self_attn.o_proj", at.attention(q, k, v))


def ffn(at: Layer, x: nr.Value) -> nr.Value:
    """The gated layer."""
    gate, up = at.linear("mlp.gate_proj", x), at.linear("mlp.up_proj", x)
    return at.linear("mlp.down_proj", ops.silu_mul(gate, up))


def layer(at: Layer, x: nr.Value, residual: nr.Value) -> tuple[nr.Value, nr.Value]:
    """Attention, then the gated layer, each on what was normalised, each added to the residual stream."""
    x, residual = at.add_norm(attention(at, x), residual, "post_attention_layernorm.weight")
    return ffn(at, x), residual


register(
    Model(
        "llama",
        {"LlamaForCausalLM": {}, "MistralForCausalLM": {"num_key_value_heads": 8, "sliding_window": 4096}},
        weights,
        layer,
    )
)
