from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

import nanort as nr
from nanort.bench.arrivals import Arrival
from nanort.bench.serve import bench_serve
from nanort.errors import FileError, RequestError, TruncatedFileError
from nanort.graphs import CONFIGS
from nanort.serving.simulated import Simulation
from nanort.serving.traces import Passage, Trace, follow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The trace of a prompt that takes two steps and is answered by four tokens, and of one beside it."""
    folder = tmp_path / "trace"
    coming = [Arrival(0.0, 40, 4), Arrival(0.0, 3, 2)]
    options = {"cache_tokens": 256, "max_rows": 32, "policy": "serial"}
    with Simulation(CONFIGS["tiny"], nr.device("h200"), trace=folder, **options) as simulation:
        bench_serve(simulation, coming)
    return folder


def test_a_request_is_followed_from_step_to_step(folder: Path) -> None:
    passages = follow(folder, "request 0")
    assert passages[0].start == 0
    assert [before.stop for before in passages[:-1]] == [after.start for after in passages[1:]]
    assert passages[-1].stop == 40 + 4 - 1  # the last token is never processed
    prompt = [passage for passage in passages if passage.stop <= 40]
    assert [passage.drew is not None for passage in passages] == [
        *(passage.stop == 40 for passage in prompt), True, True, True,
    ]  # fmt: skip
    assert len(prompt) > 1
    assert all(before.ended <= after.began + 1e-12 for before, after in pairwise(passages))
    assert max(passage.rows for passage in passages) <= 32
    assert f"drew {passages[-1].drew}" in str(passages[-1])
    assert "drew" not in str(passages[0])


def test_its_steps_have_timelines_that_can_be_loaded(folder: Path) -> None:
    for passage in follow(folder, "request 1"):
        timeline = nr.Timeline.load(folder / f"step-{passage.step:06}.json")
        assert timeline.makespan == pytest.approx(passage.ended - passage.began, rel=1e-3)


def test_the_last_timelines_are_kept(tmp_path: Path) -> None:
    with Simulation(CONFIGS["tiny"], nr.device("h200"), cache_tokens=256, trace=tmp_path / "all") as simulation:
        simulation.engine.observers.append(Trace(tmp_path / "few", kept=3))
        bench_serve(simulation, [Arrival(0.0, 4, 8)])
    names = sorted(path.name for path in (tmp_path / "all").glob("step-*.json"))
    assert sorted(path.name for path in (tmp_path / "few").glob("step-*.json")) == names[-3:]
    assert follow(tmp_path / "few", "request 0") == follow(tmp_path / "all", "request 0")


def test_a_folder_takes_one_trace(folder: Path) -> None:
    with pytest.raises(FileError, match="holds a trace already"):
        Trace(folder)
    for file in (folder / "requests.jsonl", folder / "requests.jsonl" / "below"):
        with pytest.raises(FileError, match="a file is in its place: name another"):
            Trace(file)


def test_a_request_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"no request 'request\\x1b 7'"):
        follow(folder, "request\x1b 7")
    with pytest.raises(FileError, match=r"no requests\.jsonl"):
        follow(folder / "elsewhere", "request 0")


@pytest.mark.parametrize("line", ["", "{", "[]", "1", "{}", '{"request": "a"}', '{"request": "a", "more": 1}'])
def test_broken_lines_are_refused(line: str, tmp_path: Path) -> None:
    good = Passage("a", 0, 0.0, 1.0, 0, 1, 2, 1)
    fields = {name: getattr(good, name) for name in Passage.__slots__}
    (tmp_path / "requests.jsonl").write_text(f"{json.dumps(fields)}\n{line}\n", encoding="utf-8")
    with pytest.raises(TruncatedFileError, match=r"requests\.jsonl:2"):
        follow(tmp_path, "a")
