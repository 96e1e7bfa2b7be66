"""What ran at once, what could have, and how near the device came to its roofs."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from itertools import combinations, pairwise
from typing import Any

import networkx
import pytest
from hypothesis import given

from nanort.timeline import missed
from nanort.timeline.activities import Activity
from nanort.timeline.events import Timeline
from nanort.timeline.flat import NEVER
from random_dags import placed, synthetic
from timelines import CAPACITY, GROUPS, played, timelines

FULL = CAPACITY | {"flops": 8e9}


def run(*rows: tuple[str, str, float, float], **fields: list[Any]) -> Timeline:
    """A timeline of (operator, stream, start, end) in nanoseconds; ``fields`` are given one a row."""
    made = [
        Activity(f"{op}{k}", op, stream, GROUPS[stream], 4 if GROUPS[stream] else 0, needs=())
        for k, (op, stream, _, _) in enumerate(rows)
    ]
    for name, values in fields.items():
        made = [dataclasses.replace(activity, **{name: value}) for activity, value in zip(made, values, strict=True)]
    return Timeline(made, [row[2] / 1e9 for row in rows], [row[3] / 1e9 for row in rows], **FULL)


@given(timelines())
def test_exclusive_and_hidden_time_is_what_brute_force_counts(t: Timeline) -> None:
    alone, beside = Counter[str](), Counter[str]()
    ran = [
        (a, s, e)
        for a, s, e in zip(t.activities, t.flat.start.tolist(), t.flat.end.tolist(), strict=True)
        if e != NEVER
    ]
    for tick in range(t.flat.makespan_ns):
        now = [activity for activity, start, end in ran if start <= tick < end]
        for activity in now:
            many = len({other.stream for other in now}) > 1
            (beside if many else alone)[activity.operator] += 1
    found = t.overlap().operators
    assert {row.operator: (row.exclusive_ns, row.hidden_ns) for row in found} == {
        name: (alone[name], beside[name]) for name in t.flat.operators
    }
    assert t.overlap().table()


@pytest.mark.parametrize("seed", range(60))
def test_what_could_overlap_is_what_the_graph_says(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    t = played(placed(synthetic(seed)[0], random.Random(seed)).timeline(), random.Random(seed))
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(len(t)))
    graph.add_edges_from((need, index) for index, activity in enumerate(t.activities) for need in activity.needs or ())
    paths = networkx.transitive_closure(graph)
    start, end, took = t.flat.start.tolist(), t.flat.end.tolist(), t.flat.lasted_ns.tolist()
    expected: dict[str, dict[str, int]] = {name: {} for name in t.flat.operators}
    for one, other in combinations(t.flat.operators, 2):
        mine, theirs = ([k for k, a in enumerate(t.activities) if a.operator == name] for name in (one, other))
        apart = [(a, b) for a in mine for b in theirs if not (paths.has_edge(a, b) or paths.has_edge(b, a))]
        possible = min(sum(took[k] for k in {pair[side] for pair in apart}) for side in (0, 1))
        met = any(min(end[a], end[b]) > max(start[a], start[b]) for a in mine for b in theirs)
        if possible and not met:
            expected[one][other] = expected[other][one] = possible
    for limit in (missed.EXACT, 0):
        monkeypatch.setattr(missed, "EXACT", limit)  # few as they are, the sample of each operator has them all
        found = {row.operator: {could.other: could.possible_ns for could in row.could} for row in t.overlap().operators}
        assert found == expected


@pytest.mark.parametrize(
    ("rows", "fields", "why"),
    [
        ((("a", "g0", 0, 5), ("b", "g0", 5, 9)), {}, "same SMs"),
        ((("a", "g0", 0, 5), ("b", "g1", 5, 9)), {"sms": [12, 12]}, "same SMs"),
        ((("a", "h2d", 0, 5), ("b", "h2d", 5, 9)), {}, "same copy engine"),
        ((("a", "g0", 0, 5), ("b", "g1", 5, 9)), {"bound": ["memory", "memory"]}, "both need memory"),
        (
            (("a", "g0", 0, 5), ("b", "g1", 5, 9)),
            {"waits": [(), ((0, "resource"),)]},
            "ordered by a wait (resource)",
        ),
        (
            (("a", "g0", 0, 5), ("c", "h2d", 0, 5), ("b", "g1", 5, 9)),
            {"needs": [(), (), (1,)]},
            "never ready at the same time",
        ),
        ((("a", "g0", 0, 5), ("c", "g1", 0, 5), ("b", "g1", 5, 9)), {}, "behind others on its stream"),
    ],
)
def test_why_two_operators_never_overlapped(
    rows: tuple[tuple[str, str, float, float], ...], fields: dict[str, list[Any]], why: str
) -> None:
    t = run(*rows, **fields)
    (row,) = [row for row in t.overlap().operators if row.operator == "a"]
    (could,) = [could for could in row.could if could.other == "b"]
    assert (could.possible_ns, could.why) == (4, why)
    assert ["a", "and", "b", "4", "ns", *why.split()] in [line.split() for line in t.overlap().table().splitlines()]


def test_without_needs_nobody_knows_what_could_overlap() -> None:
    t = run(("a", "g0", 0, 5), ("b", "g0", 5, 9), needs=[None, None])
    assert [row.could for row in t.overlap().operators] == [(), ()]
    assert "not known" in t.overlap().table()


def test_operators_lie_under_the_roof() -> None:
    t = run(
        ("linear", "g0", 0, 10), ("linear", "g1", 0, 10), ("norm", "g0", 10, 20), ("save", "d2h", 0, 5),
        flops=[40.0, 40.0, 10.0, 0.0], hbm_bytes=[0.0, 10.0, 20.0, 0.0],
    )  # fmt: skip
    roof = t.roofline()
    linear, norm = roof.points
    assert (linear.operator, linear.count, linear.seconds, linear.intensity) == ("linear", 2, 2e-8, 8.0)
    assert (linear.achieved, norm.achieved, norm.intensity) == pytest.approx((4e9, 1e9, 0.5))
    assert roof.ridge == 2.0
    assert [roof.attainable(intensity) for intensity in (0.5, 8.0, math.inf)] == [2e9, 8e9, 8e9]
    assert [roof.share(point) for point in roof.points] == pytest.approx([0.5, 0.5])
    assert str(roof).splitlines()[1].split() == ["linear", "2", "20", "ns", "8", "0.004", "50", "%"]


def test_binding_roof_is_the_one_that_is_used_most() -> None:
    t = run(
        ("linear", "g0", 0, 10), ("load", "h2d", 5, 20), ("nothing", "g0", 22, 25), ("late", "g0", 30, 31),
        flops=[40.0, 0.0, 0.0, 0.0], h2d_bytes=[0.0, 12.0, 0.0, 0.0],
    )  # fmt: skip
    assert list(t.binding()) == [
        (0, 5, "compute"), (5, 20, "PCIe down"), (20, 22, "idle"), (22, 25, "launch"), (25, 30, "idle"),
        (30, 31, "launch"),
    ]  # fmt: skip
    assert t.binding().nanoseconds == {"compute": 5, "PCIe down": 15, "launch": 4, "idle": 7}
    assert str(t.binding()) == "PCIe down 48 %   idle 23 %   compute 16 %   launch 13 %"


@given(timelines())
def test_binding_and_curves_cover_the_makespan(t: Timeline) -> None:
    stretches = list(t.binding())
    assert sum(t.binding().nanoseconds.values()) == t.flat.makespan_ns
    assert all(one[1] == other[0] and one[2] != other[2] for one, other in pairwise(stretches))
    idle = sum(end - start for start, end, roof in stretches if roof == "idle")
    assert idle == round(t.overlap().streams[0] * 1e9)
    for name, curve in t.curves().items():
        spans = (curve.times_ns[1:] - curve.times_ns[:-1]).tolist()
        amount = sum(value * ns / 1e9 for value, ns in zip(curve.values.tolist(), spans, strict=False))
        if name == "sms":
            assert amount == pytest.approx(t.utilization()["sms"] * 16 * t.makespan)
        else:
            field = "flops" if name == "flops" else f"{name}_bytes"
            ran = zip(t.activities, t.flat.lasted_ns.tolist(), strict=True)
            assert amount == pytest.approx(sum(getattr(activity, field) for activity, ns in ran if ns))
