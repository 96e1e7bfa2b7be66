from __future__ import annotations

import struct
from pathlib import Path

from playwright.sync_api import Browser

from browser import pictures
from browser.runs import known
from nanort import report
from tree import ROOT

WIDTH_AND_HEIGHT = slice(16, 24)  # of a PNG


def names() -> set[str]:
    return {"graph.svg", *(f"{view}-{theme}.png" for view, theme in pictures.SHOWN)}


def test_each_picture_is_taken_of_its_view_in_its_theme(browser: Browser, tmp_path: Path) -> None:
    report.write(known(), tmp_path / "run.html")
    pictures.take(browser, tmp_path / "run.html", tmp_path)
    taken = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert taken.keys() | {"graph.svg"} == names()
    assert len(set(taken.values())) == len(taken)
    assert {struct.unpack(">II", picture[WIDTH_AND_HEIGHT]) for picture in taken.values()} == {pictures.SIZE}


def test_the_documentation_has_all_pictures_each_of_a_modest_size() -> None:
    kept = {path.name: path.stat().st_size for path in (ROOT / "docs" / "pictures").iterdir()}
    assert kept.keys() == names()
    assert max(kept.values()) < 300_000


def test_the_graph_that_runs_is_given_all_its_tensors() -> None:
    graph = pictures.graph()
    given = pictures.tensors(graph)
    for root in graph.roots:
        if root.kind in given:
            tensor = given[root.kind][root.name]
            assert (tuple(tensor.shape), tensor.dtype) == (root.shape, root.dtype)
