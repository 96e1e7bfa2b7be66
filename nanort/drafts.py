"""A file that is there whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def draft(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A new name beside ``path`` to write to, which takes its place at the end; where that is not reached, it goes."""
    target = Path(path)
    beside = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        yield beside
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
