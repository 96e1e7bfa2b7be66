from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostile import HOSTILE, LONG
from nanort.errors import FileError, NewerVersionError, TruncatedFileError
from nanort.timeline import files, kineto
from nanort.timeline.activities import Activity
from nanort.timeline.events import Timeline
from nanort.timeline.tracks import COUNTERS
from timelines import CAPACITY, nanoseconds, timelines

NAN = math.nan
Trace = dict[str, Any]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all the cases that hypothesis makes."""
    return tmp_path_factory.mktemp("traces")


def saved(t: Timeline, folder: Path, plan: Timeline | None = None) -> tuple[Path, Trace]:
    path = folder / "trace.json"
    t.save(path, plan)
    return path, json.loads(path.read_text(), parse_constant=pytest.fail)


def slices(trace: Trace) -> list[Trace]:
    """The rows that are activities."""
    return [row for row in trace["traceEvents"] if row.get("cat") in kineto.SLICES]


def whole(microseconds: float) -> int:
    return round(microseconds * 1e3)


def by(rows: list[Trace], *keys: str) -> dict[tuple[Any, ...], list[Trace]]:
    sorted_out = defaultdict(list)
    for row in rows:
        sorted_out[tuple(row.get(key) for key in keys)].append(row)
    return sorted_out


def example(failed: bool = False) -> Timeline:
    made = [
        Activity("layer0.q", "linear", "g0", "g0", 88, 1e9, 2e6, piece=1, scope=(("layer", 0),), where="model.py:12"),
        Activity("layer0.a", "attention", "g1", "g1", 40, hbm_bytes=8e6, waits=((0, "data"),)),
        Activity("prefetch", "to_device", "h2d", h2d_bytes=5e5, waits=((0, "after"), (1, "resource"))),
    ]
    end = [1e-3, 3e-3, NAN if failed else 4e-3]
    return Timeline(made, [0, 1e-3, NAN if failed else 3e-3], end, **CAPACITY, failure="broke" if failed else "")


@given(timelines(longest=10**12))
def test_what_was_saved_is_loaded_to_the_nanosecond(folder: Path, t: Timeline) -> None:
    path, _ = saved(t, folder)
    again = Timeline.load(path)
    assert again.activities == t.activities
    np.testing.assert_array_equal(np.rint(again.start * 1e9), np.rint(t.start * 1e9))
    np.testing.assert_array_equal(np.rint(again.end * 1e9), np.rint(t.end * 1e9))
    assert [getattr(again, name) for name in files.ABOUT] == [getattr(t, name) for name in files.ABOUT]
    before = path.read_bytes()
    again.save(path)
    assert path.read_bytes() == before


@given(timelines(), timelines())
def test_plan_stands_beside_as_a_process_of_its_own(folder: Path, t: Timeline, plan: Timeline) -> None:
    path, trace = saved(t, folder, plan)
    assert Timeline.load(path).activities == t.activities
    rows = by(trace["traceEvents"], "ph", "name", "pid")
    assert rows["M", "process_name", kineto.ACTUAL][0]["args"]["name"] == f"{t.kind} on h200"
    assert rows["M", "process_name", kineto.PLAN][0]["args"]["name"] == f"{plan.kind} on h200"
    assert sum(row["pid"] == kineto.PLAN for row in slices(trace)) == int((~np.isnan(plan.start)).sum())
    assert all(("stream" in row["args"]) == (row["pid"] == kineto.ACTUAL) for row in slices(trace))
    lanes = by([row for row in trace["traceEvents"] if row.get("name") == "thread_name"], "tid")
    assert all(len(names) == 1 for names in lanes.values())


@given(timelines())
def test_slices_of_one_lane_never_overlap(folder: Path, t: Timeline) -> None:
    _, trace = saved(t, folder)
    lanes = by(slices(trace), "tid")
    assert sum(map(len, lanes.values())) == int((~np.isnan(t.start)).sum())
    for lane in lanes.values():
        assert len({row["args"]["lane"] for row in lane}) == 1
        lane.sort(key=lambda row: row["ts"])
        for earlier, later in itertools.pairwise(lane):
            assert earlier["ph"] == "X"  # nothing follows what never ended
            assert whole(earlier["ts"]) + max(1, whole(earlier["dur"])) <= whole(later["ts"])


@given(timelines())
def test_every_wait_is_an_arrow_from_slice_to_slice(folder: Path, t: Timeline) -> None:
    _, trace = saved(t, folder)
    found_slices = {row["args"]["index"]: row for row in slices(trace)}
    leaving, arriving = (by([r for r in trace["traceEvents"] if r["ph"] == ph], "id") for ph in "sf")
    wanted = [
        (waited, index, reason)
        for index, activity in enumerate(t.activities)
        for waited, reason in activity.waits
        if nanoseconds(t)[waited] is not None and not math.isnan(t.start[index])
    ]
    assert leaving.keys() == arriving.keys()
    found = []
    for number, (tail,) in leaving.items():
        (head,) = arriving[number]
        assert head["bp"] == "e"
        (waited,) = (k for k, s in found_slices.items() if s["tid"] == tail["tid"] and encloses(s, tail["ts"]))
        (index,) = (k for k, s in found_slices.items() if s["tid"] == head["tid"] and s["ts"] == head["ts"])
        found.append((waited, index, tail["name"]))
    assert sorted(found) == sorted(wanted)


def encloses(row: Trace, ts: float) -> bool:
    length = whole(row["dur"]) if row["ph"] == "X" else math.inf
    return whole(row["ts"]) <= whole(ts) < whole(row["ts"]) + max(1, length)


@given(timelines())
def test_counters_move_all_bytes_and_return_to_zero(folder: Path, t: Timeline) -> None:
    _, trace = saved(t, folder)
    counters = by([row for row in trace["traceEvents"] if row["ph"] == "C"], "name")
    area = {}
    for (name,), rows in counters.items():
        (unit,) = rows[0]["args"]
        values = [row["args"][unit] for row in rows]
        times = [whole(row["ts"]) for row in rows]
        assert times == sorted(set(times))
        assert values[-1] == 0
        assert min(values) >= 0
        area[name] = sum(v * (b - a) for v, a, b in zip(values, times, times[1:], strict=False))
    spans = zip(t.activities, nanoseconds(t), strict=True)
    ran = [activity for activity, span in spans if span is not None and span[0] < span[1]]
    length = round(t.makespan * 1e9)
    for key, (name, _, size) in COUNTERS.items():
        if key != "sms":
            moved = sum(getattr(activity, "flops" if key == "flops" else f"{key}_bytes") for activity in ran)
            assert area.get(name, 0) * size / 1e9 == pytest.approx(moved, abs=1e-3 * size / 1e9 * (length + 1))
    assert area.get("SMs", 0) == pytest.approx(t.utilization()["sms"] * 16 * length)


def test_head_says_what_it_is(tmp_path: Path) -> None:
    _, trace = saved(example(failed=True), tmp_path)
    assert trace["distributedInfo"] == {"rank": 0}
    about = trace["nanort"]
    assert (about["schema"], about["version"], about["failure"]) == ("nanort.timeline", 3, "broke")
    assert (about["events_expected"], about["events_recorded"], len(about["never_ran"])) == (3, 2, 1)


def test_device_rows_are_what_kineto_writes(tmp_path: Path) -> None:
    _, trace = saved(example(), tmp_path)
    rows = slices(trace)
    lead = trace["nanort"]["lead_ns"] / 1e3
    assert [row["cat"] for row in rows] == ["kernel", "kernel", "gpu_memcpy"]
    assert [row["name"] for row in rows] == ["layer0.q", "layer0.a", "Memcpy HtoD (prefetch)"]
    assert [(row["ts"] - lead, row["dur"]) for row in rows] == [(0.0, 1000.0), (1000.0, 2000.0), (3000.0, 1000.0)]
    assert [row["args"]["stream"] for row in rows] == [1, 2, 3]
    assert [row["args"]["correlation"] for row in rows] == [1, 2, 3]
    assert {(row["args"]["device"], row["args"]["context"]) for row in rows} == {(0, 1)}
    assert (rows[2]["args"]["bytes"], rows[2]["args"]["memory bandwidth (GB/s)"]) == (500_000, 0.5)
    lanes = [row["args"]["name"] for row in trace["traceEvents"] if row["name"] == "thread_name"]
    assert lanes == ["g0  88 SMs", "g1  40 SMs", "h2d", "launches", "waits"]


def test_host_calls_are_what_kineto_writes(tmp_path: Path) -> None:
    """Waits, launch and event of each activity in turn; each wait has a row on the device, when its event had come."""
    _, trace = saved(example(), tmp_path)
    host = [row for row in trace["traceEvents"] if row.get("cat") == "cuda_runtime"]
    assert [(row["name"], row["args"]["correlation"]) for row in host] == [
        ("cudaLaunchKernel", 1),
        ("cudaEventRecord", 4),
        ("cudaStreamWaitEvent", 7),
        ("cudaLaunchKernel", 2),
        ("cudaEventRecord", 5),
        ("cudaStreamWaitEvent", 8),
        ("cudaStreamWaitEvent", 9),
        ("cudaMemcpyAsync", 3),
    ]
    assert [row["ts"] for row in host] == list(range(8))
    assert trace["nanort"]["lead_ns"] == 8000
    waits = [row for row in trace["traceEvents"] if row.get("cat") == "cuda_sync"]
    keys = ("stream", "correlation", "wait_on_stream", "wait_on_cuda_event_record_corr_id")
    assert [tuple(row["args"][key] for key in keys) for row in waits] == [(2, 7, 1, 4), (3, 8, 1, 4), (3, 9, 2, 5)]
    assert [whole(row["ts"]) for row in waits] == [1_006_000, 1_006_000, 3_006_000]
    (step,) = (row for row in trace["traceEvents"] if row.get("cat") == "user_annotation")
    assert (step["name"], step["ts"], step["dur"]) == ("ProfilerStep#0", 0, 4008.0)


@given(timelines())
def test_calls_tell_every_launch_and_wait(folder: Path, t: Timeline) -> None:
    _, trace = saved(t, folder)
    rows = by(trace["traceEvents"], "cat")
    launches, events, waits = ([r for r in rows["cuda_runtime",] if r["name"] in names] for names in CALLS)
    device = {row["args"]["correlation"]: row for row in slices(trace) if row["pid"] == kineto.ACTUAL}
    assert {row["args"]["correlation"] for row in launches} == device.keys()
    released = by(rows["cuda_sync",], "name")["Stream Wait Event",]
    assert [row["args"]["correlation"] for row in released] == [row["args"]["correlation"] for row in waits]
    assert {row["args"]["wait_on_cuda_event_record_corr_id"] for row in released} == {
        row["args"]["correlation"] for row in events
    }
    ends = [row["ts"] + row["dur"] for row in rows["cuda_runtime",]]
    assert max(ends, default=0) * 1e3 == trace["nanort"]["lead_ns"]
    assert len({row["args"]["correlation"] for row in rows["cuda_runtime",]}) == len(ends)


CALLS = (("cudaLaunchKernel", "cudaMemcpyAsync"), ("cudaEventRecord",), ("cudaStreamWaitEvent",))


@pytest.mark.parametrize("version", [1, 2])
def test_older_files_are_read(tmp_path: Path, version: int) -> None:
    """They began with the run, and named copies as it does."""
    path, trace = saved(example(), tmp_path)
    lead = trace["nanort"].pop("lead_ns") / 1e3
    trace["nanort"]["version"] = version
    trace["traceEvents"] = [row for row in trace["traceEvents"] if row["pid"] != kineto.HOST]
    for row in trace["traceEvents"]:
        row["name"] = row.get("args", {}).pop("node", row["name"])
        row["ts"] = row.get("ts", lead) - lead
    path.write_text(json.dumps(trace))
    again = Timeline.load(path)
    assert again.activities == example().activities
    np.testing.assert_array_equal(again.start, example().start)


def test_labels_that_json_cannot_hold_are_said_in_words(tmp_path: Path) -> None:
    t = Timeline([Activity("a", "x", "g0", scope=(("k", NAN), ("p", Path("q"))))], [0], [1], **CAPACITY)
    path, _ = saved(t, tmp_path)
    assert Timeline.load(path).activities[0].scope == (("k", "nan"), ("p", "q"))


@pytest.mark.parametrize("name", [*HOSTILE, LONG], ids=ascii)
def test_no_name_leaves_its_string(tmp_path: Path, name: str) -> None:
    t = Timeline([Activity(name, name, name, where=name)], [0], [1], kind="measured", device=name, failure=name)
    path, trace = saved(t, tmp_path)
    content = path.read_text(encoding="utf-8")
    assert content.replace("\n", "").isprintable()
    strings = re.findall(r'"(?:[^"\\]|\\.)*"', content)
    assert not any(string.endswith('\\"') for string in strings if len(string) < 1000)  # Perfetto would read on
    assert [row["name"] for row in slices(trace)] == [name]
    again = Timeline.load(path)
    assert (again.activities, again.device, again.failure) == (t.activities, name, name)


@pytest.mark.parametrize(
    "broken",
    [
        Timeline([Activity("a", "x", "g0", flops=NAN)], [0], [1], **CAPACITY),
        Timeline([Activity("a", "x", "g0", flops=math.inf)], [0], [1], **CAPACITY),
        Timeline([Activity("a", "x", "g0")], [0], [1e7], **CAPACITY),
        Timeline([], [], [], kind="measured", device="x", hbm_bandwidth=NAN),
    ],
)
def test_what_cannot_be_saved_leaves_the_old_file_and_no_other(tmp_path: Path, broken: Timeline) -> None:
    path, _ = saved(example(), tmp_path)
    before = path.read_bytes()
    with pytest.raises(FileError, match="cannot be saved"):
        broken.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_plan_too_long_to_save_is_refused(tmp_path: Path) -> None:
    plan = Timeline([Activity("a", "x", "g0")], [0], [1e7], **CAPACITY)
    with pytest.raises(FileError, match="26 days"):
        example().save(tmp_path / "trace.json", plan)


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.6, 0.99])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, part: float) -> None:
    path, _ = saved(example(), tmp_path)
    whole_file = path.read_bytes()
    path.write_bytes(whole_file[: int(part * len(whole_file))])
    with pytest.raises(TruncatedFileError, match="cut short"):
        Timeline.load(path)


def row(trace: Trace, index: int) -> Trace:
    """The slice of that activity."""
    return next(row for row in slices(trace) if row["args"]["index"] == index)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda t: t["nanort"].update(version=4), NewerVersionError, "version 4, this nanort reads up to 3: update"),
        (lambda t: t["nanort"].update(version="1"), FileError, "version is '1', not a int"),
        (lambda t: t["nanort"].update(schema="other"), TruncatedFileError, "no timeline"),
        (lambda t: t.pop("nanort"), TruncatedFileError, "load what Timeline.save wrote"),
        (lambda t: t.pop("traceEvents"), FileError, "traceEvents is missing, not a list"),
        (lambda t: t["traceEvents"].remove(row(t, 1)), TruncatedFileError, "there are 2 of 3 events"),
        (lambda t: t["nanort"].update(events_expected=10**12), TruncatedFileError, "of 1000000000000"),
        (lambda t: t["nanort"].update(kind="guessed"), FileError, "not one of planned, simulated, measured"),
        (lambda t: t["nanort"].update(never_ran=[7], events_expected=4), FileError, "never_ran 0 is 7, not an object"),
        (lambda t: row(t, 1).pop("ts"), FileError, "ts is missing, not a float of zero or more"),
        (lambda t: row(t, 1).update(dur=-1), FileError, "dur is -1, not"),
        (lambda t: row(t, 1).update(ts=7.999), FileError, "ts is 7.999, not 8.0 or later, since the host's calls"),
        (lambda t: row(t, 1).update(ts=NAN), FileError, "holds NaN, which is no number"),
        (lambda t: row(t, 1).update(ts=math.inf), FileError, "holds Infinity"),
        (lambda t: row(t, 1).update(ts=10**400), FileError, "not a float"),
        (lambda t: row(t, 1).update(ts=1e300), FileError, "at most 26 days"),
        (lambda t: row(t, 1).update(name=None), FileError, "name is None, not a str"),
        (lambda t: row(t, 1)["args"].update(index=0), FileError, "event 0 is there twice"),
        (lambda t: row(t, 1)["args"].update(index=3), FileError, "index is 3, not less than the 3 events"),
        (lambda t: row(t, 1)["args"].update(sms=True), FileError, "sms is True, not a int"),
        (lambda t: row(t, 1)["args"].update(waits=[[3, "data"]]), FileError, "waits is"),
        (lambda t: row(t, 1)["args"].update(waits=[[0]]), FileError, "index below 3, reason"),
    ],
)
def test_a_file_that_says_what_cannot_be_is_refused(
    tmp_path: Path, change: Callable[[Trace], object], error: type[FileError], said: str
) -> None:
    path, trace = saved(example(), tmp_path)
    change(trace)
    path.write_text(json.dumps(trace))
    with pytest.raises(error, match=said) as caught:
        Timeline.load(path)
    assert type(caught.value) is error
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"null", b"\xff\xfe\x00", b"[" * 100_000, b'{"nanort": 3}', b"9" * 5000]
)
def test_what_is_no_timeline_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "trace.json"
    path.write_bytes(content)
    with pytest.raises(TruncatedFileError):
        Timeline.load(path)


JUNK: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, -1, 0, 1, 2**70, 10**400, 1e300, "x", [], [[]], {}, {"index": 0}]
)


@given(st.data())
def test_no_change_to_a_file_breaks_the_reader(folder: Path, data: st.DataObject) -> None:
    """Whatever stands in a field, the answer is a timeline or a FileError."""
    path, trace = saved(example(failed=data.draw(st.booleans())), folder)
    place: Any = trace
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not (isinstance(place[key], (dict, list)) and place[key] and data.draw(st.booleans())):
            break
        place = place[key]
    place[key] = data.draw(JUNK)
    path.write_text(json.dumps(trace))
    with contextlib.suppress(FileError):
        assert str(Timeline.load(path))
