"""The line of user code that called nanort, for names in errors and timelines."""

from __future__ import annotations

import os
import re
import sys
from functools import lru_cache
from pathlib import Path

_MACHINERY = re.compile(r"nanort\.(graph|nodes|caller|values|operators|nanobatch|ops(\..*)?)").fullmatch


@lru_cache(maxsize=1 << 10)
def _short(path: str) -> str:
    near = os.path.relpath(path)
    return Path(path).name if near.startswith("..") else near


def caller() -> str:
    """The innermost line outside nanort's own machinery, as ``file.py:12``."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _MACHINERY(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    return f"{_short(frame.f_code.co_filename)}:{frame.f_lineno}"
