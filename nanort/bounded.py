"""Files that are read up to a limit: what has no end, or is far too large for what it is, fills no memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from nanort.errors import FileError

LONGEST_LINE = 1 << 20
"""Characters."""


def content(path: str | os.PathLike[str], most: int = 64 << 20) -> bytes:
    """The bytes of a file, at most ``most``.

    Raises:
        FileError: it has more.
    """
    with Path(path).open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise FileError(f"{path} has more than {most >> 20} MiB: no file of its kind does, give another")
    return data


def lines(file: TextIO, path: str | os.PathLike[str]) -> Iterator[str]:
    """The lines of a file, one after the other.

    Raises:
        FileError: one of them has more than LONGEST_LINE characters.
    """
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise FileError(f"{path} has a line of more than {LONGEST_LINE:,} characters: give another file")
        yield line
