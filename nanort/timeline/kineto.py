"""A timeline as rows of the Chrome trace format that Kineto, Perfetto and HolisticTraceAnalysis read.

Times are whole nanoseconds, written as microseconds with decimals. A stream is a lane; Perfetto drops slices that
overlap on one lane, so a stream whose activities overlap gets sub-lanes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import fields
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from nanort.partition import ENGINES
from nanort.timeline import analysis, units
from nanort.timeline.events import Activity, Timeline

Row = dict[str, Any]
Nanoseconds = npt.NDArray[np.int64]
ACTUAL, PLAN = 1, 2  # process ids
NEVER = np.iinfo(np.int64).max  # the nanosecond at which nothing ends
USUAL = {field.name: field.default for field in fields(Activity) if isinstance(field.default, (str, int, float))}
RATES = {"hbm_bytes": "HBM", "h2d_bytes": "PCIe down", "d2h_bytes": "PCIe up"}  # tracks: "HBM GB/s"


def rows(timeline: Timeline, plan: Timeline | None = None) -> Iterator[Row]:
    """Every row of the trace: names, slices, arrows and counters of the timeline, then of the plan beside it."""
    numbers = count(PLAN + 1)  # of lanes and arrows: no two processes share one
    yield from _process(timeline, ACTUAL, numbers)
    if plan is not None:
        yield from _process(plan, PLAN, numbers)


def describe(activity: Activity, index: int) -> Row:
    """What is known of an activity beside its name, less what is as usual."""
    args: Row = {"index": index, "operator": activity.operator, "lane": activity.stream}
    args.update((name, value) for name, usual in USUAL.items() if (value := getattr(activity, name)) != usual)
    if activity.scope:
        args["scope"] = {label: _json(value) for label, value in activity.scope}
    if activity.needs is not None:
        args["needs"] = activity.needs
    if activity.waits:
        args["waits"] = activity.waits
    return args


def nanoseconds(seconds: npt.NDArray[np.float64]) -> Nanoseconds:
    """Whole nanoseconds; ``NEVER`` for NaN."""
    known = ~np.isnan(seconds)
    whole = np.full(len(seconds), NEVER, np.int64)
    whole[known] = np.rint(seconds[known] * 1e9)
    return whole


def _json(value: Any) -> Any:
    """A label as JSON can hold it: what it cannot hold is said in words."""
    fits = value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value))
    return value if fits else str(value)


def _process(timeline: Timeline, pid: int, numbers: Iterator[int]) -> Iterator[Row]:
    """One timeline as one process."""
    start, end = nanoseconds(timeline.start), nanoseconds(timeline.end)
    order = np.lexsort((end, start))
    ran = order[start[order] != NEVER].tolist()
    sub_lanes = _sub_lanes(timeline, ran, start.tolist(), end.tolist())
    tids = _tids(timeline, sub_lanes, numbers)
    lanes = {index: tids[timeline.activities[index].stream, sub_lane] for index, sub_lane in sub_lanes.items()}
    yield _metadata(pid, pid, "process_name", name=f"{timeline.kind} on {timeline.device}")
    yield _metadata(pid, pid, "process_sort_index", sort_index=pid)
    sms = analysis.stream_sms(timeline)
    for place, ((stream, sub_lane), tid) in enumerate(tids.items()):
        words = (stream, units.sms(sms[stream], timeline.device), f"+{sub_lane}" if sub_lane else "")
        yield _metadata(pid, tid, "thread_name", name="  ".join(filter(None, words)))
        yield _metadata(pid, tid, "thread_sort_index", sort_index=place)
    yield from _slices(timeline, pid, start, end, lanes)
    yield from _arrows(timeline, pid, start.tolist(), end.tolist(), lanes, numbers)
    yield from _counters(timeline, pid, start, end)


def _metadata(pid: int, tid: int, what: str, **args: Any) -> Row:
    return {"ph": "M", "pid": pid, "tid": tid, "name": what, "args": args}


def _sub_lanes(timeline: Timeline, ran: list[int], start: list[int], end: list[int]) -> dict[int, int]:
    """The first lane of its stream that is free, for each activity in order of start."""
    free: dict[str, list[int]] = {stream: [0] for stream in timeline.streams}
    busy: dict[str, list[tuple[int, int]]] = {stream: [] for stream in timeline.streams}
    chosen = {}
    for index in ran:
        idle, taken = free[timeline.activities[index].stream], busy[timeline.activities[index].stream]
        while taken and taken[0][0] <= start[index]:
            heapq.heappush(idle, heapq.heappop(taken)[1])
        chosen[index] = heapq.heappop(idle) if idle else len(taken)
        heapq.heappush(taken, (max(end[index], start[index] + 1), chosen[index]))  # one of no length needs room too
    return chosen


def _tids(timeline: Timeline, sub_lanes: dict[int, int], numbers: Iterator[int]) -> dict[tuple[str, int], int]:
    """A thread id for every lane of every stream, from top to bottom."""
    most = dict.fromkeys(timeline.streams, 0)
    for index, sub_lane in sub_lanes.items():
        stream = timeline.activities[index].stream
        most[stream] = max(most[stream], sub_lane)
    return {(stream, lane): next(numbers) for stream, last in most.items() for lane in range(last + 1)}


def _slices(timeline: Timeline, pid: int, start: Nanoseconds, end: Nanoseconds, lanes: dict[int, int]) -> Iterator[Row]:
    """A row per activity that started, in order of start; one that never ended is a beginning without an end."""
    streams = {stream: number for number, stream in enumerate(timeline.streams)}
    begin, length, ended = (start / 1e3).tolist(), ((end - start) / 1e3).tolist(), (end != NEVER).tolist()
    for index, tid in lanes.items():
        activity = timeline.activities[index]
        args = describe(activity, index)
        category = "plan"  # the tools that count device rows pass over it
        if pid == ACTUAL:
            category = "gpu_memcpy" if activity.stream in ENGINES else "kernel"
            args |= {"stream": streams[activity.stream], "correlation": index + 1, "device": 0, "context": 1}
        shape = {"ph": "X", "dur": length[index]} if ended[index] else {"ph": "B"}
        place = {"pid": pid, "tid": tid, "ts": begin[index]}
        yield {**shape, **place, "name": activity.name, "cat": category, "args": args}


def _arrows(
    timeline: Timeline, pid: int, start: list[int], end: list[int], lanes: dict[int, int], numbers: Iterator[int]
) -> Iterator[Row]:
    """Two rows per wait of which both sides ran: from the end of what was waited for to the start of what waited."""
    for index in lanes:
        for waited, reason in timeline.activities[index].waits:
            if end[waited] == NEVER:
                continue
            # It leaves within its slice: at the very end, the next slice of the lane is the one that encloses it.
            leaves = max(start[waited], min(end[waited] - 1, start[index]))
            both = {"cat": "wait", "name": reason, "id": next(numbers), "pid": pid}
            yield {"ph": "s", **both, "tid": lanes[waited], "ts": leaves / 1e3}
            yield {"ph": "f", "bp": "e", **both, "tid": lanes[index], "ts": start[index] / 1e3}


def _counters(timeline: Timeline, pid: int, start: Nanoseconds, end: Nanoseconds) -> Iterator[Row]:
    """A row per change of the SMs in use, and of the bytes moved per second, spread evenly over each activity's run."""
    yield from _counter(pid, "SMs", "in use", *analysis.sms_in_use(timeline, start, end))
    ran = (end != NEVER) & (end > start)
    for field, name in RATES.items():
        moved = analysis.column(timeline, field)
        moves = ran & (moved > 0)
        if moves.any():
            rates = moved[moves] / (end[moves] - start[moves])  # bytes per nanosecond are GB/s
            yield from _counter(pid, name, "GB/s", *analysis.levels(start[moves], end[moves], rates))


def _counter(pid: int, name: str, unit: str, times: Nanoseconds, values: npt.NDArray[np.float64]) -> Iterator[Row]:
    rounded = np.round(values, 3)
    changes = np.flatnonzero(np.diff(rounded, prepend=0.0))
    for time, value in zip((times[changes] / 1e3).tolist(), rounded[changes].tolist(), strict=True):
        yield {"ph": "C", "pid": pid, "name": name, "ts": time, "args": {unit: value}}
