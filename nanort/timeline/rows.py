"""The fields and rows of a trace in Chrome's JSON format, one after the other: a file of any size in little memory."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from nanort.errors import FileError, TruncatedFileError

ROWS = "traceEvents"
WINDOW = 1 << 20
"""Characters that are read at once."""
LONGEST = 1 << 26
"""Characters of one row, or of one field beside the rows: the names of all that a failed run never launched."""
LARGEST = 1 << 34
"""Characters of a file once unpacked: a small one, packed, could keep a machine busy for days."""
GZIP = b"\x1f\x8b"
CUT = 16
"""Where the window's end cuts a value, the decoder stops no more characters before that end, but for a string."""


def fields(path: str | os.PathLike[str]) -> Iterator[tuple[str, Any]]:
    """``("traceEvents", row)`` for every row, and name and value of every other field, in the order of the file.

    A figure with a point is a str: as a float, microseconds since 1970 would lose their nanoseconds. The file may be
    packed by gzip.

    Raises:
        TruncatedFileError: the file is cut short, or is no trace.
        FileError: a row, or the file, is too large.
    """
    with Path(path).open("rb") as file:
        packed = file.peek(len(GZIP)).startswith(GZIP)
        plain: Any = gzip.GzipFile(fileobj=file) if packed else file
        try:
            # The profiler itself writes a name now and then that is no UTF-8: what stands around it is sound.
            with io.TextIOWrapper(plain, encoding="utf-8-sig", errors="replace", newline="") as text:
                yield from _fields(_Text(str(path), text))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise TruncatedFileError(f"{path} is cut short, or packed wrongly: {error}") from error


def _fields(text: _Text) -> Iterator[tuple[str, Any]]:
    if text.sign() != "{":
        raise TruncatedFileError(f"{text.path} is no trace: it does not begin as a JSON object")
    for _ in _items(text, "}"):
        name = text.value()
        if not isinstance(name, str) or text.sign() != ":":
            raise text.wrong("a field has no name")
        if name == ROWS:
            if text.sign() != "[":
                raise text.wrong(f"{ROWS} are no list")
            for _ in _items(text, "]"):
                yield ROWS, text.value()
        else:
            yield name, text.value()


def _items(text: _Text, end: str) -> Iterator[None]:
    """Stands before each item of a list or object whose bracket has been read, until ``end`` was."""
    if text.peek() == end:
        text.sign()
        return
    sign = ","
    while sign == ",":
        yield
        sign = text.sign()
    if sign != end:
        raise text.wrong(f"there is {sign!r} where a comma or {end} belongs")


class _Text:
    """A text that is looked at through a window, which moves on."""

    def __init__(self, path: str, file: TextIO) -> None:
        self.path = path
        self._file = file
        self._window, self._place, self._before = "", 0, 0
        self._decode = json.JSONDecoder(parse_float=str, parse_constant=_no_number, strict=False).raw_decode
        self._space = re.compile(r"[ \t\r\n]*").match

    def peek(self) -> str:
        """The next character that is no space."""
        while True:
            self._place = self._space(self._window, self._place).end()  # type: ignore[union-attr]  # none is a match
            if self._place < len(self._window):
                return self._window[self._place]
            if not self._more():
                raise self.wrong("it ends too early")

    def sign(self) -> str:
        """The same, which is passed."""
        found = self.peek()
        self._place += 1
        return found

    def value(self) -> Any:
        """The JSON value that comes next, which is passed."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._window, self._place)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self._window) - CUT or error.msg.startswith("Unterminated string")
                if not cut or not self._more():
                    self._place = error.pos
                    raise self.wrong(error.msg) from error
            except (ValueError, RecursionError) as error:  # an integer of thousands of digits, a thousand brackets
                raise self.wrong(str(error)) from error
            else:
                if end < len(self._window) - 2 or not self._more():  # a number may go on: "1" by "e+" and digits
                    self._place = end
                    return value

    def wrong(self, what: str) -> TruncatedFileError:
        place = self._before + self._place
        return TruncatedFileError(f"{self.path} is cut short, or is not JSON: {what} (character {place:,})")

    def _more(self) -> bool:
        """Moves the window's end on, and its beginning to what has not been passed; False at the end of the text."""
        if len(self._window) - self._place > LONGEST:
            raise FileError(f"{self.path}: a row is longer than {LONGEST:,} characters: no trace has such rows")
        # As much again as was cut: a long value, which is decoded anew each time, is not decoded often.
        if not (more := self._file.read(max(WINDOW, len(self._window) - self._place))):
            return False
        self._before += self._place
        self._window, self._place = self._window[self._place :] + more, 0
        if self._before > LARGEST:
            raise FileError(f"{self.path} has more than {LARGEST:,} characters: trace a shorter run")
        return True


def _no_number(_: str) -> None:
    """NaN and infinity, which JSON does not have, are nothing."""
