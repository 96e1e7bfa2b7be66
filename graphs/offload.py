"""offload: a decoder's step that swaps pages of the KV cache over PCIe, both ways, beside its compute."""

from __future__ import annotations

from dataclasses import dataclass, field

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
    sampling: bool = False,
    seats: int = 0,
) -> nr.Graph:
    """A step of :func:`decoder` that saves ``swap_out`` pages to the host and loads ``swap_in`` pages from it.

    No row of the step writes a page that is saved, and none touches one that is loaded: the first hold what requests
    have left behind or share, the second are for requests to come. They may be the same pages. Where fewer move than
    the graph is made for, the other numbers are 0, the scratch page. So attention does not wait for them, they are
    ``elsewhere`` in the layout's cells, and nothing is ordered but that a layer's pages are saved before others are
    loaded over them.

    Each layer's pages are gathered before its compute is called and scattered after it. The copies in between need no
    SMs, so a scheduler is free to run them beside any layer, and even one that keeps the order of the calls copies a
    layer's pages, both ways, while that layer computes. They go through contiguous staging, one copy for many pages,
    because PCIe is slow with small ones.

    Inputs besides a decoder's: the page numbers ``swap_out`` and ``swap_in``, and on the host the pages of each layer,
    ``loaded.0``, ... (swap_in, 2, page_size, kv_heads, head_dim). Outputs besides, on the host too: ``saved.0``, ...
    A direction in which nothing moves has none of these.
    """
    g = nr.Graph(name, layout)
    step = Step.inputs(g, config, (pages, page_size), (requests, table_width), dtype, seats)
    swaps = Swaps.inputs(step, swap_out, swap_in)
    x, residual = step.embed()
    for i in range(config.layers):
        with g.scope(layer=i):
            swaps.begin(i)
            x, residual = step.layer(i, x, residual)
            swaps.end(i)
    step.head(x, sampling)
    return g


@dataclass(frozen=True, slots=True)
class Swaps:
    """The pages that a step moves: their numbers, and of each layer the staging that its pages arrive in."""

    step: Step
    leaving: nr.Value | None
    entering: nr.Value | None
    staging: dict[int, nr.Value] = field(default_factory=dict)

    @classmethod
    def inputs(cls, step: Step, swap_out: int, swap_in: int) -> Swaps:
        """Declares the page numbers; none for a direction in which nothing moves."""
        counts = {"swap_out": swap_out, "swap_in": swap_in}
        leaving, entering = (step.graph.input(k, (n,), torch.int64) if n else None for k, n in counts.items())
        return cls(step, leaving, entering)

    def begin(self, i: int) -> None:
        """Pages of layer ``i`` set off, both ways: called before its compute."""
        g, kv = self.step.graph, self.step.kv[i]
        if self.leaving is not None:
            g.output(**{f"saved.{i}": ops.to_host(ops.page_gather(kv, self.leaving))})
        if self.entering is not None:
            shape = (*self.entering.shape, *kv.shape[1:])
            self.staging[i] = ops.to_device(g.input(f"loaded.{i}", shape, kv.dtype, device="host"))

    def end(self, i: int) -> None:
        """Those that came to layer ``i`` take their places: called after its compute."""
        if self.entering is not None:
            ops.page_scatter(self.step.kv[i], self.entering, self.staging[i])
