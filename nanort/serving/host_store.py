"""HostStore: the host tier's pages, and how those that a batch moves get into its step and out of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from nanort.graphs import DecoderConfig
from nanort.serving.batching import Batch
from nanort.serving.shapes import swapped
from nanort.serving.steps import page_shape


class HostStore:
    """Pages by slot in the host's memory, a tensor for each layer: what a HostTier keeps the books of.

    A step reads and writes them through its inputs and outputs, which are contiguous and, on a GPU, pinned. So these
    tensors need not be: they are as large as the host's memory allows, and pinned memory is scarce. Each page is copied
    once on the host, from here to there or back.

    Args:
        config: the model's.
        slots: pages that it holds.
        page_size: tokens a page.
        dtype: of the cache.
    """

    def __init__(self, config: DecoderConfig, slots: int, page_size: int, dtype: torch.dtype) -> None:
        shape = (slots, *page_shape(config, page_size))
        self._layers = [torch.zeros(shape, dtype=dtype) for _ in range(config.layers)]

    @property
    def nbytes(self) -> int:
        """Bytes of the host that all pages take."""
        return sum(layer.nbytes for layer in self._layers)

    def inputs(self, batch: Batch, into: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """What a step of ``offload`` is given for the pages that the batch moves, put ``into`` these where they are.

        Numbers that are padding name the scratch page, which is saved for nothing and loaded with anything.
        """
        given = {}
        if batch.saves:
            given["swap_out"] = _padded([page for page, _ in batch.saves])
        if batch.loads:
            given["swap_in"] = _padded([page for _, page in batch.loads])
            slots = torch.tensor([slot for slot, _ in batch.loads], dtype=torch.int64)
            for i, layer in enumerate(self._layers):
                there = (into or {}).get(f"loaded.{i}")
                pages = layer.new_zeros(swapped(len(slots)), *layer.shape[1:]) if there is None else there
                torch.index_select(layer, 0, slots, out=pages[: len(slots)])
                given[f"loaded.{i}"] = pages
        return given

    def keep(self, batch: Batch, outputs: Mapping[str, torch.Tensor]) -> None:
        """Stores the pages that the batch saved; its step has ended."""
        slots = torch.tensor([slot for _, slot in batch.saves], dtype=torch.int64)
        for i, layer in enumerate(self._layers if batch.saves else ()):
            layer.index_copy_(0, slots, outputs[f"saved.{i}"][: len(slots)])

    def move(self, batch: Batch, states: Mapping[str, torch.Tensor]) -> None:
        """Moves the batch's pages at once, for a batch that has no rows beside which a step could."""
        out, kept, taken, into = (
            torch.tensor(numbers, dtype=torch.int64) for numbers in (*_columns(batch.saves), *_columns(batch.loads))
        )
        for i, layer in enumerate(self._layers):
            kv = states[f"kv.{i}"]
            layer.index_copy_(0, kept, kv.index_select(0, out.to(kv.device)).cpu())
            kv.index_copy_(0, into.to(kv.device), layer.index_select(0, taken).to(kv.device))


def _padded(numbers: list[int]) -> torch.Tensor:
    return torch.tensor(numbers + [0] * (swapped(len(numbers)) - len(numbers)), dtype=torch.int64)


def _columns(pairs: tuple[tuple[int, int], ...]) -> tuple[list[int], list[int]]:
    return [first for first, _ in pairs], [second for _, second in pairs]
