"""Threads: what carries steps and searches out beside the engine."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor

Threads = Callable[[str], Executor]
"""Makes what carries out calls one after the other, in the order in which they are submitted; it is told a name."""


def one_thread(name: str) -> Executor:
    """A thread of that name."""
    return ThreadPoolExecutor(1, name)
