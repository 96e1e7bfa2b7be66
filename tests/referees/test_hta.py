"""HolisticTraceAnalysis finds in our traces what was planted, and what our own analyses find."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nanort.timeline.events import Timeline
from referees.planted import COUNT

NEAR = 1000  # nanoseconds


@pytest.fixture(scope="module")
def judged(environment: Path, graphs: list[Timeline], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What it says of each graph's trace."""
    folder = tmp_path_factory.mktemp("hta")
    paths = [str(folder / f"rank{seed}.json") for seed in range(COUNT)]
    for timeline, path in zip(graphs, paths, strict=True):
        timeline.save(path)
    judge = Path(__file__).with_name("hta_judge.py")
    command = [environment / "bin" / "python", judge, *paths]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=folder)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("seed", range(COUNT))
def test_critical_path_is_ours(judged: list[dict[str, Any]], graphs: list[Timeline], seed: int) -> None:
    found, path = judged[seed], graphs[seed].critical_path()
    assert found["found"]
    assert found["path"] == sorted(segment.index + 1 for segment in path.segments if segment.index >= 0)
    assert abs(found["path_length"] - path.makespan_ns) <= NEAR
    assert path.makespan_ns == round(graphs[seed].makespan * 1e9)


@pytest.mark.parametrize("seed", range(COUNT))
def test_idle_time_of_each_stream_is_ours(judged: list[dict[str, Any]], graphs: list[Timeline], seed: int) -> None:
    """It looks at the time between the first and the last activity of a stream."""
    timeline, idle = graphs[seed], graphs[seed].idle()
    assert judged[seed]["idle_of_stream"].keys() == {str(n + 1) for n in range(len(timeline.streams))}
    for number, stream in enumerate(timeline.streams, 1):
        first = min(event.start for event in timeline if event.activity.stream == stream)
        between = sum(idle.lanes[stream].values()) - idle.lanes[stream]["nothing left"] - round(first * 1e9)
        assert abs(judged[seed]["idle_of_stream"][str(number)] - between) <= NEAR
    assert "host_wait" not in judged[seed]["idle_categories"]  # all was launched ahead


@pytest.mark.parametrize("seed", range(COUNT))
def test_breakdown_is_ours(judged: list[dict[str, Any]], graphs: list[Timeline], seed: int) -> None:
    found, timeline, overlap = judged[seed], graphs[seed], graphs[seed].overlap()
    engine = timeline.streams[-1]
    whole = round(timeline.makespan * 1e9)
    idle = round(overlap.streams[0] * 1e9)
    both = round(overlap.pairs["sms", engine] * 1e9)
    copying = whole - sum(timeline.idle().lanes[engine].values())
    computing = whole - idle - (copying - both)
    ours = {"whole": whole, "idle": idle, "compute": computing}
    assert {name: found[name] for name in ours} == pytest.approx(ours, abs=NEAR)
    if seed % 2:  # it adds these up in whole microseconds, each cut off
        kinds = {"COMPUTATION": computing - both, "MEMORY": copying - both, "COMPUTATION overlapping MEMORY": both}
        assert found["kinds"] == {kind: ns for kind, ns in kinds.items() if ns}
