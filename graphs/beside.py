"""beside: a decode step of all layers, and some layers of a chunk of prompts, which need nothing of each other."""

from __future__ import annotations

from dataclasses import replace

import torch

import nanort as nr
from nanort import ops
from nanort.errors import LayoutError
from nanort.graphs.config import DecoderConfig
from nanort.graphs.decoder import Step
from nanort.graphs.offload import Swaps


def beside(
    config: DecoderConfig,
    layout: nr.Layout,
    *,
    first: int,
    layers: int,
    chunk_rows: int,
    pages: int,
    page_size: int = 16,
    requests: int,
    table_width: int,
    dtype: torch.dtype = torch.float32,
    name: str = "beside",
    sampling: bool = False,
    seats: int = 0,
    swap_out: int = 0,
    swap_in: int = 0,
) -> nr.Graph:
    """A step whose decode rows pass all layers, and whose prefill rows only ``layers`` of them, from ``first`` on.

    A prompt delays those that decode by as much of it as a step holds: here some layers of a chunk. The next steps go
    on with the layers after them, and keep what the chunk has come to in the state ``chunk`` (chunk_rows, hidden). The
    first of these steps embeds its tokens, the last gives its logits; until then ``last`` must name no prefill row.

    The two parts append to cells of their own, read no cell that the other writes, and stand in ``g.scope(part=...)``
    as "decode" and "prefill". So ``nr.Apart`` gives each of them SMs of its own; other policies mix them.

    Args:
        config: the sizes of the model.
        layout: the rows of the step: decode, then prefill; without decode rows the chunk must come to its end.
        first: the layer that the prefill rows pass first.
        layers: how many of them they pass.
        chunk_rows: the most rows that a chunk has, in any step.
        pages: as for :func:`decoder`, like the rest; inputs, outputs and the other states are the same too.
        page_size: of the KV cache.
        requests: of this step.
        table_width: pages a request may have.
        dtype: of weights, cache and what is computed.
        name: of the graph.
        sampling: draws the tokens.
        seats: for drawn tokens.
        swap_out: pages saved to the host, as for :func:`offload`.
        swap_in: pages loaded from it.

    Raises:
        LayoutError: layers that the model lacks, a chunk that is empty or too large, or nothing to give logits of.
    """
    stop = first + layers
    if not 0 <= first < stop <= config.layers or not 0 < layout.prefill_rows <= chunk_rows:
        raise LayoutError(
            f"layers {first} to {stop} of {config.layers}, {layout.prefill_rows} prefill rows of at most {chunk_rows}: "
            "give layers that the model has, and a chunk that fits the state which keeps it"
        )
    if not layout.decode and stop < config.layers:
        raise LayoutError(f"no rows are left at layer {stop}: without decode rows, go on to layer {config.layers}")
    g = nr.Graph(name, layout)
    step = Step.inputs(g, config, (pages, page_size), (requests, table_width), dtype, seats)
    swaps = Swaps.inputs(step, swap_out, swap_in)
    with g.scope(part="prefill"):  # before the others, which change what it looks tokens up in
        part = _part(step, "prefill", layout.decode, layout.rows)
        chunk = g.state("chunk", (chunk_rows, config.hidden), dtype)[: layout.prefill_rows]
        y, residual = (ops.rms_norm(chunk, part.norm(first), eps=config.eps), chunk) if first else part.embed()
        for i in range(first, stop):
            with g.scope(layer=i):
                y, residual = part.layer(i, y, residual)
        if stop < config.layers:
            ops.store(chunk, residual)
    with g.scope(part="decode"):
        part = _part(step, "decode", 0, layout.decode)
        x, residual = part.embed()
        for i in range(config.layers):
            with g.scope(layer=i):
                swaps.begin(i)
                x, residual = part.layer(i, x, residual) if layout.decode else (x, residual)
                swaps.end(i)
        if stop < config.layers:
            step.head(x, sampling)
    if stop == config.layers:
        step.head(g.join(x, y), sampling)
    return g


def _part(step: Step, kind: str, low: int, high: int) -> Step:
    """The step of its decode or prefill rows alone."""
    rows = {
        name: getattr(step, name).narrow(0, low, high, kind) for name in ("tokens", "positions", "slots", "requests")
    }
    return replace(step, layout=step.layout.narrow(low, high), **rows)
