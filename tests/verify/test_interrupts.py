"""Ctrl-C at random instants of `nanort demo --small`: it ends at once, in silence, and leaves only whole files.

An instant is so much processor time after the first line, drawn from all that a whole run takes: other load shifts
none. Every second run has a terminal, on which a thread draws.
"""

from __future__ import annotations

import json
import os
import pty
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import nanort as nr

SERIES, RUNS, SOAKED = 8, 1, 125
"""How many are interrupted: so many in each series, in CI and by `make soak`."""
PATIENCE = 60.0
"""Seconds in which a demo that was interrupted has to be gone, whatever else the machine does."""
LAST = 0.1
"""Seconds that the kernel takes at most to free what a process held."""
HIDES, SHOWS = "\x1b[?25l", "\x1b[?25h"
"""What a terminal is told about its cursor."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A demo that is over: its exit code, what it printed, and the processes that it left.

    ``seconds`` is how long it ran since its first line, ``interrupted`` when the signal came, if it did.
    """

    code: int
    said: str
    left: list[str]
    seconds: float
    interrupted: float | None

    @property
    def late(self) -> bool:
        """Whether it had come to its end by itself: a process that the kernel takes down hears no signal."""
        return self.interrupted is None or (self.code == 0 and self.seconds - self.interrupted < LAST)


def demo(out: Path, *, terminal: bool = False, at: float | None = None) -> Ended:
    """Runs the demo, and presses Ctrl-C when its first line is ``at`` seconds old."""
    here, there = pty.openpty() if terminal else os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-m", "nanort", "demo", "--small", "--out", str(out)],
        stdin=subprocess.DEVNULL, stdout=there, stderr=there, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs in the background of a shell ignore it
    )  # fmt: skip  # what is said by its name
    os.close(there)
    said, first, spent, interrupted, since = b"", 0.0, 0.0, None, time.monotonic()
    while chunk := _read(here):
        said += chunk.strip(b"\0")
        spent = _spent(child.pid, spent)
        if not first and b"\n" in said:
            first = spent
        if at is not None and interrupted is None and first and spent - first >= at:
            os.killpg(child.pid, signal.SIGINT)
            interrupted, since = spent - first, time.monotonic()
        if interrupted is not None and time.monotonic() - since > PATIENCE:
            os.killpg(child.pid, signal.SIGKILL)
    os.close(here)
    code = child.wait()
    return Ended(code, said.decode(errors="replace"), _members(child.pid), spent - first, interrupted)


def _read(file: int) -> bytes:
    """What comes within a millisecond; a zero where nothing does, and nothing where nobody is left to write."""
    if not select.select([file], [], [], 0.001)[0]:
        return b"\0"
    try:
        return os.read(file, 1 << 16)
    except OSError:  # so ends a terminal
        return b""


def _spent(pid: int, before: float) -> float:
    """Seconds of the processor that a process took, by Linux's clock of it; ``before`` where it is gone."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return before


def _members(session: int) -> list[str]:
    """The processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[3]) == session:
            found.append(path.parent.name)
    return found


def judge(ended: Ended, out: Path) -> str:
    """How far its last step came, once it is known that everything is as it should be."""
    assert ended.code == 130, ended
    assert not any(word in ended.said for word in ("Traceback", "ignored in", "Error")), ended.said
    assert ended.said.rfind(HIDES) <= ended.said.rfind(SHOWS), "the cursor stays hidden"
    assert ended.left == []
    files = {path.name for path in out.iterdir()}
    assert files in ({"timeline.json"}, {"timeline.json", "schedule.json", "h200.json"})
    timeline = nr.Timeline.load(out / "timeline.json")
    if len(files) > 1:
        assert len(nr.Timeline.load(out / "h200.json")) > 400
        assert json.loads((out / "schedule.json").read_text())["schema"] == "nanort.schedule"
    if np.isnan(timeline.end).any():
        assert timeline.failure == "interrupted"
        return "in a step"
    if len(timeline):
        return "between steps" if len(files) == 1 else "after all"
    assert timeline.failure == "interrupted before any step"
    return "before a step"


@pytest.fixture(scope="module")
def seconds(tmp_path_factory: pytest.TempPathFactory) -> float:
    """How long a demo runs, and a little more: runs differ."""
    whole = demo(tmp_path_factory.mktemp("whole") / "out")
    assert (whole.code, whole.left) == (0, [])
    return 1.05 * whole.seconds


@pytest.mark.parametrize("series", range(SERIES))
def test_ctrl_c_at_any_instant(series: int, seconds: float, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    draw, found, late = random.Random(series), Counter[str](), 0
    wanted = SOAKED if pytestconfig.getoption("soak") else RUNS
    for number in range(2 * wanted + 5):
        out = tmp_path / str(number)
        ended = demo(out, terminal=number % 2 == 1, at=draw.uniform(0, seconds))
        if ended.late:
            late += 1
        else:
            found[judge(ended, out)] += 1
        shutil.rmtree(out)
        if found.total() == wanted:
            break
    print(f"{found.total()} interrupted: {dict(found)}; {late} were over before")
    assert found.total() == wanted
