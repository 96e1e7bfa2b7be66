"""A timeline as one small picture for notebooks: a row a stream, drawn to scale in SVG, without script."""

from __future__ import annotations

import html as markup
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from nanort.printable import printable
from nanort.timeline import analysis, text, units
from nanort.timeline.analysis import Array

if TYPE_CHECKING:
    from nanort.timeline.events import Timeline

COLORS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
"""Those that Okabe and Ito chose for all eyes; the operators with most time get them, in this order."""
OTHERS = "#999999"
INK = {"#0072b2": "#ffffff"}  # upon a colour; black on the rest
ROW, BAR, LETTER, LINE = 26, 20, 6.6, 16  # pixels: a stream, its bars, a character, a line of text
BIN, NAMED = 2, 24  # pixels that narrow bars share, characters of a stream's name
FADED = {text.HALF: 0.6, text.QUARTER: 0.35}
"""Of columns that are mostly idle."""


def html(timeline: Timeline, caption: str = "") -> str:
    """The picture with its numbers beneath, for ``_repr_html_``; ``caption`` instead of what kind of timeline it is."""
    numbers = "\n".join([caption or repr(timeline), *text.numbers(timeline, 100)])
    note = '<figcaption style="font: 12px ui-monospace, monospace; white-space: pre-wrap">'
    return f'<figure style="margin: 0">{svg(timeline)}{note}{_escaped(numbers)}</figcaption></figure>'


def svg(timeline: Timeline, width: int = 900) -> str:
    """``timeline`` in ``width`` pixels; its size does not grow with the activities, only with streams."""
    heads = [units.plain(stream, NAMED) for stream in timeline.streams]
    left = round(LETTER * max(map(len, heads), default=0)) + 12
    columns = max(100, width - left - 4) // BIN * BIN
    operators = text.busiest(timeline)
    colors = dict(zip(operators, COLORS, strict=False))
    drawn: list[str] = []
    members = dict(analysis.grouped([activity.stream for activity in timeline.activities]))
    for row, (stream, head) in enumerate(zip(timeline.streams, heads, strict=True)):
        top = row * ROW + 2
        drawn.append(_words(left - 8, top + 14, head, 'text-anchor="end"'))
        drawn.append(
            f'<rect x="{left}" y="{top}" width="{columns}" height="{BAR}" fill="currentColor" opacity="0.06"/>'
        )
        drawn += _bars(timeline, members[stream], (left, top, columns), colors)
    bottom = len(heads) * ROW + LINE
    drawn.append(_words(left, bottom, "0"))
    drawn.append(_words(left + columns, bottom, units.duration(timeline.makespan), 'text-anchor="end"'))
    lines = list(_legend(operators, colors, left, bottom + LINE, left + columns))
    height = bottom + LINE * (1 + len(lines)) + 4
    said = _escaped(
        f"{timeline.kind} timeline on {units.plain(timeline.device, 40)}, {units.duration(timeline.makespan)}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + columns + 4} {height}" role="img" '
        f'aria-label="{said}" style="max-width: 100%; height: auto" width="{left + columns + 4}" height="{height}" '
        f'font-family="ui-monospace, monospace" font-size="11">{"".join([*drawn, *lines])}</svg>'
    )


def _bars(timeline: Timeline, members: Array, box: tuple[int, int, int], colors: dict[str, str]) -> Iterator[str]:
    """The bars of a stream: each that is wide enough by itself, the rest by what ran longest in every pixel."""
    left, top, columns = box
    mine = members[~np.isnan(timeline.start[members])]
    scale = columns / timeline.makespan if timeline.makespan else 0.0
    first = timeline.start[mine] * scale
    last = np.where(np.isnan(timeline.end[mine]), timeline.makespan, timeline.end[mine]) * scale
    wide = last - first >= BIN
    narrow = [colors.get(timeline.activities[index].operator, OTHERS) for index in mine[~wide].tolist()]
    cells, owners = text.shared(
        narrow, first[~wide] / BIN, last[~wide] / BIN, text.covered(first / BIN, last / BIN, columns // BIN)
    )
    for start, end, fill, opacity in _runs(cells, owners):
        yield _bar(left + BIN * start, top, BIN * (end - start), fill, opacity)
    for place in np.flatnonzero(wide).tolist():
        activity, begin, length = (
            timeline.activities[mine[place]],
            float(first[place]),
            float(last[place] - first[place]),
        )
        fill = colors.get(activity.operator, OTHERS)
        ended = not np.isnan(timeline.end[mine[place]])
        took = units.duration(length / scale) if ended else "never ended"
        title = f"{printable(activity.name[:200])}: {printable(activity.operator[:200])}, {took}"
        yield _bar(left + begin, top, length, fill, 1.0 if ended else 0.4, title)
        if ended and (name := text.label(activity.name, int((length - 6) / LETTER))):
            yield _words(left + begin + length / 2, top + 14, name, 'text-anchor="middle"', INK.get(fill, "#000000"))


def _runs(cells: list[str], owners: list[str]) -> Iterator[tuple[int, int, str, float]]:
    """Columns side by side with one owner and one shade: from where to where, whose, and how opaque."""
    keys = [(owner, FADED.get(cell, 1.0)) for owner, cell in zip(owners, cells, strict=True)]
    start = 0
    for place in range(1, len(keys) + 1):
        if place == len(keys) or keys[place] != keys[start]:
            if cells[start] != text.IDLE:
                yield start, place, *keys[start]
            start = place


def _legend(operators: dict[str, float], colors: dict[str, str], left: int, top: int, right: int) -> Iterator[str]:
    """Lines of a swatch, a name and seconds for every operator that has a colour, and for the rest."""
    line, across = "", left
    entries = [(f"{units.plain(name, 32)} {units.duration(operators[name])}", color) for name, color in colors.items()]
    if others := list(operators.values())[len(colors) :]:
        entries.append((f"{units.counted(len(others), 'other')} {units.duration(sum(others))}", OTHERS))
    for entry, color in entries:
        wide = round(LETTER * len(entry)) + 30
        if line and across + wide > right:
            yield line
            line, across, top = "", left, top + LINE
        line += _bar(across, top - 9, 10, color, 1.0, high=10) + _words(across + 14, top, entry)
        across += wide
    if line:
        yield line


def _bar(x: float, y: float, width: float, fill: str, opacity: float, title: str = "", high: int = BAR) -> str:
    shape = f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{high}" fill="{fill}" opacity="{opacity:g}"'
    return f"{shape}><title>{_escaped(title)}</title></rect>" if title else f"{shape}/>"


def _words(x: float, y: float, words: str, how: str = "", fill: str = "currentColor") -> str:
    return f'<text x="{x:.1f}" y="{y}" fill="{fill}" {how}>{_escaped(words)}</text>'


def _escaped(words: str) -> str:
    return markup.escape(words, quote=True)
