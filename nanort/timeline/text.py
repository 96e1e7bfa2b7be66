"""A timeline as text: one row per stream, its nodes drawn to scale, a legend, and the numbers beneath."""

from __future__ import annotations

import math
import os
import re
import string
from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from typing import TYPE_CHECKING, TextIO

import numpy as np

from nanort.timeline import analysis, units
from nanort.timeline.analysis import Array

if TYPE_CHECKING:
    from nanort.timeline.events import Timeline

FULL, HALF, QUARTER, IDLE = "█", "▒", "░", "·"
UNFINISHED, OTHERS = "?", "*"
LETTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits
LEAST_WIDTH, STREAM_WIDTH, TICK_WIDTH = 60, 16, 10
LEGEND = 24  # operators that the legend names
COLORS = (214, 74, 36, 227, 33, 166, 175)
"""Of a terminal's 256, the nearest to those that Okabe and Ito chose for all eyes: orange to reddish purple."""
PAINT = re.compile(r"\x1b\[[0-9;]*m")


def wants_color(file: TextIO | None) -> bool:
    """Whether ``file`` is a terminal that shows colours, and nobody has set NO_COLOR; a closed stdout is None."""
    return file is not None and file.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def render(timeline: Timeline, width: int = 100, *, color: bool = False) -> str:
    """``timeline`` in ``width`` columns (at least 60) of printable characters.

    A node two columns wide or more is a box that begins with its operator's letter and carries its name where that
    fits. Shorter nodes share columns: each shows the operator that ran longest in it, by its letter, or in grey where
    it goes on from the column before and more than half of this one is idle. A ``?`` fills what never ended. With
    ``color``, escape sequences give each operator a colour; the letters still tell more of them apart.
    """
    width = max(LEAST_WIDTH, width)
    spent = busiest(timeline)
    operators = sorted(spent)
    marks = dict(zip(operators, letters(operators), strict=True))
    colors = {marks[name]: COLORS[place % len(COLORS)] for place, name in enumerate(spent)} if color else {}
    heads = _heads(timeline)
    margin = max(map(len, heads.values()), default=0)
    columns = width - margin - len(" ││ 100 %")
    shares = timeline.utilization()
    lines = [_title(timeline)]
    members = dict(analysis.grouped([activity.stream for activity in timeline.activities]))
    for stream, head in heads.items():
        busy = units.percent(shares[f"busy {stream}"])
        lines.append(f"{head:<{margin}} │{_bar(timeline, members[stream], columns, marks, colors)}│{busy:>6}")
    lines += (" " * (margin + 1) + line for line in _axis(timeline.makespan, columns))
    lines += _folded("", _legend(spent, marks, colors), width)
    lines += numbers(timeline, width)
    return "\n".join(lines)


def letters(operators: Sequence[str]) -> list[str]:
    """One letter per operator, of its own name where one is free; ``*`` when all letters are taken.

    >>> letters(["linear", "rms_norm", "rope"])
    ['L', 'R', 'O']
    """
    taken: list[str] = []
    free = set(LETTERS)
    for operator in operators:
        words = operator.upper().split("_")
        wanted = chain((word[:1] for word in words), operator.upper(), LETTERS) if free else ()
        taken.append(next((c for c in wanted if c in free), OTHERS))
        free.discard(taken[-1])
    return taken


def _title(timeline: Timeline) -> str:
    where = f"{timeline.kind} on {units.plain(timeline.device, 40)}"
    what = f"{units.counted(len(timeline), 'launch')} on {units.counted(len(timeline.streams), 'stream')}"
    return f"{where}: {what}{', planned for another device' if timeline.foreign else ''}"


def _heads(timeline: Timeline) -> dict[str, str]:
    """What stands left of each row: the stream and its SMs."""
    sms = {stream: units.sms(most, timeline.device) for stream, most in analysis.stream_sms(timeline).items()}
    names = {stream: units.plain(stream, STREAM_WIDTH) for stream in sms}
    wide, digits = max(map(len, names.values()), default=0), max(map(len, sms.values()), default=0)
    return {stream: f"{names[stream]:<{wide}}  {sms[stream]:>{digits}}" for stream in sms}


def _bar(timeline: Timeline, members: Array, columns: int, marks: dict[str, str], colors: dict[str, int]) -> str:
    """One row: boxes where a node is wide, and what ran longest in the columns that narrow ones share."""
    mine = members[~np.isnan(timeline.start[members])]
    activities = [timeline.activities[index] for index in mine]
    start, end = timeline.start[mine], timeline.end[mine]
    open_ended = np.isnan(end)
    scale = columns / timeline.makespan if timeline.makespan else 0.0
    first, last = start * scale, np.where(open_ended, timeline.makespan, end) * scale
    left, right = np.floor(first + 0.5).astype(int), np.floor(last + 0.5).astype(int)
    wide = right - left > 1
    narrow = np.flatnonzero(~wide)
    cells, owners = shared(
        [marks[activities[index].operator] for index in narrow],
        first[narrow],
        last[narrow],
        covered(first, last, columns),
    )
    for index in np.flatnonzero(wide):
        letter, fill = marks[activities[index].operator], UNFINISHED if open_ended[index] else FULL
        width = right[index] - left[index]
        cells[left[index] : right[index]] = _box(activities[index].name, letter, fill, width)
        owners[left[index] : right[index]] = letter * width
    return _painted(cells, owners, colors)


def _painted(cells: Sequence[str], owners: Sequence[str], colors: dict[str, int]) -> str:
    """The cells as one string, each in the colour of the letter that owns it, if it has one."""
    drawn, place = "", 0
    for owner, run in groupby(owners):
        text = "".join(cells[place : (place := place + len(list(run)))])
        drawn += f"\x1b[38;5;{colors[owner]}m{text}\x1b[0m" if owner in colors else text
    return drawn


def shared(letter: Sequence[str], first: Array, last: Array, busy: Array) -> tuple[list[str], list[str]]:
    """The cells of the columns that narrow nodes lie in, idle elsewhere, and the letter that each belongs to.

    ``busy`` is how much of each column is held.
    """
    columns = len(busy)
    middle = np.minimum((first + last) / 2, columns - 1).astype(int)
    held = {name: covered(first[mine], last[mine], columns) for name, mine in analysis.grouped(letter)}
    for name, place in zip(letter, middle.tolist(), strict=True):
        held[name][place] += 1e-9  # a node of no length is seen where nothing else is
    cells, owners, before = [IDLE] * columns, [""] * columns, ""
    for place in np.unique(middle).tolist():
        winner = max(held, key=lambda name: held[name][place])
        goes_on = place and cells[place - 1] != IDLE and winner == before and busy[place] < 0.5
        cells[place] = winner if not goes_on else HALF if busy[place] >= 0.25 else QUARTER
        before = owners[place] = winner
    return cells, owners


def covered(first: Array, last: Array, columns: int) -> Array:
    """How much of each column the spans from ``first`` to ``last`` cover."""
    edges = np.arange(columns + 1)

    def elapsed(since: Array) -> Array:
        """Per edge, the time since each of ``since`` that lies before it, added up."""
        since = np.sort(since)
        count = np.searchsorted(since, edges)
        return edges * count - np.concatenate(([0.0], np.cumsum(since)))[count]

    return np.diff(elapsed(first) - elapsed(last))


def _box(name: str, letter: str, fill: str, width: int) -> str:
    """A node ``width`` columns wide: its letter, its fill, and its name in the middle where it fits."""
    shown = label(name, width - 4)
    return letter + (f" {shown} ".center(width - 1, fill) if shown else fill * (width - 1))


def label(name: str, width: int) -> str:
    """``name`` in at most ``width`` columns, without what stands before its last dot if need be; or nothing."""
    shown = units.plain(name)
    return next((short for short in (shown, re.sub(r"^.*\.(?=\D)", "", shown)) if len(short) <= width), "")


def _axis(makespan: float, columns: int) -> Iterator[str]:
    """A ruler in round steps of the makespan's unit, and its figures; the last is the makespan."""
    if not makespan:
        return
    size, _ = units.unit_of(makespan)
    least = makespan / size * TICK_WIDTH / columns
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least)
    last = units.duration(makespan)
    ruler, figures = ["─"] * columns, ""
    for tick in range(int(makespan / size / step) + 1):
        column = round(tick * step * size / makespan * columns)
        figure = f"{tick * step:g}"
        if column + len(figure) + 2 > columns + 2 - len(last):
            break
        ruler[column] = "┴"
        figures = figures.ljust(column) + figure
    yield "└" + "".join(ruler) + "┘"
    yield " " + figures.ljust(columns + 1 - len(last)) + last


def busiest(timeline: Timeline) -> dict[str, float]:
    """Seconds by operator, the most first."""
    seconds = dict.fromkeys(sorted({activity.operator for activity in timeline.activities}), 0.0)
    ran = np.nan_to_num(timeline.end - timeline.start).tolist()
    for activity, spent in zip(timeline.activities, ran, strict=True):
        seconds[activity.operator] += spent
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def _legend(spent: dict[str, float], marks: dict[str, str], colors: dict[str, int]) -> list[str]:
    """Letter, operator and its seconds, most seconds first."""
    entries = [
        f"{_painted(marks[name], marks[name], colors)} {units.plain(name, 32)} {units.duration(seconds)}"
        for name, seconds in list(spent.items())[:LEGEND]
    ]
    return entries if len(spent) <= LEGEND else [*entries, f"and {len(spent) - LEGEND} more"]


def numbers(timeline: Timeline, width: int) -> Iterator[str]:
    """What was used of each resource, how much ran at once, and what did not run."""
    shares = timeline.utilization()
    titles = {"sms": f"{units.unit(timeline.device)}s", "hbm": "HBM", "h2d": "PCIe down", "d2h": "PCIe up"}
    used = [f"{title} {units.percent(shares[name])}" for name, title in titles.items() if name in shares]
    yield from _folded("makespan", [units.duration(timeline.makespan), *used], width)
    yield from _folded("at once", timeline.overlap().shares(), width)
    never_ran = int(np.isnan(timeline.start).sum())
    never_ended = int(np.isnan(timeline.end).sum()) - never_ran
    if timeline.failure or never_ended or never_ran:
        counts = [f"{never_ran} never ran", f"{never_ended} never ended"]
        yield from _folded("stopped", [*counts, *filter(None, [units.plain(timeline.failure)])], width)


def _folded(head: str, entries: Sequence[str], width: int) -> Iterator[str]:
    """``head`` and the entries behind it, in lines of ``width`` columns."""
    lead = f"{head:<10}" if head else ""
    line = lead
    for entry in entries:
        if len(line) > len(lead) and len(PAINT.sub("", line + entry)) + 3 > width:
            yield line
            line = " " * len(lead)
        line += entry if len(line) == len(lead) else f"   {entry}"
    if len(line) > len(lead):
        yield line
