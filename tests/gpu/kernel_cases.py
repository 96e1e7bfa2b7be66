"""Arguments of operators at odd sizes, for their kernels; memory that no kernel may look at is not a number."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

Args = tuple[Any, ...]


class Draw:
    """Random arguments in one dtype, the same for the same seed."""

    def __init__(self, dtype: torch.dtype, seed: int = 0) -> None:
        self.dtype = dtype
        self._random = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self._random).to(self.dtype)

    def weight(self, *shape: int) -> torch.Tensor:
        """What keeps the size of what it multiplies."""
        return (torch.randn(shape, generator=self._random) / math.sqrt(shape[-1])).to(self.dtype)

    def uniform(self, *shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=self._random)

    def order(self, count: int) -> torch.Tensor:
        return torch.randperm(count, generator=self._random)

    def below(self, most: int, *shape: int) -> torch.Tensor:
        return torch.randint(most, shape, generator=self._random)

    def cached(self, lengths: list[int], page: int, kv_heads: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A cache of shuffled pages and the table of requests of these lengths; what none of them holds is NaN."""
        widths = [-(-length // page) for length in lengths]
        table = self.order(sum(widths) + 3)[: len(lengths) * max(widths)]
        names = iter(table.tolist())
        kv = torch.full((sum(widths) + 3, 2, page, kv_heads, dim), math.nan, dtype=self.dtype)
        pages = torch.zeros(len(lengths), max(widths), dtype=torch.int32)
        for request, (length, width) in enumerate(zip(lengths, widths, strict=True)):
            for at in range(width):
                pages[request, at] = here = next(names)
                held = min(page, length - at * page)
                kv[here, :, :held] = self.normal(2, held, kv_heads, dim)
        return kv, pages


def _decode(heads: int, kv_heads: int, dim: int, page: int, lengths: list[int]) -> Callable[[Draw], Args]:
    def made(draw: Draw) -> Args:
        kv, pages = draw.cached(lengths, page, kv_heads, dim)
        return 3 * draw.normal(len(lengths), heads, dim), kv, pages, torch.tensor(lengths) - 1

    return made


def _prefill(heads: int, kv_heads: int, dim: int, page: int, parts: list[tuple[int, int]]) -> Callable[[Draw], Args]:
    """Requests of so many rows after so many tokens."""

    def made(draw: Draw) -> Args:
        kv, pages = draw.cached([past + rows for rows, past in parts], page, kv_heads, dim)
        positions = torch.cat([torch.arange(past, past + rows) for rows, past in parts])
        requests = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor([rows for rows, _ in parts]))
        return 3 * draw.normal(len(positions), heads, dim), kv, pages, positions, requests

    return made


def _appended(draw: Draw, rows: int = 13, kv_heads: int = 2, dim: int = 64) -> Args:
    return draw.normal(rows, kv_heads, dim), draw.normal(rows, kv_heads, dim)


def _chosen(draw: Draw, rows: int, experts: int) -> torch.Tensor:
    return torch.stack([draw.order(experts)[:2] for _ in range(rows)])


def _logits(draw: Draw, rows: int, experts: int, width: int) -> torch.Tensor:
    """What starts with every expert's logit, all far apart."""
    apart = torch.stack([draw.order(experts) for _ in range(rows)]).to(draw.dtype) / 2
    return torch.cat((apart, draw.normal(rows, width - experts)), dim=1)


CASES: dict[str, list[Callable[[Draw], Args]]] = {
    "linear": [
        lambda draw: (draw.normal(37, 136), draw.weight(200, 136), draw.normal(200), draw.normal(37, 200)),
        lambda draw: (draw.normal(1, 72), draw.weight(40, 72)),
        lambda draw: (draw.normal(140, 136), draw.weight(264, 136)),
    ],
    "decode_attention": [_decode(8, 2, 64, 16, [1, 40, 16, 133]), _decode(4, 1, 128, 64, [65, 3])],
    "prefill_attention": [
        _prefill(4, 2, 64, 16, [(5, 20), (33, 0), (1, 16)]),
        _prefill(4, 1, 128, 64, [(70, 70)]),
    ],
    "rms_norm": [
        lambda draw: (draw.normal(7, 200), draw.normal(200)),
        lambda draw: (draw.normal(1, 4096), draw.normal(4096)),
    ],
    "add_rms_norm": [lambda draw: (draw.normal(7, 200), draw.normal(7, 200), draw.normal(200))],
    "silu_mul": [lambda draw: (draw.normal(7, 1333), draw.normal(7, 1333))],
    "add": [lambda draw: (draw.normal(7, 1333), draw.normal(7, 1333))],
    "gated_add": [lambda draw: (draw.normal(7, 1333), draw.normal(7, 1), draw.normal(7, 1333))],
    "rope": [
        lambda draw: (draw.normal(13, 6, 64), draw.below(200, 13)),
        lambda draw: (draw.normal(13, 6, 64), draw.below(200, 13), torch.arange(32) / 64),  # angles are exact
    ],
    "kv_append": [lambda draw: (draw.normal(5, 2, 4, 2, 64), *_appended(draw), draw.order(20)[:13])],
    "rope_kv_append": [
        lambda draw: (
            draw.normal(5, 2, 4, 2, 64),
            draw.normal(13, 6, 64),
            *_appended(draw),
            draw.below(200, 13),
            draw.order(20)[:13],
        )
    ],
    "embedding": [lambda draw: (draw.below(99, 13), draw.normal(99, 72))],
    "recall": [lambda draw: (draw.below(99, 700) - 49, draw.order(60))],
    "gather": [lambda draw: (draw.normal(19, 72), draw.below(19, 13))],
    "scatter": [lambda draw: (draw.normal(19, 72), draw.order(19)[:13], draw.normal(13, 72))],
    "store": [lambda draw: (draw.normal(13, 72), draw.normal(13, 72))],
    "page_gather": [lambda draw: (draw.normal(9, 2, 4, 2, 16), draw.order(9)[:5])],
    "page_scatter": [lambda draw: (draw.normal(9, 2, 4, 2, 16), draw.order(9)[:5], draw.normal(5, 2, 4, 2, 16))],
    "route": [lambda draw: (_logits(draw, 13, 8, 72), torch.eye(8, 72, dtype=draw.dtype))],
    "expert_linear": [lambda draw: (draw.normal(13, 72), _chosen(draw, 13, 4), draw.weight(4, 40, 72))],
    "expert_combine": [
        lambda draw: (draw.normal(13, 144), _chosen(draw, 13, 4), draw.uniform(13, 2), draw.weight(4, 40, 72))
    ],
    "argmax": [lambda draw: ((torch.stack([draw.order(1001) for _ in range(5)]).clamp(min=800) - 800).to(draw.dtype),)],
    "sample": [
        lambda draw: (
            torch.stack([draw.order(100) for _ in range(6)]).to(draw.dtype) / 16,
            torch.tensor([0.01, 0.21, 0.41, 0.61, 0.81, 0.97], dtype=torch.float64),
            torch.tensor([0.0, 1.0, 0.5, 2.0, 0.7, 1.0], dtype=torch.float64),
            torch.tensor([0, 0, 3, 0, 5, 1]),
            torch.tensor([1.0, 1.0, 1.0, 0.6, 0.9, 1.0], dtype=torch.float64),
        )
    ],
}
"""By operator; the largest logits are all different in every dtype, so that one token is right."""
