"""Builders of whole graphs, imported as nanort.graphs: decoders of language models, and random DAGs to try things on.

>>> import nanort as nr
>>> from nanort import graphs
>>> graphs.decoder(graphs.CONFIGS["tiny"], nr.Layout(decode=4, kv_tokens=40), pages=8, requests=4, table_width=2)
Graph decoder: 29 nodes, 38 edges, 6 inputs, 21 constants, 2 states, 2 outputs
"""

from nanort.graphs import llama, mixtral, phi3, qwen2, qwen2_moe, qwen3, qwen3_moe, synthetic
from nanort.graphs.beside import beside
from nanort.graphs.config import DecoderConfig, random_weights
from nanort.graphs.decoder import decoder
from nanort.graphs.known import CONFIGS
from nanort.graphs.model import MODELS, Model, register
from nanort.graphs.offload import offload
from nanort.graphs.step import decoder_step, step_inputs

__all__ = [
    "CONFIGS",
    "MODELS",
    "DecoderConfig",
    "Model",
    "beside",
    "decoder",
    "decoder_step",
    "llama",
    "mixtral",
    "offload",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "random_weights",
    "register",
    "step_inputs",
    "synthetic",
]
