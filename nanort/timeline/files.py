"""Saving a timeline and its plan as a Kineto trace, and reading back what was saved."""

from __future__ import annotations

import gzip
import json
import os
import reprlib
import stat
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from nanort.drafts import draft
from nanort.errors import FileError, NewerVersionError, TruncatedFileError
from nanort.timeline import kineto, units
from nanort.timeline.activities import Activity
from nanort.timeline.events import KINDS, Timeline
from nanort.timeline.kineto import Rows, encode
from nanort.timeline.rows import GZIP

SCHEMA, VERSION = "nanort.timeline", 3
CHUNK = 1024  # rows written at once: the file need not be in memory
ABOUT = {
    "kind": str,
    "device": str,
    "foreign": bool,
    "failure": str,
    "sm_capacity": int,
    "flops": float,
    "hbm_bandwidth": float,
    "h2d_bandwidth": float,
    "d2h_bandwidth": float,
    "lost": int,
}
SINCE = {"flops": 0.0, "lost": 0}  # what version 1 did not have
LARGEST = 1 << 31  # bytes of a file once unpacked: a small one, packed, could fill the memory
LARGEST_INT = 2**53  # beyond, tables and JavaScript have no whole numbers
LONGEST_NANOSECONDS = 2**51  # 26 days: further on, a float of microseconds no longer tells nanoseconds apart


def save(timeline: Timeline, path: str | os.PathLike[str], plan: Timeline | None = None) -> None:
    """Write ``timeline``, and ``plan`` beside it, to ``path`` at once: a reader sees the old file or the new one.

    Raises:
        FileError: a figure is NaN or infinite, or the run too long to be told to the nanosecond.
    """
    with draft(path) as beside, beside.open("x", encoding="utf-8", newline="\n") as file:
        file.writelines(_encoded(timeline, plan))


def _encoded(timeline: Timeline, plan: Timeline | None) -> Iterator[str]:
    """The file in pieces: its head, then the rows."""
    rows = Rows(timeline, plan)
    longest = max(timeline.makespan, plan.makespan if plan else 0.0) + rows.lead_ns / 1e9
    if longest * 1e9 > LONGEST_NANOSECONDS:
        raise FileError(f"a run of {units.duration(longest)} cannot be saved to the nanosecond: 26 days are the most")
    about = {"schema": SCHEMA, "version": VERSION, "lead_ns": rows.lead_ns}
    described = f"{encode(about)[:-1]}, {_about(timeline, rows)}"
    if plan is not None:
        described += f', "plan": {{{_about(plan, rows)}}}'
    head = {"schemaVersion": 1, "distributedInfo": {"rank": 0}, "displayTimeUnit": "ns"}
    yield f'{encode(head)[:-1]}, "nanort": {described}}}, "traceEvents": [\n'
    lines, separator = iter(rows), ""
    while chunk := list(islice(lines, CHUNK)):
        yield separator + ",\n".join(chunk)
        separator = ",\n"
    yield "\n]}\n"


def _about(timeline: Timeline, rows: Rows) -> str:
    """What the rows of a timeline do not tell: the fields of an object."""
    never = [(index, timeline.activities[index]) for index in np.flatnonzero(np.isnan(timeline.start)).tolist()]
    about = {name: getattr(timeline, name) for name in ABOUT} | {"limits": dict(timeline.limits)}
    about |= {"events_expected": len(timeline), "events_recorded": len(timeline) - len(never)}
    names = (
        f'{{"name": {encode(activity.name)}, "args": {rows.describe(index, activity)}}}}}' for index, activity in never
    )
    return f'{encode(about)[1:-1]}, "never_ran": [{", ".join(names)}]'


def load(path: str | os.PathLike[str]) -> Timeline:
    """The timeline, with its plan, that :func:`save` wrote to ``path``.

    Raises:
        TruncatedFileError: the file is cut short, or is no timeline.
        NewerVersionError: a newer nanort wrote it.
        FileError: it says something that cannot be.
    """
    trace = _parsed(Path(path))
    rows = trace.take("traceEvents", list)
    about = _Fields(trace.take("nanort", dict), f"{path}: nanort")
    lead_ns = about.take("lead_ns", int, 0)
    plan = None
    if "plan" in about.data:
        planned = _Fields(about.take("plan", dict), f"{path}: nanort: plan")
        plan = _timeline(planned, _slices(rows, kineto.PLAN, path), lead_ns, None)
    return _timeline(about, _slices(rows, kineto.ACTUAL, path), lead_ns, plan)


def _slices(rows: list[Any], pid: int, path: str | os.PathLike[str]) -> list[_Fields]:
    """The rows that say when an activity of this process ran."""
    return [
        _Fields(row, f"{path}: row {number}")
        for number, row in enumerate(rows)
        if isinstance(row, dict) and row.get("pid") == pid and row.get("cat") in kineto.SLICES
    ]


def _timeline(about: _Fields, rows: list[_Fields], lead_ns: int, plan: Timeline | None) -> Timeline:
    kind = about.take("kind", str)
    if kind not in KINDS:
        about.refuse("kind", f"one of {', '.join(KINDS)}")
    never = [
        _Fields(row, f"{about.where}: never_ran {number}") for number, row in enumerate(about.take("never_ran", list))
    ]
    expected, recorded = about.take("events_expected", int), about.take("events_recorded", int)
    if len(rows) != recorded or recorded + len(never) != expected:
        raise TruncatedFileError(
            f"{about.where}: there are {len(rows)} of {recorded} events that ran, and {len(never)} that did not, of "
            f"{expected}: the file was cut short, save it again"
        )
    start, end = np.full(expected, np.nan), np.full(expected, np.nan)
    activities: dict[int, Activity] = {}
    for place, row in enumerate(rows + never):
        index, activity = _activity(row, expected)
        if index in activities:
            raise FileError(f"{row.where}: event {index} is there twice")
        activities[index] = activity
        if place < len(rows):
            begin = row.nanoseconds("ts") - lead_ns
            if begin < 0:
                row.refuse("ts", f"{lead_ns / 1e3} or later, since the host's calls stand before the run")
            start[index] = begin / 1e9
            if row.data.get("ph") == "X":
                end[index] = (begin + row.nanoseconds("dur")) / 1e9
    limits = _Fields(about.take("limits", dict, {}), f"{about.where}: limits")
    return Timeline(
        [activities[index] for index in range(expected)],
        start,
        end,
        limits={name: limits.take(name, float) for name in limits.data},
        plan=plan,
        **{name: about.take(name, kind_of, SINCE.get(name)) for name, kind_of in ABOUT.items()},
    )


def _parsed(path: Path) -> _Fields:
    """The file as JSON, once it is known to be a timeline of a version that can be read."""

    def refuse(constant: str) -> NoReturn:
        raise FileError(f"{path} holds {constant}, which is no number: save it again")

    try:
        data = json.loads(_unpacked(path), parse_constant=refuse)
    except FileError:
        raise
    except (ValueError, RecursionError) as error:
        raise TruncatedFileError(f"{path} is cut short, or is not JSON: {error}") from error
    about = data.get("nanort") if isinstance(data, dict) else None
    if not isinstance(about, dict) or about.get("schema") != SCHEMA:
        raise TruncatedFileError(f"{path} is no timeline: load what Timeline.save wrote")
    version = _Fields(about, f"{path}: nanort").take("version", int)
    if version > VERSION:
        raise NewerVersionError(
            f"{path} has version {version}, this nanort reads up to {VERSION}: update nanort to load it"
        )
    return _Fields(data, str(path))


def _unpacked(path: Path) -> bytes:
    """The bytes of a file that may be packed by gzip."""
    with path.open("rb") as file:
        about = os.fstat(file.fileno())
        packed = file.read(len(GZIP)) == GZIP
    if not stat.S_ISREG(about.st_mode) or about.st_size > LARGEST:
        raise FileError(f"{path} is no regular file, or has more than {LARGEST:,} bytes: no timeline does")
    if not packed:
        return path.read_bytes()
    try:
        with gzip.open(path) as plain:
            content = plain.read(LARGEST + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise TruncatedFileError(f"{path} is cut short, or packed wrongly: {error}") from error
    if len(content) > LARGEST:
        raise FileError(f"{path} has more than {LARGEST:,} bytes once unpacked: no timeline does")
    return content


def _activity(row: _Fields, expected: int) -> tuple[int, Activity]:
    """One activity and its index."""
    args = _Fields(row.take("args", dict), row.where)
    index = args.take("index", int)
    if index >= expected:
        args.refuse("index", f"less than the {expected} events")
    needs = args.data.get("needs")
    if needs is not None and not (
        isinstance(needs, list) and all(type(need) is int and 0 <= need < expected for need in needs)
    ):
        args.refuse("needs", f"a list of indices below {expected}")
    waits = []
    for wait in args.take("waits", list, []):
        match wait:
            case [int(waited), str(reason)] if 0 <= waited < expected:
                waits.append((waited, reason))
            case _:
                args.refuse("waits", f"a list of [index below {expected}, reason]")
    return index, Activity(
        name=args.take("node", str) if "node" in args.data else row.take("name", str),
        operator=args.take("operator", str),
        stream=args.take("lane", str),
        scope=tuple(args.take("scope", dict, {}).items()),
        needs=None if needs is None else tuple(needs),
        waits=tuple(waits),
        **{name: args.take(name, type(usual), usual) for name, usual in kineto.USUAL.items()},
    )


@dataclass(frozen=True, slots=True)
class _Fields:
    """A JSON object whose fields are taken strictly; ``where`` says which object, for errors."""

    data: dict[str, Any]
    where: str

    def __post_init__(self) -> None:
        if not isinstance(self.data, dict):
            raise FileError(f"{self.where} is {reprlib.repr(self.data)}, not an object")

    def take(self, key: str, kind: type[Any], usual: Any = None) -> Any:
        """The field of exactly this type; numbers are finite and not negative."""
        value = self.data.get(key, usual)
        if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
            value = float(value)
        most = LARGEST_INT if kind is int else sys.float_info.max
        if type(value) is not kind or (kind in (int, float) and not 0 <= value <= most):
            self.refuse(key, f"a {kind.__name__}{' of zero or more' if kind in (int, float) else ''}")
        return value

    def nanoseconds(self, key: str) -> int:
        """A field of microseconds in whole nanoseconds."""
        microseconds: float = self.take(key, float)
        if microseconds * 1e3 > LONGEST_NANOSECONDS:
            self.refuse(key, "at most 26 days")
        return round(microseconds * 1e3)

    def refuse(self, key: str, what: str) -> NoReturn:
        """Say that the field must be ``what``."""
        value = reprlib.repr(self.data[key]) if key in self.data else "missing"
        raise FileError(f"{self.where}: {key} is {value}, not {what}")
