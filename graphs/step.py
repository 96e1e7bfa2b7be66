"""A typical step of a decoder: so many requests that decode at one context length, and one prompt that is prefilled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

import nanort as nr
from nanort.graphs.config import DecoderConfig
from nanort.graphs.decoder import decoder
from nanort.graphs.offload import offload

PAGE_SIZE = 16


def decoder_step(
    config: DecoderConfig,
    *,
    decode: int,
    context: int,
    prefill: int,
    swap: float = 0.0,
    dtype: torch.dtype = torch.bfloat16,
) -> nr.Graph:
    """The graph of one step: ``decode`` rows that read ``context`` cached tokens each, ``prefill`` rows of a prompt.

    ``swap`` is how many pages leave for the host, and as many come from it, for each page of the step's requests; with
    any, the graph is one of :func:`offload`.
    """
    requests, pages = _pages(decode, context, prefill)
    swapped = round(swap * requests * pages)
    build: Callable[..., nr.Graph] = partial(offload, swap_out=swapped, swap_in=swapped) if swapped else decoder
    return build(
        config,
        nr.Layout(decode=decode, prefill=prefill, kv_tokens=decode * context),
        pages=1 + requests * pages + swapped,
        page_size=PAGE_SIZE,
        requests=requests,
        table_width=pages,
        dtype=dtype,
    )


def step_inputs(
    config: DecoderConfig, layout: nr.Layout, *, decode: int, context: int, prefill: int, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Inputs of that graph without swaps: random tokens, rows in the order of ``layout`` (the cut graph's)."""
    requests, pages = _pages(decode, context, prefill)
    table = 1 + torch.arange(requests * pages, dtype=torch.int32).view(requests, pages)
    owner = torch.cat([torch.arange(decode), torch.full((prefill,), decode)])
    positions = torch.cat([torch.full((decode,), max(0, context - 1)), torch.arange(prefill)])
    rows = {
        "tokens": torch.randint(config.vocab, (layout.rows,), generator=torch.Generator().manual_seed(seed)),
        "positions": positions,
        "slots": table[owner, positions // PAGE_SIZE].long() * PAGE_SIZE + positions % PAGE_SIZE,
        "requests": owner,
    }
    packed = layout.unpack(torch.arange(layout.rows))  # where each canonical row stands
    last = torch.cat([packed[:decode], packed[layout.rows - 1 :] if prefill else packed[:0]])
    return {name: layout.pack(row) for name, row in rows.items()} | {"pages": table, "last": last}


def _pages(decode: int, context: int, prefill: int) -> tuple[int, int]:
    """Requests, and pages that each holds."""
    return decode + bool(prefill), max(1, -(-max(context if decode else 0, prefill) // PAGE_SIZE))
