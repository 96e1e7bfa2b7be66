"""Steady steps of a decoder that serves: their sizes, their graphs with and without offload, and tensors for them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch

import nanort as nr
from benchmarks.gpu.layers import pinned
from benchmarks.gpu.timing import DTYPE, sized
from nanort.driver import Driver
from nanort.graphs import CONFIGS, DecoderConfig, decoder, offload

PAGE = 16
TILE = 128
"""Rows that a step is a multiple of."""
SPARE = 14e9
"""Bytes of the device for all but weights and cache: executors, kernels, what the driver needs."""


def llama(scale: float) -> DecoderConfig:
    """LLaMA-3-8B, or at a scale below 1 something like it."""
    full = CONFIGS["llama-3-8b"]
    group = full.heads // full.kv_heads
    heads = sized(full.heads, scale, group)
    return replace(
        full,
        layers=sized(full.layers, scale, 2),
        hidden=heads * full.head_dim,
        ffn=sized(full.ffn, scale, 64),
        heads=heads,
        kv_heads=heads // group,
        vocab=sized(full.vocab, scale, 64),
    )


@dataclass(frozen=True, slots=True)
class Step:
    """A step that processes as many tokens of prompts as are needed for those that its decoding requests end with.

    Attributes:
        decode, context: requests that decode, and the tokens that each has: it is in the middle of its reply.
        prompts: rows of each prompt.
        moved: pages that the step fills, and that offload copies each way; they belong to none of its requests.
    """

    decode: int
    context: int
    prompts: tuple[int, ...]
    moved: int

    @classmethod
    def largest(cls, memory_bytes: float, prompt: int, reply: int, scale: float) -> Step:
        """The largest of whole tiles whose cache fits beside LLaMA-3-8B's weights; at a small scale a part of it."""
        full = CONFIGS["llama-3-8b"]
        token = full.layers * 2 * full.kv_heads * full.head_dim * 2
        share = reply / (prompt + reply)  # of the rows, those that decode
        row = token * (share * (prompt + reply / 2) + 1 - share + 1)  # its context, or itself; and what moves
        fitting = int((memory_bytes - SPARE - 2 * full.parameters) / row)
        rows, length = sized(fitting // TILE * TILE, scale, 4), sized(prompt, scale, PAGE)
        decode = round(rows * share)
        whole, rest = divmod(rows - decode, length)
        prompts = (*(length for _ in range(whole)), *([rest] if rest else []))
        return cls(decode, sized(prompt + reply // 2, scale, PAGE), prompts, -(-rows // PAGE))

    @property
    def lengths(self) -> list[int]:
        """Tokens that each request has when the step has ended."""
        return [*(self.context for _ in range(self.decode)), *self.prompts]

    @property
    def pages(self) -> int:
        """Pages of its requests, those that move, and the scratch page."""
        return 1 + sum(-(-length // PAGE) for length in self.lengths) + self.moved

    def graph(self, config: DecoderConfig, pages: int, *, moving: bool = False) -> nr.Graph:
        """The step over a cache of so many pages, with offload if asked for."""
        sizes = {"pages": pages, "page_size": PAGE, "requests": len(self.lengths)}
        width = -(-max(self.lengths) // PAGE)
        segments = tuple(nr.Segment(rows) for rows in self.prompts)
        layout = nr.Layout(self.decode, segments, self.decode * self.context)
        if moving:
            swaps = {"swap_out": self.moved, "swap_in": self.moved}
            return offload(config, layout, **sizes, **swaps, table_width=width, dtype=DTYPE)
        return decoder(config, layout, **sizes, table_width=width, dtype=DTYPE)

    def inputs(self, driver: Driver, graph: nr.Graph, vocab: int) -> dict[str, torch.Tensor]:
        """Inputs of such a graph, per row in canonical order; ``last`` is for the rows as the graph packs them."""
        assert graph.layout is not None
        width, first, tables = -(-max(self.lengths) // PAGE), 1, list[list[int]]()
        for length in self.lengths:
            count = -(-length // PAGE)
            tables.append([*range(first, first + count), *[0] * (width - count)])
            first += count
        table = torch.tensor(tables, dtype=torch.int32)
        rows = [1] * self.decode + list(self.prompts)
        owner = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(rows))
        positions = torch.cat(
            [torch.arange(length - count, length) for length, count in zip(self.lengths, rows, strict=True)]
        )
        noise = torch.Generator().manual_seed(0)
        packed = graph.layout.unpack(torch.arange(graph.layout.rows))
        moved = torch.arange(first, first + self.moved)
        found = {
            "tokens": torch.randint(vocab, owner.shape, generator=noise),
            "positions": positions,
            "slots": table[owner, positions // PAGE].long() * PAGE + positions % PAGE,
            "requests": owner,
            "pages": table,
            "last": packed[torch.tensor(rows).cumsum(0) - 1],
            "swap_out": moved,
            "swap_in": moved,
        }
        return {name: tensor.to(driver.device) for name, tensor in found.items()}


def random_tensors(driver: Driver, graph: nr.Graph, kinds: Collection[str]) -> dict[str, torch.Tensor]:
    """Random numbers for the roots of these kinds, those of integers left out; on the host they are pinned."""
    noise = torch.Generator(driver.device).manual_seed(0)
    made = {}
    for root in graph.roots:
        if root.kind in kinds and root.dtype.is_floating_point:
            made[root.name] = torch.randn(root.shape, generator=noise, dtype=root.dtype, device=driver.device)
            if root.kind == "constant" and len(root.shape) > 1:
                made[root.name] /= root.shape[-1] ** 0.5  # products keep the size of what they multiply
            if root.device == "host":
                made[root.name] = pinned(driver, made[root.name])
    return made
