"""What a user means by a trace: a timeline of nanort, a torch.profiler trace, or the folder of a run."""

from __future__ import annotations

import re
from pathlib import Path

from nanort.errors import FileError, TruncatedFileError
from nanort.timeline.events import Timeline
from nanort.timeline.joined import Joined
from nanort.timeline.rows import ROWS, fields

TIMELINE = "timeline.json"
STEP = re.compile(r"step-(\d{6,18})\.json").fullmatch
"""A step's timeline, as a serving engine traces it."""
STEPS = 50
"""The last steps of a folder, which are shown one after the other."""


def opened(path: Path) -> Timeline:
    """The timeline in a file, recognised by what it holds, or in a folder: its timeline.json, or its last steps.

    Raises:
        FileError: there is none, or it cannot be read.
    """
    files = files_of(path)
    if len(files) == 1:
        return _read(files[0])
    return Joined(list(map(Timeline.load, files)), "step", [_number(file) for file in files])


def files_of(path: Path) -> list[Path]:
    """The files that :func:`opened` reads: one, or steps.

    Raises:
        FileError: the folder has none, or it is neither a file nor a folder.
    """
    if not path.is_dir():
        if not path.is_file():
            raise FileError(f"{path} is no regular file, and a trace is read more than once: write it to one first")
        return [path]
    if (path / TIMELINE).is_file():
        return [path / TIMELINE]
    if steps := sorted((file for file in path.iterdir() if STEP(file.name)), key=_number)[-STEPS:]:
        return steps
    raise FileError(f"{path} has no {TIMELINE} and no step-000000.json: name a trace, or the folder of a run")


def _number(step: Path) -> int:
    return int(step.name[5:-5])


def _read(path: Path) -> Timeline:
    for name, _ in fields(path):
        if name == "nanort":
            return Timeline.load(path)
        if name == ROWS:
            return Timeline.from_torch_profile(path)
    raise TruncatedFileError(f"{path} is no trace: give what Timeline.save or torch.profiler wrote")
