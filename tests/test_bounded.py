from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import nanort as nr
from nanort import bounded
from nanort.bench.arrivals import arrivals
from nanort.checkpoints import tokenizer
from nanort.checkpoints.tokenizer import Tokenizer
from nanort.checkpoints.weights import read_json
from nanort.costs import footprint
from nanort.costs.profile import Profile
from nanort.errors import FileError
from nanort.scheduling.problem import Problem
from nanort.scheduling.schedule import Schedule
from nanort.serving.traces import PASSAGES, follow


def test_content_is_the_whole_file_up_to_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    assert bounded.content(path, 1 << 20) == bytes(1 << 20)
    path.write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(FileError, match="file has more than 1 MiB: no file of its kind does"):
        bounded.content(path, 1 << 20)


def _graph() -> nr.Graph:
    return nr.graphs.synthetic.random_dag(3, 8)


@pytest.mark.parametrize(
    "read",
    [
        lambda path: Schedule.load(path, _graph()),
        Profile.load,
        footprint.load,
        Problem.read,
        read_json,
        lambda path: list(arrivals(str(path), 1, seed=0, count=len, most=99)),
    ],
    ids=["schedule", "profile", "footprints", "problem", "config", "conversations"],
)
def test_a_file_without_end_is_refused(
    read: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "endless.json"
    path.symlink_to("/dev/zero")
    monkeypatch.setattr("nanort.bench.arrivals.LARGEST", 1 << 20)
    monkeypatch.setattr(Path, "is_file", lambda _: True)  # so that the first to look at it is the one that reads it
    with pytest.raises(FileError, match=r"endless\.json has more than \d+ MiB"):
        read(path)


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
def test_a_tokenizer_without_end_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to("/dev/zero")
    monkeypatch.setattr(tokenizer, "LARGEST", 1 << 20)
    monkeypatch.setattr(Path, "is_file", Path.exists)
    with pytest.raises(FileError, match=rf"{name} has more than 1 MiB"):
        Tokenizer.of(tmp_path)


@pytest.mark.parametrize("name", [PASSAGES, "trace.csv"])
def test_a_line_without_end_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("x" * (bounded.LONGEST_LINE + 1))
    with pytest.raises(FileError, match="has a line of more than 1,048,576 characters"):
        follow(tmp_path, "a") if name == PASSAGES else list(arrivals(str(tmp_path / name), 1, seed=0, most=99))
