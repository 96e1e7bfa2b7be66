from __future__ import annotations

import itertools
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given
from perfetto.protos.perfetto.trace import perfetto_trace_pb2

from hostile import HOSTILE, LONG
from nanort.errors import BackendError
from nanort.timeline import perfetto
from nanort.timeline.activities import Activity
from nanort.timeline.events import Timeline
from nanort.timeline.flat import NEVER
from nanort.timeline.tracks import counters, tracks
from timelines import CAPACITY, timelines

EVENT = perfetto_trace_pb2.TrackEvent


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all the cases that hypothesis makes."""
    return tmp_path_factory.mktemp("perfetto")


def written(t: Timeline, folder: Path, plan: Timeline | None = None) -> tuple[dict[int, Any], list[tuple[int, Any]]]:
    """The tracks of the file by number, and its events with their times."""
    path = folder / "trace.pftrace"
    t.to_perfetto(path, plan)
    trace = perfetto_trace_pb2.Trace()
    trace.ParseFromString(path.read_bytes())
    found = [packet.track_descriptor for packet in trace.packet if packet.HasField("track_descriptor")]
    events = [(packet.timestamp, packet.track_event) for packet in trace.packet if packet.HasField("track_event")]
    assert len(found) + len(events) == len(trace.packet)
    assert {packet.trusted_packet_sequence_id for packet in trace.packet} <= {1}
    return {track.uuid: track for track in found}, events


@given(timelines(), timelines())
def test_slices_stand_on_their_lane_from_start_to_end(folder: Path, t: Timeline, plan: Timeline) -> None:
    """Of each lane, no slice begins before the last has ended; what never ended has no end."""
    lanes, events = written(t, folder, plan)
    found = defaultdict(list)
    for time, event in events:
        if event.type != EVENT.TYPE_COUNTER:
            found[event.track_uuid].append((time, event))
    spans = []
    for number, moments in found.items():
        assert [time for time, _ in moments] == sorted(time for time, _ in moments)
        kinds = itertools.cycle((EVENT.TYPE_SLICE_BEGIN, EVENT.TYPE_SLICE_END))
        assert all(event.type == kind for (_, event), kind in zip(moments, kinds, strict=False))
        ends = [time for time, _ in moments[1::2]] + [-1] * (len(moments) % 2)
        spans += [(lanes[number].name, *span) for span in zip((time for time, _ in moments[::2]), ends, strict=True)]
    assert sorted(spans) == sorted([*ran(t), *ran(plan)])


def ran(t: Timeline) -> Iterator[tuple[str, int, int]]:
    """Lane, start and end of every activity that started, in nanoseconds."""
    drawn = tracks(t)
    for index, lane in drawn.lane.items():
        end = int(t.flat.end[index]) if t.flat.end[index] != NEVER else -1
        yield drawn.lanes[lane].title, int(t.flat.start[index]), end


@given(timelines())
def test_every_wait_is_a_flow(folder: Path, t: Timeline) -> None:
    _, events = written(t, folder)
    leaving, arriving = {}, {}
    for _, event in events:
        if event.type == EVENT.TYPE_SLICE_BEGIN:
            index = next(about.int_value for about in event.debug_annotations if about.name == "index")
            leaving |= dict.fromkeys(event.flow_ids, index)
            arriving |= dict.fromkeys(event.terminating_flow_ids, index)
    assert leaving.keys() == arriving.keys()
    ours = [(arrow.waited, arrow.index) for arrow in tracks(t).arrows]
    assert sorted((leaving[flow], arriving[flow]) for flow in leaving) == sorted(ours)


@given(timelines())
def test_counters_are_the_curves(folder: Path, t: Timeline) -> None:
    lanes, events = written(t, folder)
    found = defaultdict(list)
    for time, event in events:
        if event.type == EVENT.TYPE_COUNTER:
            about = lanes[event.track_uuid]
            found[about.name, about.counter.unit_name].append((time, event.double_counter_value))
    ours = {(name, unit): list(zip(times, values, strict=True)) for name, unit, times, values in counters(t) if times}
    assert found == ours


def test_tracks_are_nested(tmp_path: Path) -> None:
    """A device holds groups and copy engines, a group its streams, and a stream the lanes of what overlaps on it."""
    made = [
        Activity("a", "linear", "g0", "g0", 4),
        Activity("b", "linear", "g0.1", "g0", 4),
        Activity("c", "linear", "g0.1", "g0", 4),
        Activity("d", "to_device", "h2d"),
    ]
    t = Timeline(made, [0, 0, 0, 0], [1, 1, 1, 1], **CAPACITY)
    lanes, _ = written(t, tmp_path, t)
    nested = {(track.name, lanes[track.parent_uuid].name if track.parent_uuid else "") for track in lanes.values()}
    for root in ("measured on h200", "plan: measured on h200"):
        assert {(root, ""), ("g0", root), ("h2d", root), ("SMs", root)} <= nested
    assert {("g0  4 SMs", "g0"), ("g0.1  4 SMs", "g0"), ("g0.1  4 SMs  +1", "g0.1  4 SMs")} <= nested


def test_what_is_known_of_an_activity_is_annotated(tmp_path: Path) -> None:
    scope = (("layer", 3), ("half", 0.5), ("on", True))
    a = Activity("a", "linear", "g0", "g0", 4, 1e9, piece=2, scope=scope, where="m.py:1")
    _, events = written(Timeline([a], [0], [1], **CAPACITY), tmp_path)
    (begin,) = (event for _, event in events if event.type == EVENT.TYPE_SLICE_BEGIN)
    known = {about.name: getattr(about, about.WhichOneof("value")) for about in begin.debug_annotations}
    assert known == {
        "index": 0, "group": "g0", "sms": 4, "flops": 1e9, "piece": 2, "where": "m.py:1", "scope.layer": 3,
        "scope.half": 0.5, "scope.on": "True",
    }  # fmt: skip
    assert [*begin.categories] == ["linear"]


@pytest.mark.parametrize("name", [*HOSTILE, LONG], ids=ascii)
def test_every_name_is_text(tmp_path: Path, name: str) -> None:
    """What protobuf cannot hold, and what ends a text for SQL, is said in words; nothing else is written anywhere."""
    made = [Activity(name, name, name, name, 1, where=name, scope=((name, name),))]
    t = Timeline(made, [0], [1], **CAPACITY | {"device": name})
    _, events = written(t, tmp_path)
    assert events[0][1].name == name.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    assert [path.name for path in tmp_path.iterdir()] == ["trace.pftrace"]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    t = Timeline([Activity("a", "x", "g0", scope=(("k", 1e400),), piece=2**70)], [0], [1], **CAPACITY)
    written(t, tmp_path)
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()

    def stop(_: Timeline) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(perfetto, "counters", stop)
    with pytest.raises(KeyboardInterrupt):
        t.to_perfetto(path)
    assert (path.read_bytes(), [*tmp_path.iterdir()]) == (before, [path])


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "perfetto.protos.perfetto.trace", None)
    with pytest.raises(BackendError, match=r"pip install 'nanort\[perfetto\]'"):
        Timeline([], [], [], **CAPACITY).to_perfetto(tmp_path / "trace.pftrace")
    assert [*tmp_path.iterdir()] == []
