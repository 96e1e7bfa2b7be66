"""Steps: the graphs of a model's steps by their shapes, the states that these share, and how they are scheduled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from nanort.costs.profile import Profile
from nanort.devices import Device
from nanort.errors import CapacityError
from nanort.graph import Graph
from nanort.graphs import DecoderConfig, decoder, offload
from nanort.graphs.beside import beside
from nanort.scheduling.apart import Apart
from nanort.scheduling.coschedule import co_schedule
from nanort.scheduling.schedule import Schedule
from nanort.serving.batching import Batch
from nanort.serving.shapes import Shape, rounded, swapped

EXECUTORS = 8
"""One part in so many of the memory that weights leave is for executors."""


@dataclass(frozen=True, slots=True)
class Steps:
    """What the steps of a model have in common.

    Attributes:
        config: the model.
        dtype: of weights, cache and what is computed.
        pages, page_size: of the KV cache.
        seats: requests that run at once.
        max_rows: rows of a step.
    """

    config: DecoderConfig
    dtype: torch.dtype
    pages: int
    page_size: int
    seats: int
    max_rows: int

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk that passes the layers in several steps."""
        return rounded(self.max_rows)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers."""
        return page_bytes(self.config, self.page_size, self.dtype)

    def shape(self, batch: Batch) -> Shape:
        """What of a batch its plan depends on."""
        loaded, saved = (swapped(len(pages)) * self.page_bytes for pages in (batch.loads, batch.saves))
        return Shape.of(batch, self.page_size, loaded, saved)

    def graph(self, shape: Shape) -> Graph:
        """The graph of every step that ``shape`` suits."""
        layout = shape.layout
        sizes: dict[str, Any] = {
            "pages": self.pages, "page_size": self.page_size, "requests": shape.requests, "table_width": shape.width,
            "dtype": self.dtype, "sampling": shape.sampling, "seats": self.seats,
        }  # fmt: skip  # what all of them take, in two lines
        if not (shape.beside or layout.h2d_bytes or layout.d2h_bytes):
            return decoder(self.config, layout, **sizes)
        sizes |= {"swap_in": layout.h2d_bytes // self.page_bytes, "swap_out": layout.d2h_bytes // self.page_bytes}
        if (part := shape.beside) is None:
            return offload(self.config, layout, **sizes)
        sizes |= {"first": part.first, "layers": part.layers, "chunk_rows": self.chunk_rows}
        return beside(self.config, layout, **sizes)

    def states(self, place: str) -> dict[str, torch.Tensor]:
        """The tensors that steps change in place: the cache by layer, a chunk on its way, tokens drawn last."""
        shape = page_shape(self.config, self.page_size)
        kv = {f"kv.{i}": (self.pages, *shape) for i in range(self.config.layers)}
        sizes = kv | {"chunk": (self.chunk_rows, self.config.hidden)}
        states = {name: torch.zeros(size, dtype=self.dtype, device=place) for name, size in sizes.items()}
        return states | {"drawn": torch.zeros(self.seats + 1, dtype=torch.int64, device=place)}


def page_shape(config: DecoderConfig, page_size: int) -> tuple[int, int, int, int]:
    """The keys and values of one page, in one layer."""
    return 2, page_size, config.kv_heads, config.head_dim


def page_bytes(config: DecoderConfig, page_size: int, dtype: torch.dtype) -> int:
    """Bytes of one page over all layers."""
    return config.layers * prod(page_shape(config, page_size)) * dtype.itemsize


def pages_within(memory: int, weights: int, page: int, pages: int | None = None) -> tuple[int, int]:
    """Pages of so many bytes each that fit beside the weights in ``memory`` bytes, and bytes left for executors.

    With ``pages`` given, only the latter follow.

    Raises:
        CapacityError: they leave no room for a cache.
    """
    left = memory - weights
    found = (left - left // EXECUTORS) // page if pages is None else pages
    if found < 2 or found * page >= left:
        raise CapacityError(
            f"memory={memory:,} bytes leave no room for a KV cache of {max(2, found)} pages beside {weights:,} bytes "
            f"of weights: give at least {weights + 2 * max(2, found) * page:,}, or a smaller cache"
        )
    return found, left - found * page


def searcher(
    device: Device, profile: Profile | None, *, policy: str, nano_batches: tuple[int, ...], guard: bool
) -> Callable[[Shape, Graph], Schedule]:
    """How a step is scheduled on ``device`` by what was measured there."""

    def search(shape: Shape, graph: Graph) -> Schedule:
        if shape.beside is not None:
            return co_schedule(graph, device, profile=profile, policy=Apart(), nano_batches=1)
        return co_schedule(graph, device, profile=profile, policy=policy, nano_batches=nano_batches, guard=guard)

    return search
