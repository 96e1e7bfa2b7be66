"""Store: measurements kept in an SQLite file, so that nothing has to be measured twice."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nanort.costs import files
from nanort.costs.samples import Call, Place, Sample
from nanort.errors import FileError, NewerVersionError, TruncatedFileError

VERSION = 2
APPLICATION = 1851878511
"""What SQLite calls an application id, in the head of every such file: "nano"."""

_SCHEMA = (
    """CREATE TABLE places (
        id INTEGER PRIMARY KEY, device TEXT NOT NULL, sms INTEGER NOT NULL, gpu TEXT NOT NULL, driver TEXT NOT NULL,
        versions TEXT NOT NULL, UNIQUE (device, sms, gpu, driver, versions))""",
    """CREATE TABLE calls (
        id INTEGER PRIMARY KEY, operator TEXT NOT NULL, kernel TEXT NOT NULL, shapes TEXT NOT NULL, dtype TEXT NOT NULL,
        flops REAL NOT NULL, hbm_bytes REAL NOT NULL, sms INTEGER NOT NULL, tiles INTEGER NOT NULL DEFAULT 0,
        UNIQUE (operator, kernel, shapes, dtype, flops, hbm_bytes, sms))""",
    """CREATE TABLE samples (
        place INTEGER NOT NULL REFERENCES places, call INTEGER NOT NULL REFERENCES calls, beside INTEGER NOT NULL,
        seconds REAL NOT NULL, low REAL NOT NULL, high REAL NOT NULL, runs INTEGER NOT NULL, clocks TEXT NOT NULL,
        PRIMARY KEY (place, call, beside))""",
    "PRAGMA application_id = 1851878511",
    "PRAGMA user_version = 2",
)
_UPDATES = {1: ("ALTER TABLE calls ADD COLUMN tiles INTEGER NOT NULL DEFAULT 0", "PRAGMA user_version = 2")}
"""By version, what makes the next one of it."""

_ALONE = 0
"""What ``samples.beside`` holds where nothing ran beside; ids begin at 1."""


class Store:
    """The measurements of one place in an SQLite file, which is made where there is none; a context manager.

    Every :meth:`add` is on the disk when it returns, so that an interruption loses nothing.

    Args:
        path: of the file; other places may have their measurements in it too.
        place: whose measurements are read and added.
        patience: seconds to wait while another process writes.

    Raises:
        TruncatedFileError: it is no such file, or is damaged.
        NewerVersionError: a newer nanort wrote it.
        FileError: it cannot be opened, is locked or has no name; its figures cannot have been measured.
    """

    def __init__(self, path: str | os.PathLike[str], place: Place, *, patience: float = 5.0) -> None:
        self.path = os.fspath(path)
        self.place = place
        if self.path in ("", ":memory:"):
            raise FileError(f"a store at {self.path!r} would be gone once it is closed: name a file")
        with self._named():
            self._connection = sqlite3.connect(self.path, timeout=patience, isolation_level=None)
            try:
                self._open()
            except BaseException:
                self._connection.close()
                raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def has(self, call: Call, beside: Call | None = None) -> bool:
        """Whether this was measured here."""
        with self._named():
            found = self._connection.execute(
                "SELECT 1 FROM samples WHERE place = ? AND call = ? AND beside = ?",
                (self._place, self._find(call), _ALONE if beside is None else self._find(beside)),
            )
            return found.fetchone() is not None

    def add(self, *samples: Sample) -> None:
        """Keeps samples, all or none of them; one that was there is replaced."""
        with self._named(), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            for sample in samples:
                beside = _ALONE if sample.beside is None else self._insert(sample.beside)
                figures = (sample.seconds, sample.low, sample.high, sample.runs, json.dumps(dict(sample.clocks)))
                self._connection.execute(
                    "INSERT OR REPLACE INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (self._place, self._insert(sample.call), beside, *figures),
                )

    def samples(self) -> tuple[Sample, ...]:
        """All that was measured here, in one order whatever the order in which it was."""
        with self._named():
            calls = self._connection.execute(
                "SELECT id, operator, kernel, shapes, dtype, flops, hbm_bytes, sms, tiles FROM calls"
            ).fetchall()
            rows = self._connection.execute(
                "SELECT call, beside, seconds, low, high, runs, clocks FROM samples WHERE place = ?", (self._place,)
            ).fetchall()
        known: dict[int, Call | None] = {number: self._call(call) for number, *call in calls}
        known[_ALONE] = None
        found = [self._sample(known, row) for row in rows]
        return tuple(sorted(found, key=lambda sample: (sample.beside is not None, sample.call, sample.beside)))

    def _open(self) -> None:
        """Makes the tables in an empty file, refuses one of another kind, and finds the place."""
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            (application,) = self._connection.execute("PRAGMA application_id").fetchone()
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if application != APPLICATION and (application or version or tables):
                raise TruncatedFileError(f"{self.path} is a database of something else: name another file")
            (alien,) = self._connection.execute(
                "SELECT count(*) FROM sqlite_master WHERE type IN ('view', 'trigger')"
            ).fetchone()
            if alien:  # SQLite would run it, for ever if it likes
                raise TruncatedFileError(f"{self.path} holds views or triggers, which no store has: name another file")
            if version > VERSION:
                raise NewerVersionError(
                    f"{self.path} has version {version}, this nanort reads up to {VERSION}: update nanort"
                )
            for statement in _UPDATES.get(version, ()) if application else _SCHEMA:
                self._connection.execute(statement)
            place = (*self.place[:4], json.dumps(self.place.versions))
            self._connection.execute(
                "INSERT OR IGNORE INTO places (device, sms, gpu, driver, versions) VALUES (?, ?, ?, ?, ?)", place
            )
            (self._place,) = self._connection.execute(
                "SELECT id FROM places WHERE device = ? AND sms = ? AND gpu = ? AND driver = ? AND versions = ?", place
            ).fetchone()

    def _find(self, call: Call) -> int:
        """The number of a call, -1 if it is not known."""
        found = self._connection.execute(
            "SELECT id FROM calls WHERE operator = ? AND kernel = ? AND shapes = ? AND dtype = ? AND flops = ?"
            " AND hbm_bytes = ? AND sms = ? AND tiles = ?",
            _row(call),
        ).fetchone()
        return found[0] if found else -1

    def _insert(self, call: Call) -> int:
        self._connection.execute(
            "INSERT INTO calls (operator, kernel, shapes, dtype, flops, hbm_bytes, sms, tiles)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET tiles = excluded.tiles",
            _row(call),
        )
        return self._find(call)

    def _call(self, row: list[Any]) -> Call:
        operator, kernel, shapes, dtype, *work = files.row(
            row, f"{self.path}: a call", (str, str, str, str, float, float, int, int)
        )
        try:
            sizes = tuple(tuple(int(size) for size in shape) for shape in json.loads(shapes))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise FileError(
                f"{self.path}: {shapes!r:.200} is not a list of shapes: measure into another file"
            ) from error
        return Call(operator, kernel, sizes, dtype, *work)

    def _sample(self, known: dict[int, Call | None], row: tuple[Any, ...]) -> Sample:
        where = f"{self.path}: a measurement"
        kinds = (int, int, float, float, float, int, str)
        number, beside, seconds, low, high, runs, clocks = files.row(list(row), where, kinds)
        call = known.get(number)
        if call is None or beside not in known:
            raise FileError(f"{where} is of a call that is not there: measure into another file")
        if not 0 <= call.sms <= self.place.sms:
            raise FileError(
                f"{where} of {call.operator} is on {call.sms} of {self.place.sms} SMs: measure into another"
            )
        try:
            mhz = tuple((name, float(speed)) for name, speed in json.loads(clocks).items())
            return Sample(call, seconds, low, high, runs, mhz, known[beside])
        except (
            AttributeError,
            TypeError,
            ValueError,
            OverflowError,
            RecursionError,
        ) as error:  # CostError is a ValueError
            raise FileError(f"{where} of {call.operator} cannot be: {error}: measure into another file") from error

    @contextmanager
    def _named(self) -> Iterator[None]:
        """SQLite's errors as nanort's, which name the file."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise FileError(
                f"{self.path} cannot be used: {error}: if another process is measuring into it, wait for that one; "
                "otherwise name a file in a folder that can be written to"
            ) from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter of names in a damaged schema
            if type(error) not in (sqlite3.DatabaseError, UnicodeDecodeError):  # a mistake in its use, not in the file
                raise
            raise TruncatedFileError(
                f"{self.path} is no SQLite file, or is damaged ({error}): move it away, or name another"
            ) from error


def _row(call: Call) -> tuple[Any, ...]:
    """A call as SQLite has it."""
    operator, kernel, shapes, *rest = call
    return operator, kernel, json.dumps(shapes), *rest
