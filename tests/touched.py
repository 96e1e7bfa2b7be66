"""What interpreted kernels load and store, byte by byte, so that declared traffic can be held against it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from triton.runtime import interpreter


class Touched:
    """Which bytes of a contiguous tensor were loaded, and which stored, however often."""

    def __init__(self, tensor: torch.Tensor) -> None:
        assert tensor.is_contiguous()
        self.start = tensor.data_ptr()
        self.loaded = np.zeros(tensor.nbytes, dtype=bool)
        self.stored = np.zeros(tensor.nbytes, dtype=bool)

    def __repr__(self) -> str:
        return f"{self.loaded.sum():,} bytes loaded, {self.stored.sum():,} stored of {self.loaded.size:,}"

    @property
    def hbm_bytes(self) -> int:
        """Bytes that have to be moved: each that is loaded, and each that is stored, once."""
        return int(self.loaded.sum() + self.stored.sum())


class Watched:
    """Triton's interpreter of memory operations, whose every access is noted; one of no given tensor is an error."""

    def __init__(self, watched: Any, tensors: list[Touched]) -> None:
        self.watched = watched
        self.tensors = tensors

    def __getattr__(self, name: str) -> Any:
        return getattr(self.watched, name)

    def load(self, pointers: np.ndarray, mask: np.ndarray, other: np.ndarray, dtype: np.dtype) -> np.ndarray:
        self._note("loaded", pointers, mask, np.dtype(dtype).itemsize)
        return self.watched.load(pointers, mask, other, dtype)

    def store(self, pointers: np.ndarray, values: np.ndarray, mask: np.ndarray) -> None:
        self._note("stored", pointers, mask, values.dtype.itemsize)
        return self.watched.store(pointers, values, mask)

    def atomic_rmw(
        self, how: Any, pointers: np.ndarray, values: np.ndarray, mask: np.ndarray, order: Any
    ) -> np.ndarray:
        for kind in ("loaded", "stored"):
            self._note(kind, pointers, mask, values.dtype.itemsize)
        return self.watched.atomic_rmw(how, pointers, values, mask, order)

    def atomic_cas(self, pointers: np.ndarray, expected: np.ndarray, values: np.ndarray, order: Any) -> np.ndarray:
        for kind in ("loaded", "stored"):
            self._note(kind, pointers, np.ones(pointers.shape, dtype=bool), values.dtype.itemsize)
        return self.watched.atomic_cas(pointers, expected, values, order)

    def _note(self, kind: str, pointers: np.ndarray, mask: np.ndarray, itemsize: int) -> None:
        addresses = pointers[np.broadcast_to(mask, pointers.shape)].astype(np.int64)
        missed = addresses.size
        for tensor in self.tensors:
            marks: np.ndarray = getattr(tensor, kind)
            offsets = addresses - tensor.start
            inside = offsets[(offsets >= 0) & (offsets < marks.size)]
            marks[inside[:, None] + np.arange(itemsize)] = True
            missed -= inside.size
        assert missed == 0, f"{missed} of {addresses.size} elements {kind} lie in no tensor that the kernel was given"


@contextmanager
def touched(*tensors: torch.Tensor) -> Iterator[list[Touched]]:
    """What the kernels interpreted meanwhile touch of these tensors, which are all that they may touch."""
    found, watched = [Touched(tensor) for tensor in tensors], interpreter._interpreter
    interpreter._interpreter = Watched(watched, found)
    try:
        yield found
    finally:
        interpreter._interpreter = watched
