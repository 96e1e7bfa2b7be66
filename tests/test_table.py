"""Timelines as tables and pictures: whatever names say, they are text."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from hypothesis import given
from pyarrow import parquet

import nanort as nr
from hostile import HOSTILE, LONG
from nanort import graphs
from nanort.errors import BackendError
from nanort.timeline import picture, table, text
from nanort.timeline.activities import Activity
from nanort.timeline.events import Timeline
from timelines import CAPACITY, timelines

NAMES = (*HOSTILE, LONG)


@pytest.fixture(scope="module")
def hostile() -> Timeline:
    """A timeline in which every text that a file can bring is a hostile one."""
    made = [
        Activity(name, name, name, name, bound=name, shapes=name, kernel=name, scope=((name, name),), where=name)
        for name in NAMES
    ]
    return Timeline(made, range(len(made)), range(1, len(made) + 1), **CAPACITY | {"failure": "".join(HOSTILE)})


def test_table_has_a_row_an_activity() -> None:
    made = [
        Activity("a", "linear", "g0", "g0", 8, 1.0, 2.0, alone=0.5, scope=(("layer", 0),), needs=()),
        Activity("b", "linear", "h2d", needs=(0,), waits=((0, "data"),)),
        Activity("c", "norm", "g0"),
    ]
    t = Timeline(made, [0, 1.000000001, math.nan], [1.0, math.nan, math.nan], **CAPACITY)
    frame = t.to_pandas()
    assert frame.name.tolist() == ["a", "b", "c"]
    assert frame.start_ns.tolist() == [0, 1_000_000_001, pd.NA]
    assert frame.duration_ns.tolist() == [1_000_000_000, pd.NA, pd.NA]
    assert frame.start_seconds.tolist()[:2] == [0.0, 1.000000001]
    assert frame.needs.map(json.loads).tolist() == [[], [0], None]
    assert frame.waits.map(json.loads).tolist() == [[], [[0, "data"]], []]
    assert json.loads(frame.scope[0]) == {"layer": 0}
    assert frame.groupby("operator").flops.sum().to_dict() == {"linear": 1.0, "norm": 0.0}


@given(timelines())
def test_parquet_and_pandas_say_the_same(folder: Path, t: Timeline) -> None:
    t.to_parquet(folder / "t.parquet")
    assert parquet.read_table(folder / "t.parquet").to_pylist() == [
        dict(zip(table.columns(t), row, strict=True))
        for row in zip(*(v for _, v in table.columns(t).values()), strict=True)
    ]
    frame = t.to_pandas()
    assert list(frame) == list(table.columns(t))
    assert [None if ns is pd.NA else ns for ns in frame.end_ns] == table.columns(t)["end_ns"][1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


def test_hostile_names_are_one_cell_each_and_no_formula(hostile: Timeline, tmp_path: Path) -> None:
    hostile.to_csv(tmp_path / "t.csv")
    hostile.to_parquet(tmp_path / "t.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv", "t.parquet"]
    written = (tmp_path / "t.csv").read_text(encoding="utf-8")
    assert all(letter.isprintable() or letter == "\n" for letter in written)
    assert written.count("\n") == len(NAMES) + 1
    csv.field_size_limit(1 << 30)
    head, *rows = csv.reader(io.StringIO(written))
    assert [len(row) for row in rows] == [len(head)] * len(NAMES)
    for row, name in zip(rows, NAMES, strict=True):
        cells = dict(zip(head, row, strict=True))
        assert cells["name"] == cells["where"] == table.cell(name)
        assert not any(cell.lstrip().startswith(table.FORMULA) for cell in row)
    assert len(hostile.to_pandas()) == len(NAMES)


def test_what_is_half_written_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.csv").write_text("before")

    def broken(name: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(table, "cell", broken)
    with pytest.raises(KeyboardInterrupt):
        Timeline([Activity("a", "a", "g0")], [0], [1], **CAPACITY).to_csv(tmp_path / "t.csv")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("t.csv", "before")]


@pytest.mark.parametrize("package", ["pandas", "pyarrow"])
def test_a_missing_package_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    t = Timeline([], [], [], **CAPACITY)
    with pytest.raises(BackendError, match=rf"{package}.*pip install 'nanort\[tables\]'"):
        t.to_pandas() if package == "pandas" else t.to_parquet(tmp_path / "t.parquet")
    t.to_csv(tmp_path / "t.csv")


def drawn(page: str) -> ElementTree.Element:
    """The page as a tree: it is well formed, or this fails."""
    return ElementTree.fromstring(page)


def test_pictures_of_hostile_names_hold_only_shapes_and_text(hostile: Timeline) -> None:
    tree = drawn(hostile._repr_html_())
    allowed = {"figure", "figcaption", "svg", "rect", "text", "title"}
    assert {element.tag.rpartition("}")[2] for element in tree.iter()} <= allowed
    attributes = {name.lower() for element in tree.iter() for name in element.attrib}
    assert not any(name.startswith("on") or "href" in name for name in attributes)
    assert all(letter.isprintable() or letter == "\n" for letter in "".join(tree.itertext()))
    assert len(hostile._repr_html_()) < 200_000


@given(timelines())
def test_bars_lie_within_the_picture(t: Timeline) -> None:
    tree = drawn(picture.svg(t, 400))
    wide, high = float(tree.attrib["width"]), float(tree.attrib["height"])
    for bar in tree.iter("{http://www.w3.org/2000/svg}rect"):
        x, y, width, height = (float(bar.attrib[name]) for name in ("x", "y", "width", "height"))
        assert 0 <= x <= x + width <= wide + 0.2
        assert 0 <= y <= y + height <= high


def test_bars_are_drawn_to_scale_with_their_names() -> None:
    made = [Activity("layer0.q_proj", "linear", "g0"), Activity("n", "norm", "g0"), Activity("x", "copy", "h2d")]
    tree = drawn(picture.svg(Timeline(made, [0, 3, 0], [3, 4, math.nan], **CAPACITY), 400))
    bars = {bar[0].text: float(bar.attrib["width"]) for bar in tree.iter() if len(bar) and bar.tag.endswith("rect")}
    whole = bars["x: copy, never ended"]
    assert bars["layer0.q_proj: linear, 3 s"] == pytest.approx(0.75 * whole, abs=0.1)
    assert bars["n: norm, 1 s"] == pytest.approx(0.25 * whole, abs=0.1)
    words = [element.text for element in tree.iter() if element.tag.endswith("text")]
    assert {"layer0.q_proj", "g0", "h2d", "4 s", "linear 3 s"} <= set(words)


def test_a_picture_does_not_grow_with_its_timeline() -> None:
    made = [Activity(f"n{k}", f"op{k % 50}", "g0") for k in range(50_000)]
    t = Timeline(made, range(50_000), [k + 0.7 for k in range(50_000)], **CAPACITY)
    assert len(t._repr_html_()) < 60_000


def test_schedules_are_pictures_too() -> None:
    schedule = nr.co_schedule(graphs.synthetic.layered(12, 1), nr.device("h200"), effort=4)
    page = schedule._repr_html_()
    drawn(page)
    assert "nodes" in page
    assert "serial" in page


@given(timelines())
def test_colours_change_nothing_but_the_colour(t: Timeline) -> None:
    painted = t.text(80, color=True)
    assert re.sub(r"\x1b\[(?:0|38;5;\d+)m", "", painted) == t.text(80)
    assert painted.count("\x1b[0m") * 2 == painted.count("\x1b")


def test_operators_with_most_time_have_colours_of_their_own() -> None:
    made = [Activity(f"n{k}", f"op{k}", "g0") for k in range(7)]
    t = Timeline(made, range(7), range(1, 8), **CAPACITY)
    assert {int(color) for color in re.findall(r"38;5;(\d+)m", t.text(color=True))} == set(text.COLORS)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert text.wants_color(Terminal())
    assert not text.wants_color(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not text.wants_color(Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not text.wants_color(Terminal())
