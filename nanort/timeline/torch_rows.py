"""What the rows of a torch.profiler trace say, gathered in columns: some fifty bytes a row, and every text once."""

from __future__ import annotations

import os
import re
import reprlib
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from nanort.errors import FileError, NewerVersionError
from nanort.timeline.rows import ROWS, fields
from nanort.timeline.units import plain

Columns = npt.NDArray[np.int64]

SCHEMA = 1
"""The version of PyTorch's format that is known."""
LAST = 1 << 62
"""Nanoseconds that no time lies beyond, and the greatest number of anything that is counted."""
MOST_ROWS, MOST_TEXT = 20_000_000, 1 << 28
"""Rows that are kept, and characters of the texts in them: one gigabyte of either."""
NOTHING, LAUNCH, BEGIN, END = range(4)
"""What a call to the GPU's library does, of what matters here: END and BEGIN are of a graph's capture."""
DOES = dict.fromkeys((
    "cudaLaunchKernel", "cudaLaunchKernelExC", "cudaLaunchCooperativeKernel", "cuLaunchKernel", "cuLaunchKernelEx",
    "cudaMemcpyAsync", "cudaMemsetAsync", "hipLaunchKernel", "hipExtModuleLaunchKernel", "hipMemcpyAsync",
), LAUNCH) | {"cudaStreamBeginCapture": BEGIN, "cudaStreamEndCapture": END}  # fmt: skip  # in two lines
"""After a launch one thing runs on the GPU, unless it only became part of a graph that was being captured."""
STEP = re.compile(r"ProfilerStep#(\d{1,18})").fullmatch
FRAME = re.compile(r"(?!torch/|<)(.+)\((\d+)\): .*", re.DOTALL).fullmatch
"""A line of Python outside of PyTorch."""
MODULE = "nn.Module: "


class Table:
    """Rows of as many whole numbers as it has columns."""

    def __init__(self, *names: str) -> None:
        self._names = names
        self._flat = array("q")

    def add(self, *row: int) -> None:
        self._flat.extend(row)

    def __len__(self) -> int:
        return len(self._flat) // len(self._names)

    def columns(self) -> dict[str, Columns]:
        """Each column by its name."""
        whole = np.array(self._flat, np.int64).reshape(-1, len(self._names))
        return {name: whole[:, place] for place, name in enumerate(self._names)}


class Recorded:
    """A profile as tables; times are in nanoseconds, a text is an index into ``texts``, -1 where there is none.

    Attributes:
        head: what stands beside the rows.
        texts: every text, by its index.
        operators: what the host's threads ran.
        calls: what they asked of the GPU; ``does`` is NOTHING, LAUNCH, BEGIN or END.
        work: what ran on the GPU; ``sms`` is the number of blocks until the SMs are known.
        waits: a stream that waits, from its call ``correlation`` on, for what another, ``waited``, had been given
            before the call ``record``.
        spans: what encloses operators and calls, by kind: ``step``, ``annotation``, ``module`` and ``frame``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.head: dict[str, Any] = {}
        self.operators = Table("thread", "start", "end", "name", "shapes", "external", "frame")
        self.calls = Table("thread", "start", "correlation", "external", "does")
        self.work = Table(
            "start", "end", "device", "stream", "correlation", "external", "name", "sms", "bytes", "kernel"
        )  # fmt: skip  # as many as there are
        self.waits = Table("device", "stream", "correlation", "waited", "record")
        self.spans = {
            kind: Table("thread", "start", "end", "text") for kind in ("step", "annotation", "module", "frame")
        }
        self._path, self._row = path, 0
        self._texts: dict[str, int] = {}
        self._frames: dict[str, tuple[str, int]] = {}
        self._threads: dict[str, int] = {}
        self._text_size = 0
        self._read()

    @property
    def texts(self) -> list[str]:
        return list(self._texts)

    @property
    def threads(self) -> list[str]:
        """The names of the threads, by their index."""
        return list(self._threads)

    def _read(self) -> None:
        takers: dict[object, Callable[[dict[str, Any], dict[str, Any]], None]] = {
            "cpu_op": self._operator, "python_function": self._python, "user_annotation": self._annotation,
            "cuda_runtime": self._call, "cuda_driver": self._call, "kernel": self._work, "gpu_memcpy": self._work,
            "gpu_memset": self._work, "cuda_sync": self._wait,
        }  # fmt: skip  # in three lines
        kept = 0
        for name, value in fields(self._path):
            if name != ROWS:
                self.head[name] = value
                if name == "schemaVersion" and type(value) is int and value > SCHEMA:
                    raise NewerVersionError(f"{self._path} has version {value} of PyTorch's format: update nanort")
                continue
            self._row += 1
            if not isinstance(value, dict) or value.get("ph") != "X":
                continue
            category = value.get("cat")
            if isinstance(category, str) and (take := takers.get(category)):
                args = value.get("args")
                take(value, args if isinstance(args, dict) else {})
                kept += 1
                if kept > MOST_ROWS or self._text_size > MOST_TEXT:
                    raise FileError(
                        f"{self._path} records more than {MOST_ROWS:,} operators and kernels, or {MOST_TEXT:,} "
                        "characters of their names: profile fewer steps"
                    )

    def _operator(self, row: dict[str, Any], args: dict[str, Any]) -> None:
        start, end = self._times(row)
        shapes, external = self._text(_shapes(args.get("Input Dims"))), _number(args.get("External id"))
        stack = args.get("Call stack")  # of old versions, the innermost frame first
        frame = next((f for f in stack.split(";") if FRAME(f)), "") if isinstance(stack, str) else ""
        place = self._text(_line(frame))
        self.operators.add(self._thread(row), start, end, self._name(row), shapes, external, place)

    def _python(self, row: dict[str, Any], _: dict[str, Any]) -> None:
        name = row.get("name")
        if not isinstance(name, str):
            return
        if name not in self._frames:
            module = name.startswith(MODULE)
            said = name.removeprefix(MODULE) if module else _line(name)
            self._frames[name] = ("module" if module else "frame", self._text(said))
            self._text_size += len(name)
        kind, text = self._frames[name]
        if text >= 0:
            self.spans[kind].add(self._thread(row), *self._times(row), text)

    def _annotation(self, row: dict[str, Any], _: dict[str, Any]) -> None:
        name = row.get("name")
        step = STEP(name) if isinstance(name, str) else None
        if step:  # it holds for all threads
            self.spans["step"].add(0, *self._times(row), self._text(step[1]))
        else:
            self.spans["annotation"].add(self._thread(row), *self._times(row), self._name(row))

    def _call(self, row: dict[str, Any], args: dict[str, Any]) -> None:
        name = row.get("name")
        does = DOES.get(name, NOTHING) if isinstance(name, str) else NOTHING
        correlation, external = _number(args.get("correlation")), _number(args.get("External id"))
        self.calls.add(self._thread(row), self._times(row)[0], correlation, external, does)

    def _work(self, row: dict[str, Any], args: dict[str, Any]) -> None:
        blocks, grid = 1, args.get("grid")
        for size in grid if isinstance(grid, list) else (0,):
            blocks = min(blocks * _number(size), LAST)
        self.work.add(
            *self._times(row), _number(args.get("device")), _number(args.get("stream")),
            _number(args.get("correlation")), _number(args.get("External id")), self._name(row), blocks,
            _number(args.get("bytes")), int(row["cat"] == "kernel"),
        )  # fmt: skip  # its columns in order

    def _wait(self, row: dict[str, Any], args: dict[str, Any]) -> None:
        waited = args.get("wait_on_stream")
        if row.get("name") == "Stream Wait Event" and isinstance(waited, int) and waited >= 0:
            self.waits.add(
                _number(args.get("device")), _number(args.get("stream")), _number(args.get("correlation")),
                _number(waited), _number(args.get("wait_on_cuda_event_record_corr_id")),
            )  # fmt: skip  # its columns in order

    def _times(self, row: dict[str, Any]) -> tuple[int, int]:
        start, length = nanoseconds(row.get("ts")), nanoseconds(row.get("dur", 0))
        if start is None or length is None or length < 0:
            key = "ts" if start is None else "dur"
            name = plain(str(row.get("name")), 48)
            raise FileError(
                f"{self._path}: row {self._row} ({name!r}): {key} is {reprlib.repr(row.get(key))}, not microseconds"
            )
        return start, start + length

    def _name(self, row: dict[str, Any]) -> int:
        name = row.get("name")
        if not isinstance(name, str):
            raise FileError(f"{self._path}: row {self._row}: name is {reprlib.repr(name)}, not a text")
        return self._text(name or "?")

    def _thread(self, row: dict[str, Any]) -> int:
        thread = row.get("tid")
        name = str(thread)[:64] if type(thread) in (int, str) else "?"
        return self._threads.setdefault(name, len(self._threads))

    def _text(self, text: str) -> int:
        """Its index among the texts; -1 of the empty one."""
        if not text:
            return -1
        if (found := self._texts.get(text)) is None:
            found = self._texts[text] = len(self._texts)
            self._text_size += len(text)
        return found


def nanoseconds(figure: object) -> int | None:
    """Microseconds as they stand in a file, a text where they have a point, in whole nanoseconds.

    >>> nanoseconds("1716459339123456.789"), nanoseconds(12), nanoseconds("1.5e3"), nanoseconds(None)
    (1716459339123456789, 12000, 1500000, None)
    """
    found: int
    if type(figure) is int:
        found = figure * 1000
    elif type(figure) is str:
        whole, _, part = figure.partition(".")
        try:
            more = len(part) - 3
            found = int(whole + part.ljust(3, "0"))
            if more > 0:
                found = (found + 5 * 10 ** (more - 1)) // 10**more
        except ValueError:  # an exponent, or no number at all
            try:
                found = round(float(figure) * 1e3)
            except (ValueError, OverflowError):
                return None
    else:
        return None
    return found if abs(found) < LAST else None


def _number(value: object) -> int:
    """An index or a count; 0 where there is none."""
    return value if type(value) is int and 0 <= value < LAST else 0


def _line(frame: str) -> str:
    """``model.py:12`` of a frame outside of PyTorch, else nothing."""
    found = FRAME(frame)
    return f"{found[1]}:{found[2]}" if found else ""


def _shapes(dims: object, depth: int = 0) -> str:
    """``(2048, 4096), (4096,)`` of the sizes of an operator's tensors, lists of tensors included."""
    if not isinstance(dims, list) or not dims or depth > 4:
        return ""
    if all(type(size) is int for size in dims):
        return f"({', '.join(map(str, dims))}{',' * (len(dims) == 1)})"
    return ", ".join(filter(None, (_shapes(inner, depth + 1) for inner in dims)))
