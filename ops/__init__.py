"""Operators with their demands, imported as nanort.ops: those of a decoder, and the copies around it.

On tensors they compute; on Values they make nodes whose demand is known.

>>> import torch, nanort as nr
>>> from nanort import ops
>>> ops.silu_mul(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 2.0]))
tensor([0.0000, 1.4621])
>>> g = nr.Graph("dense")
>>> ops.linear(g.input("x", (64, 128), torch.bfloat16), g.constant("w", (256, 128), torch.bfloat16))
linear: bfloat16[64, 256]
>>> g.nodes[0].demand
Demand(flops=4.1943e+06, hbm_bytes=114688, tiles=8)
"""

from nanort.ops.activation import add, gated_add, silu_mul
from nanort.ops.attention import decode_attention, prefill_attention
from nanort.ops.embedding import embedding, recall
from nanort.ops.kv import kv_append, page_gather, page_scatter
from nanort.ops.linear import linear
from nanort.ops.moe import expert_combine, expert_linear, route
from nanort.ops.norm import add_rms_norm, rms_norm
from nanort.ops.rope import rope, rope_kv_append
from nanort.ops.rows import gather, scatter, store
from nanort.ops.sampling import argmax, sample
from nanort.ops.transfer import to_device, to_host

__all__ = [
    "add",
    "add_rms_norm",
    "argmax",
    "decode_attention",
    "embedding",
    "expert_combine",
    "expert_linear",
    "gated_add",
    "gather",
    "kv_append",
    "linear",
    "page_gather",
    "page_scatter",
    "prefill_attention",
    "recall",
    "rms_norm",
    "rope",
    "rope_kv_append",
    "route",
    "sample",
    "scatter",
    "silu_mul",
    "store",
    "to_device",
    "to_host",
]
