"""Builders of whole graphs, imported as nanort.graphs: decoders of language models, and random DAGs to try things on.

>>> import nanort as nr
>>> from nanort import graphs
>>> graphs.decoder(graphs.CONFIGS["tiny"], nr.Layout(decode=4, kv_tokens=40), pages=8, requests=4, table_width=2)
Graph decoder: 29 nodes, 38 edges, 6 inputs, 21 constants, 2 states, 2 outputs
"""

from nanort.graphs import synthetic
from nanort.graphs.config import CONFIGS, DecoderConfig, random_weights
from nanort.graphs.decoder import decoder
from nanort.graphs.offload import offload
from nanort.graphs.step import decoder_step, step_inputs

__all__ = [
    "CONFIGS",
    "DecoderConfig",
    "decoder",
    "decoder_step",
    "offload",
    "random_weights",
    "step_inputs",
    "synthetic",
]
