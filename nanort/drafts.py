"""A file that is there whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nanort.errors import FileError


@contextmanager
def draft(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A new name beside ``path`` to write to, which takes its place at the end; where that is not reached, it goes.

    What is written through a symbolic link lands where that leads, and a file that is replaced keeps its permissions.

    Raises:
        FileError: ``path`` is there and is no file: a device such as /dev/null would be one from then on.
        OSError: it cannot be written; the error names ``path``, not the draft of it.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise FileError(f"{path} is no regular file, and cannot be replaced by one: name another")
    beside = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        yield beside
        if target.exists():
            shutil.copymode(target, beside)
        beside.replace(target)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(beside)) and error.filename2 is None:
            error.filename = str(path)
        raise
    finally:
        beside.unlink(missing_ok=True)
