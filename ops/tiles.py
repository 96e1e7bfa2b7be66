"""Tiles of elementwise work and of copies: the parts in which the kernels of these operators share it out."""

from __future__ import annotations

import math

import torch


def of_elements(x: torch.Tensor) -> int:
    """Blocks of 4 KiB."""
    return math.ceil(x.nbytes / 4096)


def of_norm(x: torch.Tensor) -> int:
    """Rows, those of fewer than 2048 elements several at a time."""
    width = x.shape[-1]
    return math.ceil(x.shape[:-1].numel() / max(1, 2048 // _power_of_2(width)))


def of_heads(*tensors: torch.Tensor) -> int:
    """Groups of heads of a row, of 2 KiB each."""
    return sum(len(x) * math.ceil(x.shape[1] / _group(x)) for x in tensors)


def _group(x: torch.Tensor) -> int:
    return max(1, 1024 // x.itemsize // _power_of_2(math.ceil(x.shape[2] / 2)))


def of_rows(x: torch.Tensor) -> int:
    """Rows that are copied, of whatever shape: 16 KiB at a time, but narrow ones 4 KiB together."""
    width = x.shape[1:].numel() * x.itemsize
    tile = min(_power_of_2(width), 16384)
    return math.ceil(len(x) / max(1, 4096 // tile)) * math.ceil(width / tile)


def _power_of_2(least: int) -> int:
    return 1 << max(least - 1, 0).bit_length()
