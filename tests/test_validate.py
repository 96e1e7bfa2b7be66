from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given

from hostile import HOSTILE, LONG
from nanort.timeline.activities import Activity
from nanort.timeline.events import Timeline
from nanort.timeline.validate import Inspection, validate
from timelines import CAPACITY, timelines

Trace = dict[str, Any]
SLICE = {"ph": "X", "ts": 5, "dur": 10, "pid": 1, "tid": 1, "name": "a"}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all the cases that hypothesis makes."""
    return tmp_path_factory.mktemp("validate")


def judged(folder: Path, *rows: object, **beside: object) -> Inspection:
    path = folder / "trace.json"
    path.write_text(json.dumps({**beside, "traceEvents": rows}))
    return validate(path)


def made() -> Timeline:
    """Two launches that ran, of which the second waited, one that never ended, and one that never began."""
    activities = [
        Activity("a", "linear", "g0", "g0", 4, 1e9),
        Activity("b", "linear", "g1", "g1", 4, 1e9, waits=((0, "data"),)),
        Activity("c", "linear", "g0", "g0", 4),
        Activity("d", "linear", "g1", "g1", 4),
    ]
    nan = float("nan")
    return Timeline(activities, [0, 1e-3, 1e-3, nan], [1e-3, 2e-3, nan, nan], **CAPACITY, failure="broke", lost=3)


@given(timelines(), timelines())
def test_nothing_is_wrong_with_what_we_write(folder: Path, t: Timeline, plan: Timeline) -> None:
    t.save(folder / "trace.json", plan)
    found = validate(folder / "trace.json")
    assert (found.problems, found.writer) == ((), "nanort")
    assert (found.expected, found.recorded, found.dropped) == (len(t), sum(e.start == e.start for e in t), 0)


@pytest.mark.parametrize("packed", [False, True])
def test_it_says_what_there_is_and_what_was_lost(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "trace.json"
    made().save(path)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    found = validate(path)
    assert found.ok
    assert (found.expected, found.recorded, found.dropped, found.lanes) == (7, 3, 3, 4)
    assert found.rows == {"arrow": 1, "counter value": 4, "name": 12, "slice": 10, "unfinished slice": 1}
    assert str(found) == (
        f"{path}: a trace by nanort with 1 arrow, 4 counter values, 12 names, 10 slices, 1 unfinished slice, 4 lanes\n"
        "7 launches expected, 3 recorded, 3 dropped\n"
        "nothing is wrong with it"
    )
    assert json.loads(json.dumps(found.data))["ok"] is True


def test_a_profile_of_torch_is_known(tmp_path: Path) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.ones(2) + 1
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    found = validate(tmp_path / "trace.json")
    assert (found.writer, found.problems, found.dropped) == ("PyTorch", (), 0)
    assert found.recorded == found.expected
    assert found.recorded


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([3], "row 1 is of no kind that viewers know"),
        ([SLICE, {}], "row 2 is of no kind that viewers know"),
        ([{"ph": "?"}, {"ph": []}, SLICE], "row 1 is of no kind that viewers know; so do 1 more"),
        ([SLICE | {"ts": None}], "row 1 has a time that is none, or lies before zero: viewers drop it"),
        ([SLICE | {"ts": -1}], "row 1 has a time that is none, or lies before zero: viewers drop it"),
        ([SLICE | {"dur": -0.5}], "row 1 has a time that is none, or lies before zero: viewers drop it"),
        ([SLICE | {"name": 3}], "row 1 is a slice without a name"),
        ([SLICE | {"ph": "E"}], "row 1 ends a slice that never began"),
        ([{"ph": "C", "ts": 0, "name": "x"}], "row 1 is a counter without a number"),
        ([{"ph": "C", "ts": 0, "name": "x", "args": {"GB/s": "fast"}}], "row 1 is a counter without a number"),
        ([SLICE, SLICE | {"ts": 10}], "Perfetto drops 1 slice for overlapping another on the same lane"),
        ([SLICE | {"ts": 14.999}, SLICE], "Perfetto drops 1 slice for overlapping another on the same lane"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(tmp_path: Path, rows: list[object], said: str) -> None:
    found = judged(tmp_path, *rows)
    assert (found.problems, found.ok, found.writer) == ((said,), False, "an unknown writer")
    assert str(found).endswith(said)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [SLICE, SLICE],
        [SLICE, SLICE | {"ts": 15}],
        [SLICE, SLICE | {"ts": 5.001, "dur": 9.999}],
        [SLICE, SLICE | {"ts": 10, "tid": 2}],
        [SLICE, SLICE | {"ts": 10, "pid": 2}],
        [SLICE, SLICE | {"ts": 15, "dur": 0}],
        [SLICE | {"ph": "B"}, SLICE | {"ph": "E", "ts": 7}],
        [{"ph": "C", "ts": 0, "name": "x", "args": {"a": 1, "b": 0.5}}],
        [{"ph": "M", "name": "process_name", "args": {"name": "x"}}],
    ],
)
def test_what_viewers_draw_is_not_wrong(tmp_path: Path, rows: list[object]) -> None:
    assert judged(tmp_path, *rows).ok


def cut(trace: Trace) -> str:
    return json.dumps(trace)[:-200]


def fewer(trace: Trace) -> str:
    trace["traceEvents"] = [row for row in trace["traceEvents"] if row["name"] != "a"]
    return json.dumps(trace)


def newer(trace: Trace) -> str:
    trace["nanort"]["version"] = 99
    return json.dumps(trace)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (cut, "is cut short, or is not JSON"),
        (fewer, "there are 2 of 3 events that ran"),
        (newer, "has version 99, this nanort reads up to 3: update"),
        (lambda _: "", "ends too early"),
        (lambda _: "[]", "does not begin as a JSON object"),
    ],
)
def test_a_broken_file_is_a_problem_and_no_crash(tmp_path: Path, change: Callable[[Trace], str], said: str) -> None:
    path = tmp_path / "trace.json"
    made().save(path)
    path.write_text(change(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
    found = validate(path)
    assert len(found.problems) == 1
    assert said in found.problems[0]
    assert found.expected is None


@pytest.mark.parametrize("content", [b"\x1f\x8b", b"\x1f\x8b\x08\x00" + b"\x00" * 50, b"\xff\xfe", b"\x0a\x05\x08\x01"])
def test_other_files_are_no_traces(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "trace.json"
    path.write_bytes(content)
    assert len(validate(path).problems) == 1


@pytest.mark.parametrize("name", [*HOSTILE, LONG], ids=ascii)
def test_no_name_reaches_the_terminal(tmp_path: Path, name: str) -> None:
    found = judged(tmp_path, SLICE | {"name": name, "pid": name, "tid": name, "ph": name}, **{name or "x": name})
    assert str(found).replace("\n", "").isprintable()
    assert len(str(found)) < 1000
