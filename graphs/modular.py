"""Operators of synthetic graphs: arithmetic modulo 251, on whole numbers held in floats.

So every result is exact: a graph gives the same bits however it is cut, ordered and threaded, and a value that is read
too early shows for good. Demands are those of a large model, so that plans are interesting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import nanort as nr

PRIME = 251

# The work of one row at size 1, by the kind that a node is of: 16 rows take about 0.1 ms on an H200.
WORK = {
    "compute": nr.Demand(flops=4e9, hbm_bytes=1e6),
    "memory": nr.Demand(flops=1e8, hbm_bytes=25e6),
    "narrow": nr.Demand(flops=4e8, hbm_bytes=2e6, sms=(4, 16)),
    "upload": nr.Demand(h2d_bytes=3e5, sms=(0, 0)),
    "download": nr.Demand(d2h_bytes=3e5, sms=(0, 0)),
}


def _work(*args: torch.Tensor, out: Any, kind: str, size: float) -> nr.Demand:
    return WORK[kind].scaled(size * args[0].shape[0])


def _squares(count: int) -> Callable[..., tuple[torch.Tensor, ...]]:
    """So many matrices of 7 rows and 7 columns."""
    return lambda **_: tuple(
        torch.randint(0, PRIME, (count, 7, 7), generator=torch.Generator().manual_seed(0)).double()
    )


@nr.op(demand=_work, example=_squares(16))
def combine(*values: torch.Tensor, kind: str, size: float) -> torch.Tensor:
    """Once the first value, twice the second, and so on: up to 16 of them."""
    total = torch.zeros_like(values[0])
    for factor, value in enumerate(values, 1):
        total += factor * value
    return total % PRIME


@nr.op(demand=_work, example=_squares(2))
def multiply(x: torch.Tensor, y: torch.Tensor, *, kind: str, size: float) -> torch.Tensor:
    """The product and one, so that no value dies out."""
    return (x * y + 1) % PRIME


@nr.op(demand=_work, example=_squares(2))
def matmul(x: torch.Tensor, weight: torch.Tensor, *, kind: str, size: float) -> torch.Tensor:
    """The product of ``x`` (rows, k) and ``weight`` (k, n)."""
    return (x @ weight) % PRIME


@nr.op(demand=_work, example=_squares(1))
def affine(x: torch.Tensor, *, kind: str, size: float) -> torch.Tensor:
    """Three times the value, and one."""
    return (3 * x + 1) % PRIME


@nr.op(demand=_work, example=_squares(1))
def upload(x: torch.Tensor, *, kind: str, size: float) -> torch.Tensor:
    """A copy on the device."""
    return x.clone()


@nr.op(demand=_work, example=_squares(1), to="host")
def download(x: torch.Tensor, *, kind: str, size: float) -> torch.Tensor:
    """A copy on the host."""
    return x.clone()


@nr.op(demand=_work, writes=("memory",), axes="whole", example=_squares(2))
def write(memory: torch.Tensor, x: torch.Tensor, *, kind: str, size: float) -> None:
    """Doubles ``memory`` and adds the sum of the rows of ``x`` to each of its own: the order of two writes shows."""
    memory.mul_(2).add_(x.sum(dim=0)[: memory.shape[1]]).remainder_(PRIME)


@nr.op(demand=_work, example=_squares(2))
def recall(x: torch.Tensor, memory: torch.Tensor, *, kind: str, size: float) -> torch.Tensor:
    """The sum of all of ``memory`` added to every element of ``x``."""
    return (x + memory.sum()) % PRIME
