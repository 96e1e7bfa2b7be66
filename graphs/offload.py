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

    Both belong to no request of the step: the first hold requests that have finished or that wait, the second are for
    requests to come, and may be the same pages. So no attention waits for them: in the cells of the layout they are
    ``elsewhere``, and the only order between pages moved and pages used is that of a page that is saved, then loaded.

    Each layer's pages are gathered before its compute is called and scattered after it. Gather and scatter need HBM and
    few SMs, both copies need none, so a scheduler is free to run them beside any layer; one that keeps the order of the
    calls still copies a layer's pages, each way, while that layer computes. Contiguous staging makes one copy of many
    pages, which PCIe needs to be fast.

    Besides those of a decoder, inputs are ``swap_out`` and ``swap_in``, page numbers, and on the host ``loaded.0``, ...:
    pages (swap_in, 2, page_size, kv_heads, head_dim) of every layer; outputs are ``saved.0``, ... on the host.
    """
    g = nr.Graph(name, layout)
    step = Step.inputs(g, config, pages, page_size, requests, table_width, dtype)
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
