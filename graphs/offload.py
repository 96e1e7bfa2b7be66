"""offload: a decoder's step that swaps pages of the KV cache over PCIe, both ways, beside its compute."""

from __future__ import annotations

import torch

import nanort as nr
from nanort import ops
from nanort.graphs.config import DecoderConfig
from nanort.graphs.decoder import Step


def offload(
    config: DecoderConfig,
    layout: nr.Layout,
    *,
    swap_out: int,
    swap_in: int,
    pages: int,
    page_size: int = 16,
    requests: int,
    table_width: int,
    dtype: torch.dtype = torch.float32,
    name: str = "offload",
) -> nr.Graph:
    """A step of :func:`decoder` that saves ``swap_out`` pages to the host and loads ``swap_in`` pages from it.

    None of them belongs to a request of the step: the first hold requests that have finished or wait, the second are
    for requests to come, and may be the same pages. So attention does not wait for them, they are ``elsewhere`` in the
    layout's cells, and nothing is ordered but that a layer's pages are saved before others are loaded over them.

    Each layer's pages are gathered before its compute is called and scattered after it. The copies in between need no
    SMs, so a scheduler is free to run them beside any layer, and even one that keeps the order of the calls copies a
    layer's pages, both ways, while that layer computes. They go through contiguous staging, one copy for many pages,
    because PCIe is slow with small ones.

    Inputs besides a decoder's: the page numbers ``swap_out`` and ``swap_in``, and on the host the pages of each layer,
    ``loaded.0``, ... (swap_in, 2, page_size, kv_heads, head_dim). Outputs besides, on the host too: ``saved.0``, ...
    """
    g = nr.Graph(name, layout)
    step = Step.inputs(g, config, (pages, page_size), (requests, table_width), dtype)
    leaving = g.input("swap_out", (swap_out,), torch.int64)
    entering = g.input("swap_in", (swap_in,), torch.int64)
    x, residual = step.embed()
    for i, kv in enumerate(step.kv):
        loaded = g.input(f"loaded.{i}", (swap_in, *kv.shape[1:]), dtype, device="host")
        with g.scope(layer=i):
            g.output(**{f"saved.{i}": ops.to_host(ops.page_gather(kv, leaving))})
            staging = ops.to_device(loaded)
            x, residual = step.layer(i, x, residual)
            ops.page_scatter(kv, entering, staging)
    step.head(x, sampling=False)
    return g
