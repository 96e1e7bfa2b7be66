"""route, expert_linear, expert_combine: a feed-forward layer of many experts, of which each row uses a few.

``experts`` (rows, k) says which those are; the weights of all experts are stacked, (experts, m, n). What a row gives
depends on no other row. What is read does: experts that rows share are read once. Demands count the experts that rows
choosing evenly are expected to touch.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

import nanort as nr
from nanort.ops.examples import normal, shuffled
from nanort.ops.products import product
from nanort.ops.shapes import require


def touched(experts: int, chosen: int, rows: int) -> float:
    """How many of ``experts`` are expected to be used, when each of ``rows`` draws ``chosen`` different ones.

    >>> touched(8, 2, rows=1), touched(8, 2, rows=2), round(touched(8, 2, rows=100), 9)
    (2.0, 3.5, 8.0)
    """
    return experts * (1 - (1 - chosen / experts) ** rows)


def _route_demand(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    out: tuple[torch.Tensor, torch.Tensor],
    top_k: int = 2,
    normalize: bool = True,
) -> nr.Demand:
    experts, weights = out
    parts = math.ceil(x.shape[1] / 512)
    return nr.Demand(
        flops=2 * x.numel() * len(weight) + 4 * (weights.numel() if normalize else len(x) * len(weight)),
        hbm_bytes=x.nbytes + weight.nbytes + experts.nbytes + weights.nbytes,
        tiles=math.ceil(len(x) / (16 if len(x) <= 1024 else 64)) * math.ceil(len(weight) / 128) * parts,
    )


def _products_demand(x: torch.Tensor, experts: torch.Tensor, weight: torch.Tensor, *, out: torch.Tensor) -> nr.Demand:
    rows, chosen = experts.shape
    read = touched(len(weight), chosen, rows)
    return nr.Demand(
        flops=2 * experts.numel() * weight[0].numel(),
        hbm_bytes=x.nbytes + experts.nbytes + read * weight[0].nbytes + out.nbytes,
        tiles=_tiles(experts.numel(), len(weight), math.ceil(read), weight.shape[1]),
    )


def _tiles(pairs: int, experts: int, read: int, m: int) -> int:
    """Tiles of the products of so many pairs, spread evenly over the experts that are read."""
    even = pairs / experts
    high, wide = (16, 64) if even <= 16 else (64, 128) if even <= 64 else (128, 128)
    return read * math.ceil(pairs / max(read, 1) / high) * math.ceil(m / wide)


def _combine_demand(
    x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, weight: torch.Tensor, *, out: torch.Tensor
) -> nr.Demand:
    asked = _products_demand(x, experts, weight, out=out)
    return replace(
        asked,
        flops=asked.flops + 2 * experts.numel() * out.shape[1],
        hbm_bytes=asked.hbm_bytes + weights.nbytes,
    )


def _fits(experts: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether these can be chosen experts, and the weights of all."""
    return (
        experts.dim() == 2
        and experts.dtype in (torch.int32, torch.int64)
        and weight.dim() == 3
        and 0 < experts.shape[1] <= len(weight)
    )


def _grouped(x: torch.Tensor, experts: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Every row of x (rows, n) times the matrix of its expert (rows,): one product an expert, as kernels do it."""
    order = experts.argsort(stable=True)
    counts = torch.bincount(experts, minlength=len(weight)).tolist()
    parts = zip(x[order].split_with_sizes(counts), weight, strict=True)  # strict: no expert may be beyond the last
    out = x.new_empty(len(x), weight.shape[1])
    out[order] = torch.cat([product(part, matrix) for part, matrix in parts])
    return out


def _linear_shape(x: torch.Tensor, experts: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    require(
        _fits(experts, weight) and x.shape == (len(experts), weight.shape[2]) and x.dtype == weight.dtype,
        "x (rows, n) and weight (experts, m, n) of one dtype, experts (rows, k) of integers, k no more than there are",
        x=x,
        experts=experts,
        weight=weight,
    )
    return x.new_empty(len(x), experts.shape[1] * weight.shape[1])


def _combine_shape(x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    require(
        _fits(experts, weight)
        and x.shape == (len(experts), experts.shape[1] * weight.shape[2])
        and x.dtype == weight.dtype
        and weights.shape == experts.shape
        and weights.is_floating_point(),
        "x (rows, k * n) and weight (experts, m, n) of one dtype, experts (rows, k) of integers, k no more than there "
        "are, and weights (rows, k)",
        x=x,
        experts=experts,
        weights=weights,
        weight=weight,
    )
    return x.new_empty(len(x), weight.shape[1])


def _chosen() -> torch.Tensor:
    """Two of four experts for each of seven rows."""
    first = shuffled(3, 7) % 4
    return torch.stack((first, (first + 1 + shuffled(4, 7) % 3) % 4), dim=1)


@nr.op(
    demand=_route_demand,
    example=lambda **_: (normal(1, 7, 5), normal(2, 4, 5)),
    kernels={"triton": "nanort.kernels.route:route"},
)
def route(
    x: torch.Tensor, weight: torch.Tensor, *, top_k: int = 2, normalize: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``top_k`` experts of each row, best first, and their weights: the softmax of those experts' logits alone.

    x (rows, n), weight (experts, n) -> int64 (rows, top_k), and (rows, top_k) in float32 or wider. The weights of a row
    add up to 1; without ``normalize`` they are shares of the softmax over all experts.

    Demand: a multiply-add as 2 flops, and 4 a logit of the softmax (subtract, exponentiate, add, divide); arguments
    read once, both results written once; tiles of 16 rows, 64 from 1025 on, by 128 experts, each in parts of 512
    products.
    """
    require(
        x.dim() == 2 and weight.dim() == 2 and x.shape[1] == weight.shape[1] and x.dtype == weight.dtype,
        "x (rows, n) and weight (experts, n) of one dtype",
        x=x,
        weight=weight,
    )
    logits = product(x, weight)
    best, experts = logits.topk(top_k)
    wide = torch.promote_types(x.dtype, torch.float32)
    if normalize:
        return experts, best.softmax(dim=1, dtype=wide)
    return experts, logits.softmax(dim=1, dtype=wide).gather(1, experts)


@nr.op(
    demand=_products_demand,
    shape=_linear_shape,
    example=lambda: (normal(1, 7, 5), _chosen(), normal(2, 4, 3, 5)),
    kernels={"triton": "nanort.kernels.moe:expert_linear"},
)
def expert_linear(x: torch.Tensor, experts: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``weight[expert] @ x`` for each of a row's experts, side by side.

    x (rows, n), experts (rows, k), weight (experts, m, n) -> (rows, k * m).

    Demand: a multiply-add as 2 flops; x, experts and the matrices that are expected to be touched are read, the result
    is written; tiles of 128 x 128, of 64 x 128 where an expert has at most 64 rows, 16 x 64 where it has at most 16.
    """
    out = _linear_shape(x, experts, weight)
    return _grouped(x.repeat_interleave(experts.shape[1], dim=0), experts.flatten(), weight).view(out.shape)


@nr.op(
    demand=_combine_demand,
    shape=_combine_shape,
    example=lambda: (normal(1, 7, 10), _chosen(), normal(2, 7, 2), normal(3, 4, 3, 5)),
    kernels={"triton": "nanort.kernels.moe:expert_combine"},
)
def expert_combine(x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The weighted sum of ``weight[expert] @ x`` over a row's experts, each with its own x; those are side by side.

    x (rows, k * n), experts and weights (rows, k), weight (experts, m, n) -> (rows, m).

    Demand: a multiply-add as 2 flops, in the products and in the sum; x, experts, weights and the matrices that are
    expected to be touched are read, the result is written; tiles as for ``expert_linear``.
    """
    out = _combine_shape(x, experts, weights, weight)
    products = _grouped(x.reshape(experts.numel(), weight.shape[2]), experts.flatten(), weight)
    return (products.view(*experts.shape, out.shape[1]) * weights[..., None]).sum(dim=1).to(x.dtype)
