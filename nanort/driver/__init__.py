"""The one boundary to CUDA: an interface, what stands behind it on a real GPU, and ``current()``."""

from __future__ import annotations

from functools import cache

import torch

from nanort.driver.base import Driver
from nanort.driver.facts import Facts, Resource
from nanort.errors import BackendError

__all__ = ["Driver", "Facts", "Resource", "current"]


def current() -> Driver:
    """The driver of the GPU that torch works on, the same one each time.

    Raises:
        BackendError: there is no GPU, or something that is needed to use it is not installed.
    """
    if torch.version.cuda is None:
        raise BackendError(f"torch {torch.__version__} was built without CUDA: install a CUDA build of it")
    if not torch.cuda.is_available():
        raise BackendError("torch sees no GPU: is there one, its driver, and no empty CUDA_VISIBLE_DEVICES?")
    return _driver(torch.cuda.current_device())


@cache
def _driver(index: int) -> Driver:
    """One for each GPU that was torch's current one."""
    from nanort.driver.cuda import CudaDriver

    return CudaDriver()
