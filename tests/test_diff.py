"""Two timelines side by side: what differs, and what was planned otherwise."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given

from nanort.timeline.activities import Activity
from nanort.timeline.diff import Change, aligned
from nanort.timeline.events import Timeline
from timelines import CAPACITY, GROUPS, timelines


def run(*rows: tuple[str, str, str, float, float]) -> Timeline:
    """A timeline of (name, operator, stream, start, end) in nanoseconds."""
    made = [Activity(name, op, stream, GROUPS[stream], 4 if GROUPS[stream] else 0) for name, op, stream, _, _ in rows]
    return Timeline(made, [row[3] / 1e9 for row in rows], [row[4] / 1e9 for row in rows], **CAPACITY)


HERE = run(
    ("q", "linear", "g0", 0, 10), ("k", "linear", "g0", 10, 20), ("n", "norm", "g1", 0, 5), ("old", "x", "d2h", 0, 1)
)
THERE = run(
    ("q", "linear", "g0", 0, 14), ("k", "linear", "g1", 5, 15), ("n", "norm", "g1", 0, 5), ("new", "x", "d2h", 0, 1)
)


@given(timelines())
def test_nothing_differs_from_itself(t: Timeline) -> None:
    assert not t.diff(t)
    assert str(t.diff(t)) == "no difference"
    again = Timeline(t.activities, t.start, t.end, **CAPACITY)
    assert not t.diff(again)


@given(timelines(), timelines())
def test_paths_make_up_the_difference_of_the_makespans(one: Timeline, other: Timeline) -> None:
    found = one.diff(other)
    assert sum(change.by_ns for change in found.path) == found.makespan.by_ns
    mine, theirs = aligned(one, other)
    assert [one.activities[k].name for k in mine] == [other.activities[k].name for k in theirs]
    assert len(set(mine.tolist())) == len(set(theirs.tolist())) == len(mine)
    assert len(found.missing) == len(one) - len(mine)
    assert len(found.extra) == len(other) - len(theirs)
    assert all(letter.isprintable() or letter == "\n" for letter in str(found))
    assert json.loads(json.dumps(found.data))["makespan"]["here_ns"] == one.flat.makespan_ns


def test_what_differs_is_told_by_node_operator_and_stream() -> None:
    found = HERE.diff(THERE)
    assert found
    assert found.makespan == Change("makespan", 20, 15)
    assert found.path == (Change("linear", 20, 10), Change("norm", 0, 5))
    assert found.operators == (Change("linear", 20, 24),)
    assert found.lanes == (Change("g1", 5, 15), Change("g0", 20, 14))
    assert found.activities == (Change("q", 10, 14),)
    assert (found.shifted, found.moved, found.missing, found.extra) == (2, ("k",), ("old",), ("new",))
    lines = str(found).splitlines()
    assert lines[1].split() == ["makespan", "20", "ns", "15", "ns", "-5", "ns"]
    assert lines[-3:] == ["on another stream, or with other SMs: k", "only here: old", "only there: new"]


def test_another_operator_at_the_same_time_is_a_difference() -> None:
    found = run(("a", "linear", "g0", 0, 5)).diff(run(("a", "fused", "g0", 0, 5)))
    assert found
    assert set(found.operators) == {Change("linear", 5, 0), Change("fused", 0, 5)}
    assert "fused" in str(found)


def test_activities_of_one_name_are_aligned_in_their_order() -> None:
    here = run(("a", "x", "g0", 5, 6), ("a", "x", "g0", 0, 1))
    there = run(("a", "x", "g0", 0, 1), ("a", "x", "g0", 5, 9), ("a", "x", "g0", 9, 10))
    assert [pair.tolist() for pair in aligned(here, there)] == [[0, 1], [1, 0]]
    assert here.diff(there).extra == ("a",)
    assert here.diff(there).activities == (Change("a", 1, 4),)


def test_a_run_that_only_stopped_differs() -> None:
    stopped = Timeline(HERE.activities, HERE.start, np.where(HERE.end > 15e-9, math.nan, HERE.end), **CAPACITY)
    assert HERE.diff(stopped).shifted == 1


def test_comparison_adds_up_by_operator() -> None:
    found = THERE.compare(HERE)
    assert [(row.name, row.planned_seconds, row.actual_seconds) for row in found.operators] == [
        ("linear", pytest.approx(20e-9), pytest.approx(24e-9)), ("norm", 5e-9, 5e-9),
    ]  # fmt: skip
    lines = str(found).splitlines()
    place = lines.index("") + 1
    assert lines[place].split() == ["by", "operator", "planned", "actual", "ratio"]
    assert lines[place + 1].split() == ["linear", "20", "ns", "24", "ns", "1.20x"]
