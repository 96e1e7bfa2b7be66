"""CtrlC: what Ctrl-C does while a command works."""

from __future__ import annotations

import signal
import sys
from typing import Any


class CtrlC:
    """In its block Ctrl-C raises KeyboardInterrupt, or is only noted while ``held``; of the main thread.

    An interrupt that strikes a finalizer, or a search that keeps the best so far, is lost there: ``check`` where work
    can end.

    Attributes:
        held: whether it is only noted, so that what is written is written whole.
        pressed: whether it was pressed.
    """

    def __init__(self, *, held: bool = False) -> None:
        self.held, self.pressed = held, False

    def check(self) -> None:
        """Raises KeyboardInterrupt if Ctrl-C was pressed."""
        if self.pressed:
            raise KeyboardInterrupt

    def __enter__(self) -> CtrlC:
        self._before = signal.signal(signal.SIGINT, self._press)
        self._told, sys.unraisablehook = sys.unraisablehook, self._lost
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)
        sys.unraisablehook = self._told

    def _press(self, *_: object) -> None:
        self.pressed = True
        if not self.held:
            raise KeyboardInterrupt

    def _lost(self, what: Any) -> None:
        if not isinstance(what.exc_value, KeyboardInterrupt):
            self._told(what)
