"""Layers of a decoder over the attention of attention.py, with pages of a pool swapped beside them if asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import nanort as nr
from benchmarks.gpu import attention
from benchmarks.gpu.timing import DTYPE, sized
from nanort import ops
from nanort.driver import Driver

DIM, PAGE = 128, 16  # of a head; tokens of a page
SHARED = 4
"""Query heads that share keys and values."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of the layers, and of their step.

    Attributes:
        decode, context: requests that decode, tokens that each has in the cache.
        prefill: rows of one prompt.
        swap: pages of every layer that leave for the host, and as many that come from it.
    """

    layers: int
    heads: int
    ffn: int
    decode: int
    context: int
    prefill: int = 0
    swap: int = 0

    @staticmethod
    def llama(scale: float, *, layers: int, decode: int, context: int, prefill: int = 0) -> Sizes:
        """Layers of LLaMA-3-8B."""
        heads, ffn = sized(32, scale, SHARED), sized(14336, scale, 64)
        rows = (max(2, sized(count, scale)) if count else 0 for count in (decode, prefill))
        decode, prefill = rows
        return Sizes(sized(layers, scale, 2), heads, ffn, decode, sized(context, scale, PAGE), prefill)

    @property
    def hidden(self) -> int:
        return self.heads * DIM

    @property
    def pages(self) -> int:
        """Pages of every layer that the step's requests hold."""
        return self.decode * self.context // PAGE


def layers(sizes: Sizes) -> nr.Graph:
    """The graph of a step; swapped pages stand in a pool of the device and in pinned memory, no request owns them."""
    layout = nr.Layout(sizes.decode, sizes.prefill, kv_tokens=sizes.decode * sizes.context)
    g = nr.Graph(f"layers-{sizes.swap}" if sizes.swap else "layers", layout=layout)
    positions = g.input("positions", (layout.rows,), torch.int64, batch=0)
    h, residual = (g.input(name, (layout.rows, sizes.hidden), DTYPE, batch=0) for name in ("h", "residual"))
    for i in range(sizes.layers):
        with g.scope(layer=i):
            swapped = _leaving(g, sizes, i) if sizes.swap else None
            h, residual = _layer(g, sizes, i, h, residual, positions)
            if swapped is not None:
                ops.page_scatter(*swapped)
    g.output(h=h, residual=residual)
    return g


def _leaving(g: nr.Graph, sizes: Sizes, i: int) -> tuple[nr.Value, nr.Value, nr.Value]:
    """Pages on their way to the host, and what is to be scattered: the pool, page numbers, the pages that came."""
    shape = (sizes.swap, 2, PAGE, sizes.heads // SHARED, DIM)
    pool = g.state(f"pool.{i}", (2 * sizes.swap, *shape[1:]), DTYPE)
    leaving, entering = (g.constant(f"{name}.{i}", (sizes.swap,), torch.int64) for name in ("leaving", "entering"))
    ops.to_host(ops.page_gather(pool, leaving))
    return pool, entering, ops.to_device(g.state(f"tier.{i}", shape, DTYPE, device="host"))


def _layer(
    g: nr.Graph, sizes: Sizes, i: int, h: nr.Value, residual: nr.Value, positions: nr.Value
) -> tuple[nr.Value, nr.Value]:
    heads, kv_heads, hidden = sizes.heads, sizes.heads // SHARED, sizes.hidden

    def dense(name: str, x: nr.Value, width: int) -> nr.Value:
        return ops.linear(x, g.constant(f"{name}.{i}", (width, x.shape[1]), DTYPE), name=name)

    def norm(name: str) -> nr.Value:
        return g.constant(f"{name}.{i}", (hidden,), DTYPE)

    kv = g.state(f"kv.{i}", (sizes.decode, 2, kv_heads, sizes.context, DIM), DTYPE)
    prompt = g.state(f"prompt.{i}", (2, kv_heads, max(1, sizes.prefill), DIM), DTYPE)
    q = ops.rope(dense("q", h, hidden).reshape(-1, heads, DIM), positions)
    k, v = (dense(name, h, kv_heads * DIM).reshape(-1, kv_heads, DIM) for name in "kv")
    attention.kv_append(kv, prompt, ops.rope(k, positions), v)
    rows, prompt_rows = g.split(q)
    seen = attention.decode_attention(rows, kv)
    if sizes.prefill:
        seen = g.join(seen, attention.prefill_attention(prompt_rows, prompt))
    h, residual = ops.add_rms_norm(dense("o", seen.reshape(-1, hidden), hidden), residual, norm("norm"))
    h = dense("down", ops.silu_mul(dense("gate", h, sizes.ffn), dense("up", h, sizes.ffn)), hidden)
    return ops.add_rms_norm(h, residual, norm("next_norm"))


def tensors(driver: Driver, graph: nr.Graph) -> dict[str, torch.Tensor]:
    """Random numbers for all that a graph asks for; positions from 0 on, pages that leave before those that enter."""
    noise = torch.Generator(driver.device).manual_seed(0)
    made = {}
    for root in graph.roots:
        if root.kind not in ("input", "constant", "state"):
            continue
        if root.dtype == torch.int64:
            first = root.shape[0] if root.name.startswith("entering") else 0
            made[root.name] = torch.arange(first, first + root.shape[0], device=driver.device)
            continue
        values = torch.randn(root.shape, generator=noise, dtype=root.dtype, device=driver.device)
        if root.kind == "constant" and len(root.shape) > 1:
            values /= root.shape[-1] ** 0.5  # products keep the size of what they multiply
        made[root.name] = pinned(driver, values) if root.device == "host" else values
    return made


def pinned(driver: Driver, values: torch.Tensor) -> torch.Tensor:
    """A copy of ``values`` in host memory that the device copies from at full speed."""
    host = driver.allocate(values.nbytes, host=True).view(values.dtype).view(values.shape)
    return host.copy_(values)
