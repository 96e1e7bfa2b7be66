"""What operators check where PyTorch would broadcast or wrap around without a word."""

from __future__ import annotations

import torch

from nanort.errors import ShapeError


def require(fits: bool, wanted: str, **given: torch.Tensor | None) -> None:
    """Raises ShapeError, with what was wanted and what was given, unless the arguments fit."""
    if not fits:
        got = (f"{name} {_shown(tensor)}" for name, tensor in given.items() if tensor is not None)
        raise ShapeError(f"wants {wanted}; got {', '.join(got)}")


def is_index(tensor: torch.Tensor) -> bool:
    """Whether the tensor is one-dimensional and holds int32 or int64."""
    return tensor.dim() == 1 and tensor.dtype in (torch.int32, torch.int64)


def _shown(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
