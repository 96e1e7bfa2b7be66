"""argmax, sample: the next token of every row of logits."""

from __future__ import annotations

import math

import torch

import nanort as nr
from nanort.ops.examples import normal
from nanort.ops.shapes import require

PART = 2048
"""Logits of a row that one SM compares at once."""


def _checked(logits: torch.Tensor, *per_row: torch.Tensor) -> torch.Tensor:
    """An empty result, after a look at the shapes."""
    require(
        logits.dim() == 2 and all(tensor.shape == logits.shape[:1] for tensor in per_row),
        "logits (rows, vocabulary), and one number a row of everything else",
        logits=logits,
        **dict(zip(("uniform", "temperature", "top_k", "top_p"), per_row, strict=False)),
    )
    return logits.new_empty(logits.shape[:1], dtype=torch.int64)


def _argmax_demand(logits: torch.Tensor, *, out: torch.Tensor) -> nr.Demand:
    return nr.Demand(
        flops=logits.numel(),
        hbm_bytes=logits.nbytes + out.nbytes,
        tiles=len(logits) * math.ceil(logits.shape[1] / PART),
    )


@nr.op(
    demand=_argmax_demand,
    example=lambda: (normal(1, 7, 9),),
    kernels={"triton": "nanort.kernels.sampling:argmax", "torch": "nanort.kernels.library:argmax"},
)
def argmax(logits: torch.Tensor) -> torch.Tensor:
    """The most likely token of every row: logits (rows, vocabulary) -> (rows,) int64.

    Demand: a comparison a logit; logits read once, tokens written once; tiles of 2048 logits of a row.
    """
    require(logits.dim() == 2, "logits (rows, vocabulary)", logits=logits)
    return logits.argmax(dim=-1)


def _sample_demand(logits: torch.Tensor, *per_row: torch.Tensor, out: torch.Tensor) -> nr.Demand:
    return nr.Demand(
        flops=6 * logits.numel(),
        hbm_bytes=logits.nbytes + sum(tensor.nbytes for tensor in per_row) + out.nbytes,
        tiles=len(logits),
    )


def _sample_example() -> tuple[torch.Tensor, ...]:
    uniform = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.99], dtype=torch.float64)
    temperature = torch.tensor([0.0, 1.0, 0.5, 2.0, 0.0, 0.7, 1.0], dtype=torch.float64)
    top_k = torch.tensor([0, 0, 3, 0, 2, 5, 1])
    top_p = torch.tensor([1.0, 1.0, 1.0, 0.6, 0.5, 0.9, 1.0], dtype=torch.float64)
    return normal(1, 7, 9), uniform, temperature, top_k, top_p


@nr.op(
    demand=_sample_demand,
    example=_sample_example,
    shape=_checked,
    kernels={"triton": "nanort.kernels.sampling:sample"},
)
def sample(
    logits: torch.Tensor, uniform: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """A token drawn from every row's filtered distribution: logits (rows, vocabulary) -> (rows,) int64.

    Per row: ``uniform`` in [0, 1) is the draw, so equal draws give equal tokens; ``temperature`` divides the logits,
    0 takes the most likely token; of the ``top_k`` most likely tokens (0: all), the fewest are kept that make up
    ``top_p`` of their probability (1: all).

    Demand: 6 flops a logit (scale, subtract, exponentiate, add twice, divide), not the sort; arguments read once,
    tokens written once; a row is a tile.
    """
    _checked(logits, uniform, temperature, top_k, top_p)
    tokens = logits.argmax(dim=-1)
    drawn = temperature.nonzero().squeeze(1)  # the others need no sort, which takes far longer than all the rest
    tokens[drawn] = _draw(*(tensor[drawn] for tensor in (logits, uniform, temperature, top_k, top_p)))
    return tokens


def _draw(
    logits: torch.Tensor, uniform: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """Tokens by the inverse of the cumulative distribution, the most likely first: filters keep a first part of it."""
    ranked, order = logits.sort(dim=-1, descending=True, stable=True)
    cumulative = (ranked.double() / temperature[:, None]).softmax(dim=-1).cumsum(dim=-1)
    vocabulary = logits.shape[1]
    last = torch.where(top_k > 0, top_k.clamp(max=vocabulary), vocabulary).long()[:, None] - 1
    target = top_p[:, None] * cumulative.gather(1, last)
    last = last.minimum(torch.searchsorted(cumulative, target))
    target = uniform[:, None] * cumulative.gather(1, last)
    chosen = torch.searchsorted(cumulative, target, right=True).minimum(last)  # a draw may have been rounded to 1
    return order.gather(1, chosen).squeeze(1)
