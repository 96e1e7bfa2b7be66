"""Trace: the timeline of every step in a folder; `follow`, the life of one request through them."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nanort.bounded import lines
from nanort.errors import FileError, RequestError, TruncatedFileError
from nanort.serving.engine import StepRecord
from nanort.timeline.units import duration, plain

PASSAGES = "requests.jsonl"
KEPT = 1000
"""Timelines in a folder at most: each takes some hundred kilobytes, and a server runs for long."""


class Trace:
    """An observer of an engine, which keeps in ``folder`` what every step did.

    ``step-000012.json`` is a step's timeline, for ui.perfetto.dev; those of the last ``kept`` steps are there.
    ``requests.jsonl`` has a Passage a line.

    Raises:
        FileError: the folder holds a trace already, or is a file.
    """

    def __init__(self, folder: Path | str, *, kept: int = KEPT) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise FileError(f"{self.folder} cannot be a folder, since a file is in its place: name another") from error
        try:
            (self.folder / PASSAGES).touch(exist_ok=False)
        except FileExistsError as error:
            raise FileError(f"{self.folder} holds a trace already: name another folder, or remove it") from error
        self._timelines = deque[Path]()
        self._kept = kept

    def __call__(self, record: StepRecord) -> None:
        """Writes what is known of a step that was collected."""
        if record.result is not None and record.result.timeline is not None:
            self._timelines.append(self.folder / f"step-{record.index:06}.json")
            record.result.timeline.save(self._timelines[-1])
            if len(self._timelines) > self._kept:
                self._timelines.popleft().unlink(missing_ok=True)
        with (self.folder / PASSAGES).open("a", encoding="ascii") as file:
            file.writelines(json.dumps(asdict(passage)) + "\n" for passage in _passages(record))


@dataclass(frozen=True, slots=True)
class Passage:
    """A request's share of one step.

    Attributes:
        request, step: its id, and the number of the step, which its timeline is named by.
        began, ended: of the step, in seconds of the engine's clock.
        start, stop: which of the request's tokens were processed.
        drew: the token that was drawn after them; None where more of the prompt was to come, or the step failed.
        rows: of the whole step.
    """

    request: str
    step: int
    began: float
    ended: float
    start: int
    stop: int
    drew: int | None
    rows: int

    def __str__(self) -> str:
        drew = "" if self.drew is None else f", drew {self.drew}"
        when = f"{duration(self.began):>9} + {duration(self.ended - self.began):<9}"
        return f"step {self.step:<7}{when} tokens {self.start} to {self.stop} in {self.rows} rows{drew}"


def _passages(record: StepRecord) -> Iterator[Passage]:
    shares = record.batch.shares
    drawn = record.result.tokens if record.result is not None else (None,) * len(shares)
    rows = sum(share.stop - share.start for share in shares)
    for share, token in zip(shares, drawn, strict=True):
        yield Passage(
            share.request.id, record.index, record.began, record.ended, share.start, share.stop, token, rows
        )  # fmt: skip  # its fields in order


def follow(folder: Path | str, request: str) -> tuple[Passage, ...]:
    """The life of the request with this id, step by step, as a Trace wrote it into ``folder``.

    Raises:
        FileError: there is no trace in the folder.
        TruncatedFileError: a line of it is broken.
        RequestError: it has no such request.
    """
    path = Path(folder) / PASSAGES
    if not path.is_file():
        raise FileError(f"there is no {PASSAGES} in {folder}: give the folder of a trace")
    found = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(lines(file, path), 1):
            passage = _read(f"{path}:{number}", line)
            if passage.request == request:
                found.append(passage)
    if not found:
        raise RequestError(f"{folder} has no request '{plain(request)}': {PASSAGES} there names those that it has")
    return tuple(found)


def _read(where: str, line: str) -> Passage:
    try:
        fields: Any = json.loads(line)
        return Passage(**fields)
    except (ValueError, TypeError, RecursionError) as error:
        raise TruncatedFileError(f"{where} is no line of a trace ({error}): it was cut short or changed") from error
