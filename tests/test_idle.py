"""Idle time and critical paths, against a count of every nanosecond, on random timelines and 1,000 random schedules."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from nanort.errors import TimelineError
from nanort.timeline.activities import Activity
from nanort.timeline.critical import CriticalPath, Segment
from nanort.timeline.events import Timeline
from nanort.timeline.flat import NEVER
from nanort.timeline.idle import CAUSES
from random_dags import placed, synthetic
from timelines import CAPACITY, GROUPS, played, timelines


def cause(t: Timeline, stream: str, tick: int) -> str:
    """Why ``stream`` runs nothing in this nanosecond, or "" if it runs something."""
    start, end = t.flat.start.tolist(), t.flat.end.tolist()
    mine = [index for index, activity in enumerate(t.activities) if activity.stream == stream]
    mine.sort(key=lambda index: (start[index], end[index], index))
    if any(start[index] <= tick < end[index] != NEVER for index in mine):
        return ""
    if any(start[index] <= tick and end[index] == NEVER for index in mine):
        return "unfinished"
    then = next((index for index in mine if start[index] > tick), -1)
    if then < 0:
        return "nothing left"
    last = last_awaited(t, then)
    if last >= 0 and end[last] > tick:
        return "copy queue" if is_queued(t, last, tick) else "dependency"
    held = sum(sms for group, sms in in_use(t, tick).items() if group != group_of(t.activities[then]))
    asked = t.activities[then].sms
    told = any(end[index] > tick for index, reason in t.activities[then].waits if reason == "resource")
    return "resource" if told or (asked and t.sm_capacity and held + asked > t.sm_capacity) else "launch gap"


def last_awaited(t: Timeline, index: int) -> int:
    """What ends last of all that an activity waits for, but not for resources; -1 if it waits for nothing."""
    last = -1
    for awaited in t.activities[index].needs or ():
        last = awaited if last < 0 or t.flat.end[awaited] >= t.flat.end[last] else last
    told = -1
    for awaited, reason in t.activities[index].waits:
        if reason != "resource":
            told = awaited if told < 0 or t.flat.end[awaited] >= t.flat.end[told] else told
    return told if told >= 0 and (last < 0 or t.flat.end[told] > t.flat.end[last]) else last


def is_queued(t: Timeline, copy: int, tick: int) -> bool:
    """Whether ``copy`` is one that could run in this nanosecond, were its engine not busy with one before it."""
    activity, flat = t.activities[copy], t.flat
    before = int(flat.before[copy])
    if activity.stream not in ("h2d", "d2h") or activity.needs is None or before < 0:
        return False
    last = last_awaited(t, copy)
    return (last < 0 or int(flat.end[last]) <= tick) and tick < min(int(flat.start[copy]), int(flat.end[before]))


def in_use(t: Timeline, tick: int) -> Counter[str]:
    """The SMs that each group holds in this nanosecond."""
    held, most = Counter[str](), Counter[str]()
    for index, activity in enumerate(t.activities):
        group = group_of(activity)
        most[group] = max(most[group], activity.sms)
        held[group] += activity.sms if t.flat.start[index] <= tick < t.flat.end[index] != NEVER else 0
    return Counter({group: min(sms, most[group]) for group, sms in held.items()})


def group_of(activity: Activity) -> str:
    return activity.group or activity.stream


def adds_up(t: Timeline) -> None:
    """Every nanosecond of every lane is busy or has one cause, in whole numbers."""
    found, busy = t.idle(), 0
    for stream in t.streams:
        causes = Counter(cause(t, stream, tick) for tick in range(t.flat.makespan_ns))
        busy += causes.pop("", 0)
        assert found.lanes[stream] == {name: causes[name] for name in CAUSES}
    assert sum(found.causes.values()) == t.flat.makespan_ns * len(t.streams) - busy


def holds(path: CriticalPath) -> None:
    """The path has no hole, each of its activities waited for the one before it, and played again it is the same."""
    t = path.timeline
    assert path.makespan_ns == sum(segment.end_ns - segment.start_ns for segment in path.segments) == t.flat.makespan_ns
    assert [segment.start_ns for segment in path.segments] == [0, *(s.end_ns for s in path.segments)][
        : len(path.segments)
    ]
    ran = [segment for segment in path.segments if segment.index >= 0]
    for before, segment in pairwise([None, *ran]):
        assert segment is not None
        activity = t.activities[segment.index]
        assert segment.start_ns == t.flat.start[segment.index]
        if before is None:
            assert segment.reason == "start"
            continue
        assert before.end_ns <= t.flat.end[before.index]
        if segment.reason == "stream":
            assert t.activities[before.index].stream == activity.stream
        elif segment.reason == "need":
            assert before.index in (activity.needs or ())
        else:
            assert (before.index, segment.reason) in activity.waits
    assert all((s.index < 0) == (s.reason == "launch gap") for s in path.segments)
    for gap, then in pairwise(path.segments):
        if gap.index < 0:  # its lane ran nothing that came before it
            mine = (t.flat.lane == t.flat.lane[then.index]) & t.flat.ended & (t.flat.start < then.start_ns)
            assert not mine.any() or t.flat.end[mine].max() <= gap.start_ns
    assert sum(path.operators.values()) == path.makespan_ns
    for operator in t.flat.operators:
        assert path.what_if(operator, 1).makespan_ns == path.makespan_ns
        assert path.what_if(operator, 3).makespan_ns <= path.makespan_ns <= path.what_if(operator, 0.5).makespan_ns


@given(timelines())
def test_idle_time_of_any_timeline_adds_up(t: Timeline) -> None:
    adds_up(t)


@given(timelines())
def test_critical_path_of_any_timeline_is_its_makespan(t: Timeline) -> None:
    holds(t.critical_path())


@pytest.mark.parametrize("part", range(20))
def test_a_thousand_schedules(part: int) -> None:
    """Of each, the plan as it is, and a run of it at other speeds; every third run stops on its way."""
    for seed in range(50 * part, 50 * (part + 1)):
        rng = random.Random(seed)
        plan = placed(synthetic(seed)[0], rng).timeline()
        run = played(plan, rng, stopped=seed % 3 == 0)
        adds_up(run)
        for t in (plan, run):
            idle = t.idle()
            busy = sum(t.flat.lasted_ns.tolist())
            assert sum(map(idle.of, t.streams)) == t.flat.makespan_ns * len(t.streams) - busy
            holds(t.critical_path())
            assert not t.diff(t)


def run(
    *rows: tuple[str, str, float, float], needs: dict[int, tuple[int, ...]] | None = None, **about: Any
) -> Timeline:
    """A timeline of (operator, stream, start, end) in nanoseconds, with needs by place, and all SMs asked for."""
    made = [
        Activity(f"{op}{k}", op, stream, GROUPS[stream], 12 if GROUPS[stream] else 0, needs=(needs or {}).get(k, ()))
        for k, (op, stream, _, _) in enumerate(rows)
    ]
    return Timeline(made, [r[2] / 1e9 for r in rows], [r[3] / 1e9 for r in rows], **CAPACITY | about)


def causes(t: Timeline, stream: str) -> dict[str, int]:
    return {name: ns for name, ns in t.idle().lanes[stream].items() if ns}


def test_a_lane_waits_for_what_its_next_activity_needs() -> None:
    t = run(("a", "g0", 0, 10), ("b", "h2d", 13, 20), needs={1: (0,)})
    assert causes(t, "h2d") == {"dependency": 10, "launch gap": 3}
    assert causes(t, "g0") == {"nothing left": 10}


def test_a_lane_waits_for_sms_that_another_group_holds() -> None:
    t = run(("a", "g0", 0, 10), ("b", "g1", 12, 20))
    assert causes(t, "g1") == {"resource": 10, "launch gap": 2}
    assert causes(replaced(t, 1, sms=4), "g1") == {"launch gap": 12}
    assert causes(replaced(t, 1, sms=4, waits=((0, "resource"),)), "g1") == {"resource": 10, "launch gap": 2}


def test_a_lane_waits_for_a_copy_that_waits_for_its_engine() -> None:
    t = run(("a", "h2d", 0, 10), ("b", "h2d", 10, 15), ("c", "g0", 16, 20), needs={2: (1,)})
    assert causes(t, "g0") == {"copy queue": 10, "dependency": 5, "launch gap": 1}
    assert causes(replaced(t, 1, needs=None), "g0") == {"dependency": 15, "launch gap": 1}


def test_what_never_ended_leaves_its_lane_unfinished() -> None:
    t = run(("a", "g0", 0, 10), ("b", "g0", 12, math.nan), ("c", "g1", 0, 20), ("d", "g1", math.nan, math.nan))
    assert causes(replaced(t, 2, sms=4), "g0") == {"launch gap": 2, "unfinished": 8}
    assert causes(t, "g1") == {}


def replaced(t: Timeline, index: int, **fields: Any) -> Timeline:
    """The timeline with one activity changed."""
    made = list(t.activities)
    made[index] = replace(made[index], **fields)
    return Timeline(made, t.start, t.end, **CAPACITY)


def test_idle_time_prints_as_a_table() -> None:
    t = run(("a", "g0", 0, 10), ("b", "h2d", 13, 20), needs={1: (0,)})
    assert str(t.idle()).splitlines() == [
        "     idle  dependency  launch gap  nothing left",
        "all  57 %       10 ns        3 ns         10 ns",
        "g0   50 %           -           -         10 ns",
        "h2d  65 %       10 ns        3 ns             -",
    ]
    assert t.idle().data["causes"]["dependency"] == 10


def test_critical_path_goes_through_what_ended_last() -> None:
    t = run(
        ("load", "h2d", 0, 10), ("norm", "g0", 0, 6), ("linear", "g0", 12, 20), ("save", "d2h", 13, 17),
        needs={2: (0, 1)},
    )  # fmt: skip
    path = t.critical_path()
    assert path.segments == (
        Segment(0, 0, 10, "start"), Segment(-1, 10, 12, "launch gap"), Segment(2, 12, 20, "need")
    )  # fmt: skip
    assert path.operators == {"load": 10, "linear": 8, "": 2}
    assert path.what_if("load").makespan_ns == 17  # by when the save has ended
    assert path.what_if("linear", 4).makespan_ns == 17
    assert path.what_if("linear", 0.5).makespan_ns == 28
    assert [answer.operator for answer in path.what_ifs()] == ["load", "linear"]
    assert str(path.what_if("load")) == "load 2x as fast: 17 ns, -15.0 %"
    assert str(path).splitlines() == [
        "critical path: 20 ns, 3 segments",
        "            count  on the path  share  2x as fast",
        "load            1        10 ns   50 %     -15.0 %",
        "linear          1         8 ns   40 %     -15.0 %",
        "launch gap      1         2 ns   10 %           -",
    ]
    assert path.data["segments"][1] == ["", 10, 12, "launch gap"]


def test_a_lane_that_ran_two_at_once_is_free_when_the_last_of_both_has_ended() -> None:
    t = run(("long", "g0", 0, 10), ("short", "g0", 1, 2), ("then", "g0", 10, 12))
    found = [(segment.index, segment.start_ns, segment.end_ns) for segment in t.critical_path().segments]
    assert found == [(0, 0, 10), (2, 10, 12)]


@pytest.mark.parametrize("about", [{"needs": (7,)}, {"needs": (-1,)}, {"waits": ((2, "data"),)}])
def test_what_needs_or_waits_for_nothing_that_is_there_is_refused(about: dict[str, Any], tmp_path: Path) -> None:
    t = Timeline([Activity("a", "x", "g0", **about), Activity("b", "x", "g1")], [1.0, 0.0], [2.0, 1.0], **CAPACITY)
    with pytest.raises(TimelineError, match=r"'a' needs, or waits for, activity -?\d: give indices from 0 to 1"):
        t.critical_path()
    with pytest.raises(TimelineError):
        t.save(tmp_path / "t.json")
    assert not list(tmp_path.iterdir())


def test_the_reason_is_that_of_the_wait() -> None:
    t = replaced(run(("a", "g0", 0, 10), ("b", "g1", 10, 20), ("c", "g1", 20, 30)), 1, waits=((0, "resource"),))
    assert [segment.reason for segment in t.critical_path().segments] == ["start", "resource", "stream"]


@pytest.mark.parametrize(
    ("operator", "factor"), [("none", 2.0), ("a", 0.0), ("a", math.nan), ("a", math.inf), ("a", -1.0)]
)
def test_what_cannot_be_asked_is_refused(operator: str, factor: float) -> None:
    with pytest.raises(TimelineError, match="operator"):
        run(("a", "g0", 0, 10)).critical_path().what_if(operator, factor)
