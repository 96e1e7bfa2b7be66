"""compiled: plain Python functions on arrays, made machine code where numba is installed."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
"""The arrays that compiled functions take; all of scheduling computes with them."""

Function = TypeVar("Function", bound=Callable[..., Any])

COMPILES = importlib.util.find_spec("numba") is not None
"""Whether there is a compiler; what is compiled says the same without it, and says it later."""


def compiled(function: Function) -> Function:
    """``function`` in machine code, kept on disk between processes; the function itself where numba is absent.

    numba takes half a second to import, so modules that call this are imported where they are first needed.
    """
    if not COMPILES:
        return function
    try:
        from numba import njit
    except ImportError as error:  # it refuses versions of numpy that it does not know
        warnings.warn(f"planning is slow, since numba cannot be imported: {error}", RuntimeWarning, stacklevel=2)
        return function
    return cast(Function, njit(cache=True, nogil=True)(function))
