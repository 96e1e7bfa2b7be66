"""All that the report shows, as one JSON value: names once, figures as packed columns, times in whole nanoseconds."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nanort.errors import FileError
from nanort.report import dag
from nanort.report.columns import Column, Texts, figures, moments, packed, shown
from nanort.timeline import analysis, units
from nanort.timeline.flat import NEVER, UNKNOWN_NEEDS

if TYPE_CHECKING:
    from nanort.timeline.diff import Change
    from nanort.timeline.events import Timeline

VERSION = 1
NAMED = ("operator", "stream", "bound", "kernel", "shapes", "where", "name")
FIGURES = ("sms", "piece", "flops", "hbm_bytes", "h2d_bytes", "d2h_bytes")
CAPACITY = {
    "sms": "sm_capacity",
    "flops": "flops",
    "hbm": "hbm_bandwidth",
    "h2d": "h2d_bandwidth",
    "d2h": "d2h_bandwidth",
}
CURVES = ("sms", "hbm", "h2d", "d2h")
MOST_ROWS = 500
"""Of a table: more than a person reads."""
SERIAL = "serial"


def collected(timeline: Timeline, other: Timeline | None = None) -> dict[str, Any]:
    """What the page's script reads: the run, its plan, and all analyses; ``other`` is the run to compare it with."""
    texts = Texts()
    flat = timeline.flat
    return {
        "version": VERSION,
        "device": shown(timeline.device),
        "kind": timeline.kind,
        "foreign": timeline.foreign,
        "failure": shown(timeline.failure),
        "lost": timeline.lost,
        "makespan_ns": flat.makespan_ns,
        "plan_ns": None if timeline.plan is None else timeline.plan.flat.makespan_ns,
        "capacity": {name: getattr(timeline, field) for name, field in CAPACITY.items()},
        "limits": {shown(name): seconds for name, seconds in timeline.limits.items()},
        "columns": _columns(timeline, texts),
        **_edges(timeline, texts),
        "operators": _operators(timeline, texts),
        "streams": _streams(timeline, texts),
        "curves": _curves(timeline),
        "roof": _roof(timeline, texts),
        "utilization": timeline.utilization(),
        **_analyses(timeline),
        "diff": None if other is None else _difference(timeline, other),
        "graph": dag.layout(timeline),
        "strings": texts.all,  # last: by now all of them are known
    }


def encoded(value: dict[str, Any]) -> str:
    """JSON that can stand inside a script element: in ASCII, and without a sign that ends or opens one.

    Raises:
        FileError: a figure is NaN or infinite, or no number of Python's.
    """
    try:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise FileError(
            f"a figure cannot be shown ({error}): give finite bandwidths and limits, as Python numbers"
        ) from error
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def verdict(timeline: Timeline) -> str:
    """The run in one line: how long it took, against the serial schedule, the nearest bound and the plan."""
    makespan = timeline.makespan
    if len(timeline) and np.isnan(timeline.end).any():
        ended = int((~np.isnan(timeline.end)).sum())
        return (
            f"stopped after {units.duration(makespan)}: {ended:,} of {units.counted(len(timeline), 'launch')} had ended"
        )
    words = [units.duration(makespan) if makespan else "nothing ran"]
    bounds = {name: seconds for name, seconds in timeline.limits.items() if name != SERIAL and seconds > 0}
    if makespan and (serial := timeline.limits.get(SERIAL)):
        words.append(f"{serial / makespan:.2f}x as fast as one operator after the other")
    if makespan and bounds:
        nearest = max(bounds, key=lambda name: bounds[name])
        off = makespan / bounds[nearest] - 1
        words.append(f"{units.percent(abs(off))} {'above' if off >= 0 else 'below'} the bound by {nearest}")
    if timeline.plan is not None and makespan and timeline.plan.makespan and not timeline.foreign:
        words.append(f"{units.change(makespan / timeline.plan.makespan - 1)} against its plan")
    return ", ".join(words)


def _columns(timeline: Timeline, texts: Texts) -> dict[str, Column]:
    """One column per field of the activities, and when they ran and were to run."""
    activities, flat = timeline.activities, timeline.flat
    columns = {"scope": texts.places([_labels(activity.scope) for activity in activities])}
    for name in NAMED:
        columns[name] = texts.places(map(attrgetter(name), activities))
    columns["layer"] = packed(np.array([_layer(activity.scope) for activity in activities], np.int64))
    for name in FIGURES:
        columns[name] = figures(analysis.column(timeline, name))
    columns["alone_ns"] = packed(np.rint(analysis.column(timeline, "alone") * 1e9).astype(np.int64))
    columns["start"], columns["end"] = moments(flat.start), moments(flat.end)
    if (plan := timeline.beside) is not None:
        place, planned = _planned_at(timeline, plan), plan.flat
        for name, times in (("plan_start", planned.start), ("plan_end", planned.end)):
            columns[name] = moments(np.where(place >= 0, np.append(times, NEVER)[place], NEVER))
    return columns


def _planned_at(timeline: Timeline, plan: Timeline) -> npt.NDArray[np.int64]:
    """Where each activity stands in the plan, -1 where it does not: by name, and those of one name in their order."""
    if plan.activities is timeline.activities:
        return np.arange(len(timeline))
    places: defaultdict[str, list[int]] = defaultdict(list)
    for place in range(len(plan) - 1, -1, -1):
        places[plan.activities[place].name].append(place)
    found = [places[a.name].pop() if places.get(a.name) else -1 for a in timeline.activities]
    return np.array(found, np.int64)


def _labels(scope: tuple[tuple[str, Any], ...]) -> str:
    return ", ".join(f"{label} {value}" for label, value in scope)


def _layer(scope: tuple[tuple[str, Any], ...]) -> int:
    """The layer, where labels say so by a number."""
    return next((value for label, value in scope if label == "layer" and type(value) is int and 0 <= value < 2**31), -1)


def _edges(timeline: Timeline, texts: Texts) -> dict[str, Any]:
    """Needs and waits: where each activity's begin, and the activities waited for."""
    flat = timeline.flat
    known = bool(flat.knows_needs.any())
    needs = (
        {"needs": packed(flat.needs.to), "needs_at": packed(flat.needs.at)}
        if known
        else {"needs": None, "needs_at": None}
    )
    waits = {
        "waits": packed(flat.waits.to),
        "waits_at": packed(flat.waits.at),
        "waits_reason": texts.places(flat.reasons),
        "unknown": "" if flat.knows_needs.all() else f"{UNKNOWN_NEEDS.capitalize()}.",
    }
    return needs | waits


def _operators(timeline: Timeline, texts: Texts) -> list[dict[str, Any]]:
    """Every operator, the one that ran longest first, and what binds most of its calls."""
    flat = timeline.flat
    seconds = np.bincount(flat.operator, flat.lasted_ns, len(flat.operators)) / 1e9
    counts = np.bincount(flat.operator, minlength=len(flat.operators))
    bound: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for place, activity in zip(flat.operator.tolist(), timeline.activities, strict=True):
        bound[place][activity.bound] += 1
    return [
        {
            "name": texts.place(flat.operators[place]),
            "bound": texts.place(max(bound[place], key=bound[place].__getitem__)),
            "count": int(counts[place]),
            "seconds": float(seconds[place]),
        }
        for place in np.argsort(-seconds, kind="stable").tolist()
    ]


def _streams(timeline: Timeline, texts: Texts) -> list[dict[str, Any]]:
    groups = {activity.stream: activity.group for activity in timeline.activities}
    sms = analysis.stream_sms(timeline)
    return [
        {"name": texts.place(name), "group": texts.place(groups[name]), "sms": sms[name]} for name in timeline.streams
    ]


def _curves(timeline: Timeline) -> dict[str, Any]:
    """What was used of each resource from each time on, and the same of the plan."""
    found: dict[str, Any] = {}
    for name, curve in timeline.curves().items():
        if name in CURVES and curve.values.any():
            found[name] = {"t": packed(curve.times_ns), "v": figures(curve.values)}
    if timeline.beside is not None:
        found["plan"] = _curves(timeline.beside)
    return found


def _roof(timeline: Timeline, texts: Texts) -> dict[str, Column]:
    """What binds when: the times of all changes, and between any two the resource; empty where none is known."""
    if not any(getattr(timeline, field) for field in CAPACITY.values()):
        return {"t": packed(np.empty(0, np.int64)), "name": packed(np.empty(0, np.int64))}
    binding = timeline.binding()
    return {"t": packed(binding.times_ns), "name": texts.places([name for _, _, name in binding])}


def _analyses(timeline: Timeline) -> dict[str, Any]:
    """The critical path, idle time, overlap and roofline."""
    path, idle = timeline.critical_path(), timeline.idle()
    return {
        "critical": {
            "segments": [[s.index, s.start_ns, s.end_ns, s.reason] for s in path.segments],
            "what_if": [
                [shown(answer.operator), answer.factor, answer.makespan_ns] for answer in path.what_ifs(most=16)
            ],
        },
        "idle": {
            "lanes": [[shown(stream), causes] for stream, causes in idle.lanes.items()],
            "causes": list(idle.causes),
        },
        "overlap": [
            [
                shown(row.operator),
                row.exclusive_ns,
                row.hidden_ns,
                [[shown(c.other), c.possible_ns, c.why] for c in row.could],
            ]
            for row in timeline.overlap().operators
        ],
        "roofline": [
            [
                shown(row.operator),
                row.intensity if math.isfinite(row.intensity) else None,
                row.achieved,
                row.seconds,
                row.count,
            ]
            for row in timeline.roofline().points
        ],
    }


def _difference(timeline: Timeline, other: Timeline) -> dict[str, Any]:
    """What ``other`` has otherwise: nanoseconds here and there by name, the largest difference first."""
    found = timeline.diff(other)

    def rows(changes: Sequence[Change]) -> list[list[Any]]:
        return [[shown(change.name), change.here_ns, change.there_ns] for change in changes[:MOST_ROWS]]

    return {
        "title": shown(f"{other.kind} on {other.device}"),
        "makespan_ns": other.flat.makespan_ns,
        "path": rows(found.path),
        "operators": rows(found.operators),
        "lanes": rows(found.lanes),
        "rows": rows(found.activities),
        "shifted": found.shifted,
        **{
            name: {"count": len(names), "names": [shown(one) for one in names[:MOST_ROWS]]}
            for name, names in (("moved", found.moved), ("missing", found.missing), ("extra", found.extra))
        },
    }
