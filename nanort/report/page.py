"""The report of a timeline: one HTML file that holds its data, its style and its script, and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import html as markup
import os
import re
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from nanort.drafts import draft
from nanort.report import data
from nanort.report.columns import shown

if TYPE_CHECKING:
    from nanort.timeline.events import Timeline

STYLES = ("style.css", "views.css")
SCRIPTS = (
    "decode.js", "format.js", "color.js", "dom.js", "app.js", "time.js", "rows.js", "lanes.js", "arrows.js", "axis.js",
    "curves.js", "input.js", "search.js", "panel.js", "timeline.js", "charts.js",
    "critical.js", "idle.js", "overlap.js", "bounds.js", "difference.js", "roofline.js", "dag.js", "main.js",
)  # fmt: skip
"""What the page is joined from, in this order; the script is one scope."""


def write(timeline: Timeline, path: str | os.PathLike[str], *, other: Timeline | None = None, title: str = "") -> None:
    """Write the report of ``timeline`` to ``path``, beside ``other`` where it is given: a whole file or none."""
    page = html(timeline, other=other, title=title)
    with draft(path) as beside:
        beside.write_text(page, encoding="utf-8")


def html(timeline: Timeline, *, other: Timeline | None = None, title: str = "") -> str:
    """The report of ``timeline`` as one HTML page; ``other`` is the run that its view of differences compares with."""
    about = data.collected(timeline, other)
    about["title"] = title or f"{timeline.kind} on {timeline.device}"
    style, script = _joined(STYLES), _joined(SCRIPTS)
    policy = (
        f"default-src 'none'; script-src {_hashed(script)}; style-src {_hashed(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    texts = {"policy": policy, "title": about["title"], "verdict": data.verdict(timeline)}
    parts = {name: markup.escape(shown(text)) for name, text in texts.items()}
    parts |= {"data": data.encoded(about), "style": style, "script": script}
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _source("index.html"))


@cache
def _joined(names: tuple[str, ...]) -> str:
    return "\n" + "\n".join(_source(name) for name in names)


def _source(name: str) -> str:
    return files("nanort.report").joinpath(name).read_text(encoding="utf-8")


def _hashed(source: str) -> str:
    """What a content security policy calls this script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
