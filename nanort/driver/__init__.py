"""The one boundary to CUDA: an interface, what stands behind it on a real GPU or without one, and ``current()``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from nanort.driver.base import Driver
from nanort.driver.facts import Facts, Resource
from nanort.errors import BackendError

__all__ = ["Driver", "Facts", "Resource", "current", "standing_in"]

_STAND_INS: list[Driver] = []


def current() -> Driver:
    """The driver of the GPU that torch works on, the same one each time, or the one that stands in for it.

    Raises:
        BackendError: there is no GPU, or something that is needed to use it is not installed.
    """
    if _STAND_INS:
        return _STAND_INS[-1]
    if torch.version.cuda is None:
        raise BackendError(f"torch {torch.__version__} was built without CUDA: install a CUDA build of it")
    if not torch.cuda.is_available():
        raise BackendError("torch sees no GPU: is there one, its driver, and no empty CUDA_VISIBLE_DEVICES?")
    return _driver(torch.cuda.current_device())


@contextmanager
def standing_in(driver: Driver) -> Iterator[None]:
    """Has ``driver`` stand in for this machine's GPU, in all threads: a simulated one, where there need not be any."""
    _STAND_INS.append(driver)
    try:
        yield
    finally:
        _STAND_INS.remove(driver)


@cache
def _driver(index: int) -> Driver:
    """One for each GPU that was torch's current one."""
    from nanort.driver.cuda import CudaDriver

    return CudaDriver()
