"""Columns of figures and texts, packed for the script of the report."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from nanort.printable import printable
from nanort.timeline.flat import NEVER

Column = dict[str, Any]
WHOLE: dict[str, type[np.integer[Any]]] = {"u8": np.uint8, "u16": np.uint16, "u32": np.uint32, "i32": np.int32}
TYPES: dict[str, type[np.number[Any]]] = {**WHOLE, "f32": np.float32, "f64": np.float64}
LONGEST_NAME = 2000


def packed(values: npt.NDArray[Any]) -> Column:
    """A column for the script: one number if all are the same, else base64 of the smallest type that holds them.

    Times and places are exact; other figures have seven digits.
    """
    if len(values) and (values == values[0]).all():
        return {"same": values[0].item(), "count": len(values)}
    kind = "f32"
    if np.issubdtype(values.dtype, np.integer):
        low, high = int(values.min(initial=0)), int(values.max(initial=0))
        kind = next(
            (kind for kind, fits in WHOLE.items() if np.iinfo(fits).min <= low and high <= np.iinfo(fits).max), "f64"
        )
    raw = values.astype(np.dtype(TYPES[kind]).newbyteorder("<"))
    return {"type": kind, "base64": base64.b64encode(raw.tobytes()).decode("ascii")}


def moments(nanoseconds: npt.NDArray[np.int64]) -> Column:
    """A column of times; -1 for one that never came."""
    return packed(np.where(nanoseconds == NEVER, -1, nanoseconds))


def figures(values: npt.NDArray[np.float64]) -> Column:
    """A column of what need not be whole."""
    whole = bool((values % 1 == 0).all()) and float(values.max(initial=0)) < 2**32
    return packed(values.astype(np.int64) if whole else values)


def shown(text: str) -> str:
    """``text`` with what does not print in words, cut where it is very long."""
    cut = text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}... ({len(text):,} characters)"
    return printable(cut)


class Texts:
    """Every text once; columns hold where it stands."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._places: dict[str, int] = {}

    def place(self, text: str) -> int:
        """Where ``text`` stands."""
        if (place := self._places.get(text)) is None:
            place = self._places[text] = len(self.all)
            self.all.append(shown(text))
        return place

    def places(self, texts: Iterable[str]) -> Column:
        """A column of texts."""
        return packed(np.fromiter(map(self.place, texts), np.int64))
