"""How far an operator may be from the exact result, relative and absolute, at the precision of its arguments."""

from __future__ import annotations

import torch

TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def assert_near(actual: torch.Tensor, exact: torch.Tensor) -> None:
    """Fails unless ``actual`` is ``exact`` but for the rounding of its dtype."""
    tolerance = TOLERANCES[actual.dtype]
    torch.testing.assert_close(actual, exact.to(actual.dtype), rtol=tolerance, atol=tolerance)
