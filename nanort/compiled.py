"""compiled: plain Python functions on arrays, made machine code where numba is installed."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Floats2 = Floats
Floats3 = Floats
Ints = npt.NDArray[np.int64]
Ints2 = Ints
"""The arrays that compiled functions take, of one, two and three axes; all of scheduling computes with them."""

Function = TypeVar("Function", bound=Callable[..., Any])

COMPILES = importlib.util.find_spec("numba") is not None
"""Whether there is a compiler; what is compiled says the same without it, and says it later."""


def compiled(function: Function) -> Function:
    """``function`` in machine code, kept on disk between processes; the function itself where numba is absent.

    Its annotations say for which arguments it is compiled: arrays in C order and numbers. One version each, because two
    processes that compile different versions of a function at the same time mix them up in numba's cache: the one loads
    the other's code. numba takes half a second to import, so modules that call this are imported where first needed.
    """
    if not COMPILES:
        return function
    try:
        import numba as nb
    except ImportError as error:  # it refuses versions of numpy that it does not know
        warnings.warn(f"planning is slow, since numba cannot be imported: {error}", RuntimeWarning, stacklevel=2)
        return function
    types = {
        "Floats": nb.float64[::1], "Floats2": nb.float64[:, ::1], "Floats3": nb.float64[:, :, ::1],
        "Ints": nb.int64[::1], "Ints2": nb.int64[:, ::1],
        "float": nb.float64, "int": nb.int64, "bool": nb.boolean,
    }  # fmt: skip
    arguments = tuple(types[said] for name, said in function.__annotations__.items() if name != "return")
    return cast(Function, nb.njit(arguments, cache=True, nogil=True)(function))
