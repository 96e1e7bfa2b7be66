"""Small example tensors, the same at every call, drawn without touching PyTorch's global generator."""

from __future__ import annotations

import torch


def normal(seed: int, *shape: int) -> torch.Tensor:
    """Standard normal float64 numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shuffled(seed: int, count: int) -> torch.Tensor:
    """The numbers 0 to ``count`` - 1 in random order, as int64."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
