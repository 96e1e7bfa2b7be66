from __future__ import annotations

import dataclasses
import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanort.errors import NanortError
from nanort.timeline import text
from nanort.timeline.activities import Activity, Event
from nanort.timeline.events import Timeline
from timelines import CAPACITY, GROUPS, HOSTILE, nanoseconds, timelines

NAN = math.nan


def timeline(*rows: tuple[str, str, float, float], **about: object) -> Timeline:
    """A timeline of (operator, stream, start, end); nodes are called by their operator and place."""
    made = [
        Activity(f"{op}{i}", op, stream, GROUPS[stream], 8 if GROUPS[stream] else 0)
        for i, (op, stream, _, _) in enumerate(rows)
    ]
    return Timeline(made, [row[2] for row in rows], [row[3] for row in rows], **CAPACITY | about)


def bars(drawn: str) -> dict[str, str]:
    """Stream -> what its row shows between the bars."""
    rows = [line.split("│") for line in drawn.splitlines() if line.count("│") == 2]
    return {head.split()[0]: bar for head, bar, _ in rows}


def ticks(t: Timeline) -> tuple[int, list[list[Activity]]]:
    """The makespan in nanoseconds, and what runs in each of them."""
    length = round(t.makespan * 1e9)
    spans = zip(t.activities, nanoseconds(t), strict=True)
    ran = [(activity, *span) for activity, span in spans if span is not None]
    return length, [[activity for activity, start, end in ran if start <= tick < end] for tick in range(length)]


def test_timeline_is_a_value() -> None:
    start, end = np.array([0.0, 1.0]), np.array([1.0, 3.0])
    t = Timeline([Activity("a", "linear", "g0"), Activity("b", "linear", "g1")], start, end, **CAPACITY)
    start[:], end[:] = 7, 8
    assert (len(t), t.makespan) == (2, 3.0)
    assert list(t) == list(t.events) == [Event(t.activities[0], 0.0, 1.0), Event(t.activities[1], 1.0, 3.0)]
    assert [event.seconds for event in t] == [1.0, 2.0]
    with pytest.raises(ValueError, match="read-only"):
        t.start[0] = 5
    assert repr(t) == "<Timeline measured on 'h200': 2 launches in 3 s>"


def test_streams_come_in_natural_order_with_copy_engines_last() -> None:
    names = ["d2h", "g10", "whole", "g2", "h2d", "g2.1"]
    t = Timeline([Activity(name, "x", name) for name in names], [0] * 6, [1] * 6, **CAPACITY)
    assert t.streams == ("g2", "g2.1", "g10", "whole", "h2d", "d2h")


@pytest.mark.parametrize(
    ("start", "end", "about", "said"),
    [
        ([0.0], [1.0], {"kind": "guessed"}, "planned, simulated, measured"),
        ([0.0, 1.0], [1.0], {}, r"1 activities needs as many starts and ends: got shapes \(2,\) and \(1,\)"),
        ([2.0], [1.0], {}, "'a' cannot run from 2.0 to 1.0 seconds"),
        ([-1.0], [1.0], {}, "finite times from 0 on"),
        ([0.0], [math.inf], {}, "to inf seconds"),
        ([math.inf], [NAN], {}, "from inf"),
        ([0.0], [1e10], {}, "146 years at most"),
        ([1e300], [NAN], {}, "146 years at most"),
        ([NAN], [1.0], {}, "from nan to 1.0"),
    ],
)
def test_what_cannot_be_is_refused(start: list[float], end: list[float], about: dict[str, str], said: str) -> None:
    with pytest.raises(NanortError, match=said):
        Timeline([Activity("a", "linear", "g0")], start, end, **CAPACITY | about)


def test_empty_timeline_has_all_answers() -> None:
    t = Timeline([], [], [], **CAPACITY)
    assert (t.makespan, t.streams, t.events, t.idle().lanes) == (0.0, (), (), {})
    assert t.utilization() == {"sms": 0.0, "hbm": 0.0, "h2d": 0.0, "d2h": 0.0}
    assert t.overlap().streams == (0.0,)
    assert "0 launches on 0 streams" in str(t)
    assert t.compare(t).rows == ()
    assert t.critical_path().segments == ()
    assert not t.diff(t)
    assert t.overlap().operators == t.roofline().points == tuple(t.binding()) == ()
    assert [str(answer) for answer in (t.critical_path(), t.idle(), t.overlap(), t.roofline(), t.binding(), t.diff(t))]


@given(timelines())
def test_utilization_is_what_brute_force_counts(t: Timeline) -> None:
    length, each = ticks(t)
    shares = t.utilization()
    group_sms: dict[str, int] = defaultdict(int)
    for activity in t.activities:
        group_sms[activity.group] = max(group_sms[activity.group], activity.sms)
    held = 0
    for together in each:
        sms = {group: min(most, sum(a.sms for a in together if a.group == group)) for group, most in group_sms.items()}
        held += min(16, sum(sms.values()))
    assert shares["sms"] == pytest.approx(held / (16 * length) if length else 0)
    ended = [a for a, span in zip(t.activities, nanoseconds(t), strict=True) if span is not None]
    for name in ("hbm", "h2d", "d2h"):
        moved = sum(getattr(a, f"{name}_bytes") for a in ended)
        most = getattr(t, f"{name}_bandwidth") * length * 1e-9
        assert shares[name] == pytest.approx(moved / most if length else 0)
    for stream in t.streams:
        busy = sum(any(a.stream == stream for a in together) for together in each)
        assert shares[f"busy {stream}"] == pytest.approx(busy / length if length else 0)
        assert t.idle().of(stream) == length - busy


def test_unknown_capacities_have_no_share() -> None:
    t = Timeline([Activity("a", "linear", "g0", "g0", 8, hbm_bytes=5.0)], [0], [1], kind="planned", device="x")
    assert t.utilization() == {"busy g0": 1.0}


@given(timelines())
def test_overlap_is_what_brute_force_counts(t: Timeline) -> None:
    length, each = ticks(t)
    counts: dict[int, int] = defaultdict(int)
    pairs: dict[tuple[str, str], int] = defaultdict(int)
    for together in each:
        streams = {a.stream for a in together}
        counts[len(streams)] += 1
        sms = len(streams - {"h2d", "d2h"})
        pairs["sms", "sms"] += sms > 1
        pairs["sms", "h2d"] += sms > 0 and "h2d" in streams
        pairs["sms", "d2h"] += sms > 0 and "d2h" in streams
        pairs["h2d", "d2h"] += {"h2d", "d2h"} <= streams
    overlap = t.overlap()
    assert overlap.streams == pytest.approx([counts[k] * 1e-9 for k in range(len(overlap.streams))], abs=1e-15)
    assert sum(overlap.streams) == pytest.approx(length * 1e-9)
    assert overlap.pairs == pytest.approx({pair: pairs[pair] * 1e-9 for pair in overlap.pairs}, abs=1e-15)


def test_comparison_puts_what_is_furthest_off_first() -> None:
    plan = timeline(("a", "g0", 0, 1), ("b", "g0", 1, 2), ("c", "g0", 2, 3), ("d", "h2d", 0, 1), kind="planned")
    renamed = dataclasses.replace(plan.activities[3], name="new")
    actual = Timeline((*plan.activities[:3], renamed), [0, 1.1, 3, 0], [1.1, 3.1, NAN, 1], **CAPACITY)
    found = actual.compare(plan)
    assert [row.name for row in found.rows] == ["b1", "a0"]
    assert [row.ratio for row in found.rows] == pytest.approx([2.0, 1.1])
    assert (found.missing, found.extra) == (("c2", "d3"), ("new",))
    assert (found.planned_makespan, found.actual_makespan) == (3.0, 3.1)
    assert found.ratio == pytest.approx(3.1 / 3)
    lines = str(found).splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["planned", "actual", "ratio"],
        ["makespan", "3", "s", "3.1", "s", "1.03x"],
        ["b1", "1", "s", "2", "s", "2.00x"],
    ]
    assert lines[-2:] == ["planned but not finished: c2, d3", "not planned: new"]


def test_comparison_with_a_foreign_plan_says_so() -> None:
    t = timeline(("a", "g0", 0, 1), foreign=True)
    assert t.compare(t).foreign
    assert "planned for another device" in str(t)
    assert "another device" in str(t.compare(t))


def test_comparison_of_no_time_at_all() -> None:
    still, moving = timeline(("a", "g0", 0, 0)), timeline(("a", "g0", 0, 1))
    assert still.compare(still).ratio == 1.0
    assert moving.compare(still).rows[0].ratio == math.inf


def test_rows_are_drawn_to_scale() -> None:
    t = timeline(("linear", "g0", 0, 4), ("norm", "g0", 4, 5), ("copy", "h2d", 5, 10))
    drawn = bars(t.text(100))
    columns = len(drawn["g0"])
    assert drawn["g0"].index("N") == pytest.approx(0.4 * columns, abs=0.5)
    assert drawn["g0"].startswith("L█")
    assert " linear0 " in drawn["g0"]
    assert drawn["g0"].count("·") == pytest.approx(0.5 * columns, abs=0.5)
    assert drawn["h2d"].count("·") == pytest.approx(0.5 * columns, abs=0.5)


def test_a_shared_column_shows_what_ran_longest_in_it() -> None:
    rows = [row for k in range(1000) for row in (("linear", "g0", k, k + 0.7), ("norm", "g0", k + 0.7, k + 1.0))]
    drawn = bars(timeline(*rows).text(100))
    assert set(drawn["g0"]) == {"L"}


def test_a_shared_column_that_is_mostly_idle_is_grey() -> None:
    for share, grey in ((0.3, "▒"), (0.1, "░")):
        rows = [("linear", "g0", k, k + share) for k in range(2000)]
        assert set(bars(timeline(*rows).text())["g0"][1:]) == {grey}


def test_what_takes_no_time_is_seen_where_nothing_else_is() -> None:
    bar = bars(timeline(("linear", "g0", 0, 4), ("norm", "g0", 8, 8), ("linear", "g0", 9, 10)).text())["g0"]
    assert bar.index("N") == pytest.approx(0.8 * len(bar), abs=1)


def test_what_never_ended_is_drawn_open() -> None:
    t = timeline(("linear", "g0", 0, 5), ("norm", "g1", 2, NAN), ("copy", "g1", NAN, NAN), failure="norm1 broke")
    bar = bars(str(t))["g1"]
    assert bar.endswith("?")
    assert "N?" in bar
    assert "1 never ran   1 never ended   norm1 broke" in str(t)
    assert t.utilization()["busy g1"] == 0.0


@given(timelines(), st.integers(0, 160))
def test_text_fits_its_width_and_holds_nothing_that_a_terminal_obeys(t: Timeline, width: int) -> None:
    drawn = t.text(width)
    assert all(letter.isprintable() or letter == "\n" for letter in drawn)
    rows = [line for line in drawn.splitlines() if line.count("│") >= 2]
    assert [len(line) for line in rows] == [max(60, width)] * len(t.streams)
    table = str(t.compare(t))
    assert all(letter.isprintable() or letter == "\n" for letter in table)


@given(st.lists(st.text(max_size=6) | st.sampled_from(HOSTILE), unique=True, max_size=80))
def test_operators_get_letters_of_their_own_while_there_are_some(operators: list[str]) -> None:
    given_letters = text.letters(operators)
    assert len(given_letters) == len(operators)
    assert set(given_letters[62:]) <= {text.OTHERS}
    assert len(set(given_letters[:62])) == len(given_letters[:62])
    assert text.letters(operators) == given_letters


def test_ten_thousand_events_take_no_more_lines_than_ten() -> None:
    rows = [("linear", "g0", k, k + 1.0) for k in range(10_000)]
    assert len(str(timeline(*rows)).splitlines()) == len(str(timeline(*rows[:10])).splitlines())


def test_html_is_escaped() -> None:
    name = "<script>&amp;"
    page = Timeline([Activity(name, name, name)], [0], [1], **CAPACITY)._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;&amp;amp;" in page


def test_cores_stand_for_sms_on_a_cpu() -> None:
    t = Timeline([Activity("a", "linear", "g0", "g0", 2)], [0], [1], kind="measured", device="cpu", sm_capacity=2)
    assert str(t).splitlines()[1].startswith("g0  2 cores │")
    assert "   cores 100 %" in str(t)


def test_streams_are_in_natural_order_whatever_their_figures() -> None:
    names = ["g2", "g10", "g010.1", "g" + "9" * 5000, "g\u0663", "h2d"]
    t = Timeline([Activity(n, "op", n) for n in reversed(names)], [0.0] * 6, [1e-6] * 6, kind="measured", device="x")
    assert t.streams == tuple(names)


def test_bytes_over_a_bandwidth_that_rounds_to_nothing_are_no_share() -> None:
    a = Activity("a", "op", "g0", hbm_bytes=1.0)
    assert Timeline([a], [0.0], [1e-6], kind="measured", device="x", hbm_bandwidth=5e-324).utilization()["hbm"] == 0
