"""Frames of NaN around tensors, in which writes beside them show."""

from __future__ import annotations

import torch

MARGIN = 64


class Frame:
    """A contiguous tensor of NaN, or of ``given`` numbers, with NaN before and after it."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, given: torch.Tensor | None = None) -> None:
        size = torch.Size(shape).numel()
        self.buffer = torch.full((size + 2 * MARGIN,), torch.nan, dtype=dtype)
        self.tensor = self.buffer[MARGIN : MARGIN + size].view(shape)
        if given is not None:
            self.tensor.copy_(given)

    def check(self) -> None:
        """Fails if something was written around the tensor."""
        assert self.buffer[:MARGIN].isnan().all()
        assert self.buffer[-MARGIN:].isnan().all()
