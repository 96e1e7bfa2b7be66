"""What is in a trace file, whoever wrote it, and what is wrong with it."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nanort.errors import FileError, TimelineError
from nanort.printable import printable
from nanort.timeline import files, torch_profile, units
from nanort.timeline.rows import ROWS, fields
from nanort.timeline.torch_rows import nanoseconds

TIMED = {"X": "slice", "B": "slice", "E": "", "s": "arrow", "t": "", "f": "", "C": "counter value", "i": "instant",
         "I": "instant", "R": "instant", "b": "async event", "n": "async event", "e": "", "P": "sample",
         "N": "object", "O": "object", "D": "object"}  # fmt: skip
"""What rows of each phase are counted as; those that end or continue something are not."""
UNTIMED = {"M": "name", "c": "clock", "v": "memory dump", "V": "memory dump", "(": "context", ")": ""}
PHASES = TIMED | UNTIMED
NANORT, TORCH, UNKNOWN = "nanort", "PyTorch", "an unknown writer"
READERS = {NANORT: files.load, TORCH: torch_profile.load}


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a trace file holds; prints.

    Attributes:
        path: the file.
        writer: who wrote it.
        rows: how many there are of each kind.
        lanes: threads that have slices.
        expected, recorded, dropped: launches of the run, those that have times, and those that the recorder lost; the
            rest never ran. None where the file is not read to its end, or its writer is unknown.
        problems: what is wrong, a sentence each.
    """

    path: str
    writer: str
    rows: dict[str, int]
    lanes: int
    expected: int | None
    recorded: int | None
    dropped: int | None
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def data(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        return {**asdict(self), "problems": [*self.problems], "ok": self.ok}

    def __str__(self) -> str:
        held = ", ".join(units.counted(count, kind) for kind, count in [*self.rows.items(), ("lane", self.lanes)])
        lines = [f"{printable(self.path)}: a trace by {self.writer} with {held}"]
        if self.expected is not None:
            told = f"{self.recorded:,} recorded, {self.dropped:,} dropped"
            lines.append(f"{units.counted(self.expected, 'launch')} expected, {told}")
        return "\n".join([*lines, *(self.problems or ("nothing is wrong with it",))])


def validate(path: str | os.PathLike[str]) -> Inspection:
    """What a trace in Chrome's JSON format holds, packed by gzip or not, and what is wrong with it."""
    rows = _Rows()
    expected = recorded = dropped = None
    try:
        for name, value in fields(path):
            rows.row(value) if name == ROWS else rows.head(name, value)
        problems = [*rows.problems()]
        if (read := READERS.get(rows.writer)) is not None:
            timeline = read(path)
            expected, dropped = len(timeline) + timeline.lost, timeline.lost
            recorded = int((~np.isnan(timeline.start)).sum())
    except (FileError, TimelineError) as error:
        problems = [*rows.problems(), printable(str(error))]
    return Inspection(
        str(path), rows.writer, rows.counted(), len(rows.lanes), expected, recorded, dropped, tuple(problems)
    )


class _Rows:
    """What the rows that were read so far hold: some bytes of each slice, and no more."""

    def __init__(self) -> None:
        self.writer = UNKNOWN
        self._counts: Counter[str] = Counter()
        self.lanes: dict[tuple[str, str], int] = {}
        self._spans = array("q")  # lane, start and end of every slice
        self._open: Counter[int] = Counter()  # slices of each lane that have begun, and not ended yet
        self._wrong: dict[str, tuple[int, int]] = {}  # how often, and in which row first
        self._number = 0

    def head(self, name: str, value: object) -> None:
        """Takes a field beside the rows."""
        if name == "nanort" and isinstance(value, dict) and value.get("schema") == files.SCHEMA:
            self.writer = NANORT
        elif name in ("deviceProperties", "baseTimeNanoseconds") and self.writer == UNKNOWN:
            self.writer = TORCH

    def row(self, row: object) -> None:
        """Takes a row."""
        self._number += 1
        phase = row.get("ph") if isinstance(row, dict) else None
        if not isinstance(row, dict) or not isinstance(phase, str) or phase not in PHASES:
            return self._refuse("is of no kind that viewers know")
        if kind := PHASES[phase]:
            self._counts[kind] += 1
        if phase in TIMED:
            self._time(row, phase)
        return None

    def _time(self, row: dict[str, Any], phase: str) -> None:
        start, length = nanoseconds(row.get("ts")), nanoseconds(row.get("dur", 0))
        if start is None or length is None or start < 0 or length < 0:
            return self._refuse("has a time that is none, or lies before zero: viewers drop it")
        lane = (str(row.get("pid"))[:64], str(row.get("tid"))[:64])
        if phase in "XBE":
            number = self.lanes.setdefault(lane, len(self.lanes))
            if phase == "X":
                self._spans.extend((number, start, start + length))
            else:
                self._open[number] += 1 if phase == "B" else -1
                if self._open[number] < 0:
                    self._open[number] = 0
                    return self._refuse("ends a slice that never began")
        if phase in "XB" and not isinstance(row.get("name"), str):
            return self._refuse("is a slice without a name")
        if phase == "C":
            args = row.get("args")
            values = args.values() if isinstance(args, dict) else ()
            if not values or any(nanoseconds(value) is None for value in values):
                return self._refuse("is a counter without a number")
        return None

    def _refuse(self, what: str) -> None:
        count, first = self._wrong.get(what, (0, self._number))
        self._wrong[what] = count + 1, first

    def problems(self) -> Iterator[str]:
        """What is wrong with the rows."""
        for what, (count, first) in self._wrong.items():
            yield f"row {first} {what}" + (f"; so do {count - 1:,} more" if count > 1 else "")
        if astray := self._astray():
            yield f"Perfetto drops {units.counted(astray, 'slice')} for overlapping another on the same lane"

    def counted(self) -> dict[str, int]:
        """Rows by kind; slices that never ended are counted once more."""
        unfinished = {"unfinished slice": sum(self._open.values())}
        return {kind: count for kind, count in [*sorted(self._counts.items()), *unfinished.items()] if count}

    def _astray(self) -> int:
        """Slices that begin within another of their lane and end after it."""
        lane, start, end = np.array(self._spans, np.int64).reshape(-1, 3).T
        order = np.lexsort((-end, start, lane))
        found, before = 0, -1
        inside: list[int] = []
        for number, begins, ends in zip(*(column[order].tolist() for column in (lane, start, end)), strict=True):
            if number != before:
                before, inside = number, []
            while inside and inside[-1] <= begins:
                inside.pop()
            if inside and ends > inside[-1]:
                found += 1
            else:
                inside.append(ends)
        return found
