from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from hostile import HOSTILE, LONG
from nanort import report
from nanort.errors import FileError
from nanort.report import data, page
from nanort.report.columns import packed, shown
from nanort.timeline.activities import Activity
from nanort.timeline.events import Timeline
from nanort.timeline.flat import NEVER
from timelines import CAPACITY, timelines
from tree import ROOT

TYPES = {"u8": "<u1", "u16": "<u2", "u32": "<u4", "i32": "<i4", "f32": "<f4", "f64": "<f8"}
LIMITS = {"serial": 30e-9, "device memory": 16e-9, "compute": 10e-9}


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text inside each kind of them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)

    def handle_endtag(self, tag: str) -> None:
        self.open.append("")

    @property
    def about(self) -> dict[str, Any]:
        """The data that the page carries."""
        found: dict[str, Any] = json.loads(self.texts["script"][0])
        return found


def run(*, plan: bool = True, end: float = 20e-9) -> Timeline:
    """Two activities, the second of which waits for the first."""
    activities = [
        Activity(
            "a", "linear", "g0", "g0", 8, flops=9.0, bound="compute", needs=(), scope=(("layer", 3), ("phase", "x"))
        ),
        Activity("b", "copy", "h2d", h2d_bytes=10.0, bound="pcie", needs=(0,), waits=((0, "data"),), where="m.py:3"),
    ]
    planned = Timeline(activities, [0.0, 8e-9], [8e-9, 18e-9], limits=LIMITS, **CAPACITY | {"kind": "planned"})
    return planned.with_times([0.0, 10e-9], [9e-9, end], kind="measured") if plan else planned


def values(column: dict[str, Any]) -> list[float]:
    """A column as the script reads it."""
    if "same" in column:
        return [column["same"]] * column["count"]
    found: list[float] = np.frombuffer(base64.b64decode(column["base64"]), TYPES[column["type"]]).tolist()
    return found


def texts(about: dict[str, Any], column: str) -> list[str]:
    return [about["strings"][int(place)] for place in values(about["columns"][column])]


def lists(about: dict[str, Any], name: str) -> list[list[int]]:
    """A list per activity of a column of lists."""
    at, to = (list(map(int, values(about[key]))) for key in (f"{name}_at", name))
    return [to[low:high] for low, high in pairwise(at)]


def whole(times: Any) -> list[int]:
    return [-1 if np.isnan(time) else round(time * 1e9) for time in times]


@settings(deadline=None)
@given(timelines())
def test_columns_say_what_the_timeline_says(timeline: Timeline) -> None:
    about = json.loads(data.encoded(data.collected(timeline)))
    activities = timeline.activities
    assert values(about["columns"]["start"]) == whole(timeline.start)
    assert values(about["columns"]["end"]) == whole(timeline.end)
    for field in ("name", "operator", "stream", "where"):
        assert texts(about, field) == [shown(getattr(activity, field)) for activity in activities]
    for field in ("sms", "piece", "flops", "hbm_bytes", "h2d_bytes", "d2h_bytes"):
        assert values(about["columns"][field]) == [getattr(activity, field) for activity in activities]
    assert lists(about, "waits") == [[index for index, _ in activity.waits] for activity in activities]
    reasons = [about["strings"][int(place)] for place in values(about["waits_reason"])]
    assert reasons == [reason for activity in activities for _, reason in activity.waits]
    assert [about["strings"][stream["name"]] for stream in about["streams"]] == list(map(shown, timeline.streams))
    assert sum(operator["count"] for operator in about["operators"]) == len(timeline)
    assert about["makespan_ns"] == round(timeline.makespan * 1e9)
    if about["needs"] is None:
        assert all(activity.needs is None for activity in activities)
    else:
        assert lists(about, "needs") == [list(activity.needs or ()) for activity in activities]


def test_curves_and_the_band_cover_the_run() -> None:
    about = data.collected(run())
    assert values(about["curves"]["sms"]["t"]) == [0, 9, 10, 20]
    assert values(about["curves"]["sms"]["v"]) == [8, 0, 0, 0]
    assert values(about["curves"]["plan"]["h2d"]["t"]) == [8, 18]
    assert values(about["curves"]["plan"]["h2d"]["v"]) == [1e9, 0]
    assert "d2h" not in about["curves"], "nothing went up"
    assert values(about["roof"]["t"]) == [0, 9, 10, 20]
    names = [about["strings"][int(place)] for place in values(about["roof"]["name"])]
    assert names == ["launch", "idle", "PCIe down"], "what the device computes a second is not known"


def test_labels_needs_and_analyses_are_there() -> None:
    about = data.collected(run())
    assert texts(about, "scope") == ["layer 3, phase x", ""]
    assert values(about["columns"]["layer"]) == [3, -1]
    assert lists(about, "needs") == [[], [0]]
    assert about["critical"]["segments"][-1] == [1, 10, 20, "data"]
    assert dict(about["idle"]["lanes"])["h2d"]["dependency"] == 9
    assert about["graph"] is not None


def test_a_run_of_which_no_capacity_is_known_has_no_band_and_no_curve_of_zeros() -> None:
    alone = Timeline([Activity("a", "x", "thread 1")], [0.0], [1e-6], kind="measured", device="cpu")
    about = data.collected(alone)
    assert values(about["roof"]["name"]) == []
    assert about["curves"] == {}


def test_the_plan_is_matched_by_name_and_order_where_it_is_another_value() -> None:
    actual = Timeline([Activity(name, "x", "g0") for name in "aab"], [0, 1, 2], [1, 2, 3], kind="measured", device="d")
    other = Timeline([Activity(name, "x", "g0") for name in "caa"], [5, 6, 7], [6, 7, 8], kind="planned", device="d")
    actual.plan = other
    columns = data.collected(actual)["columns"]
    assert values(columns["plan_start"]) == [6e9, 7e9, -1]
    assert values(columns["plan_end"]) == [7e9, 8e9, -1]


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ([0, 255], "u8"),
        ([0, 256], "u16"),
        ([0, 65536], "u32"),
        ([-1, 5], "i32"),
        ([-1, 2**32], "f64"),
        ([2**40, 3], "f64"),
    ],
)
def test_a_column_takes_the_smallest_type_that_holds_it(column: list[int], kind: str) -> None:
    found = packed(np.array(column, np.int64))
    assert found["type"] == kind
    assert values(found) == column


def test_a_column_of_one_value_is_one_number() -> None:
    assert packed(np.full(1000, 7)) == {"same": 7, "count": 1000}
    assert values(packed(np.array([], np.int64))) == []
    assert values(packed(np.array([0.5, 1e12]))) == [0.5, float(np.float32(1e12))]


def test_the_difference_to_another_run_goes_in() -> None:
    difference = data.collected(run(), run(end=25e-9))["diff"]
    assert difference["makespan_ns"] == 25
    assert difference["rows"] == [["b", 10, 15]]
    assert difference["lanes"] == [["h2d", 10, 15]]
    assert data.collected(run())["diff"] is None


@pytest.mark.parametrize(
    ("timeline", "words"),
    [
        (run(), "20 ns, 1.50x as fast as one operator after the other, 25 % above the bound by device memory, "
         "+11.1 % against its plan"),
        (run(end=12e-9), "12 ns, 2.50x as fast as one operator after the other, 25 % below the bound by device memory, "
         "-33.3 % against its plan"),
        (run(plan=False), "18 ns, 1.67x as fast as one operator after the other, 12 % above the bound by device "
         "memory"),
        (run(end=float("nan")), "stopped after 10 ns: 1 of 2 launches had ended"),
        (Timeline([], [], [], kind="measured", device="cpu"), "nothing ran"),
    ],
)  # fmt: skip
def test_the_verdict_is_one_line(timeline: Timeline, words: str) -> None:
    assert data.verdict(timeline) == words


def test_the_page_is_one_file_that_loads_nothing() -> None:
    text = report.html(run(), title="one & only")
    page_ = Page(text)
    assert not {"src", "srcset", "action", "style"} & {name for _, attrs in page_.elements for name in attrs}
    assert [attrs["href"] for _, attrs in page_.elements if "href" in attrs] == ["data:,", "#views"]
    assert "{{" not in text
    assert page_.texts["title"] == ["one & only"]
    assert [attrs["lang"] for tag, attrs in page_.elements if tag == "html"] == ["en"]
    assert len(text) - len(data.encoded(data.collected(run()))) < 1_000_000


def test_the_policy_lets_this_script_and_this_style_run_and_no_other() -> None:
    page_ = Page(report.html(run()))
    policy = next(
        attrs["content"] for _, attrs in page_.elements if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for rule, source in (("script-src", page_.texts["script"][1]), ("style-src", page_.texts["style"][0])):
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert (rules["default-src"], rules["base-uri"], rules["form-action"]) == ("'none'",) * 3


def test_every_script_and_style_of_the_folder_is_in_the_page() -> None:
    folder = ROOT / "nanort" / "report"
    assert sorted(page.SCRIPTS) == sorted(path.name for path in folder.glob("*.js"))
    assert sorted(page.STYLES) == sorted(path.name for path in folder.glob("*.css"))


def test_scripts_neither_read_markup_nor_evaluate_text() -> None:
    for name in page.SCRIPTS:
        source = (ROOT / "nanort" / "report" / name).read_text(encoding="utf-8")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|Function\(|fetch\(", source
        )
        assert "https:" not in source


@pytest.mark.parametrize("name", [*HOSTILE, LONG], ids=lambda name: ascii(name)[:24])
def test_hostile_names_stay_text(name: str) -> None:
    hostile = Timeline(
        [Activity(name, name, name, name, bound=name, shapes=name, kernel=name, where=name, scope=((name, name),))],
        [0.0], [1e-6], kind="measured", device=name, failure=name, limits={name: 1e-6},
    )  # fmt: skip
    calm = Page(report.html(run()))
    found = Page(report.html(hostile, other=hostile, title=name))
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in calm.elements]
    assert found.texts["title"] == ([shown(name)] if shown(name) else [f"measured on {shown(name)}"])
    assert texts(found.about, "name") == list(found.about["limits"]) == [shown(name)]
    assert found.texts["script"][1] == calm.texts["script"][1]


def test_nothing_is_written_of_what_cannot_be_shown(tmp_path: Path) -> None:
    endless = Timeline([], [], [], kind="measured", device="d", limits={"serial": float("inf")})
    with pytest.raises(FileError, match="give finite bandwidths and limits"):
        report.write(endless, tmp_path / "report.html")
    four: Any = np.int64(4)  # what users give
    sized = Timeline([Activity("a", "x", "g0", sms=four)], [0.0], [1.0], kind="measured", device="d")
    with pytest.raises(FileError, match="as Python numbers"):
        report.write(sized, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
    report.write(run(), tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == report.html(run())


def luminance(color: str) -> float:
    """How light a colour is, as WCAG has it."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    r, g, b = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize(("theme", "background"), [("light", "#ffffff"), ("dark", "#12171f")])
def test_colours_of_activities_stand_out(theme: str, background: str) -> None:
    source = (ROOT / "nanort" / "report" / "color.js").read_text(encoding="utf-8")
    style = (ROOT / "nanort" / "report" / "style.css").read_text(encoding="utf-8")
    assert f"--panel: {background}" in style
    line = re.search(rf"^  {theme}: \[(.+)\]", source, re.MULTILINE)
    assert line is not None
    colors = re.findall(r"#[0-9a-f]{6}", line[1])
    assert len(set(colors)) == 8
    for color in colors:
        dark, light = sorted((luminance(color), luminance(background)))
        assert (light + 0.05) / (dark + 0.05) >= 3, color


def test_times_that_never_came_are_minus_one() -> None:
    assert run(end=float("nan")).flat.end[1] == NEVER
    assert values(data.collected(run(end=float("nan")))["columns"]["end"]) == [9, -1]


SEEN_BY = {
    "most": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "few greens": ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
    "few reds": ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
    "few blues": ((1.256, -0.077, -0.179), (-0.078, 0.931, 0.148), (0.005, 0.691, 0.304)),
}
"""Linear RGB to what eyes make of it (Machado, Oliveira, Fernandes: 2009)."""
XYZ = np.array([(0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505)])


@pytest.mark.parametrize("eyes", SEEN_BY)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_eyes_tell_the_colours_apart(theme: str, eyes: str) -> None:
    source = files("nanort.report").joinpath("color.js").read_text(encoding="utf-8")
    found = re.search(rf"^  {theme}: \[(.*)\]", source, re.MULTILINE)
    assert found
    signs = [bytes.fromhex(sign) for sign in re.findall("#(.{6})", found[1])]
    light = ((np.array([list(sign) for sign in signs]) / 255 + 0.055) / 1.055) ** 2.4
    x, y, z = (XYZ @ np.clip(np.array(SEEN_BY[eyes]) @ light.T, 0, 1)) ** (1 / 3) / np.array([[0.983], [1], [1.029]])
    lab = np.stack((116 * y, 500 * (x - y), 200 * (y - z)), axis=1)
    assert min(float(np.linalg.norm(a - b)) for a, b in combinations(lab, 2)) > 9
