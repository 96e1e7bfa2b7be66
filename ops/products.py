"""product: x @ weight.T, by the library that is fastest at it where the tensors are."""

from __future__ import annotations

import torch
import torch.nn.functional as F

ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch._C._has_mkldnn else None
"""oneDNN's product, where this build of PyTorch has it.

PyTorch takes MKL for float32, which leaves the wide registers of other makers' processors unused: on an AMD EPYC oneDNN
does 1.1 to 2.5 times as many float32 products a second (docs/measured.md). It takes oneDNN for bfloat16 by itself.
"""


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight.T + bias``: x (..., k), weight (n, k), bias (n,) -> (..., n); on meta tensors its shape."""
    if ONEDNN is None or x.dtype is not torch.float32 or x.device.type != "cpu" or not (x.numel() and weight.numel()):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):  # for which it has no rule
        return F.linear(x, weight, bias)
    found: torch.Tensor = ONEDNN(x, weight, bias, "none", [], "")
    return found
