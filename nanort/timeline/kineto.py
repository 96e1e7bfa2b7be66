"""A timeline as rows like those of Kineto, PyTorch's profiler, for Perfetto and HolisticTraceAnalysis.

A row is a line of JSON. Times are whole nanoseconds, written as microseconds with decimals. The host's calls stand
before the run, a microsecond each, since nobody timed them; so all other rows begin ``lead_ns`` later than they did.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import fields
from itertools import count
from json.encoder import encode_basestring, encode_basestring_ascii
from operator import attrgetter
from typing import Any

from nanort.errors import FileError
from nanort.timeline.activities import Activity
from nanort.timeline.calls import Call, calls, is_copy, launched, record
from nanort.timeline.events import Timeline
from nanort.timeline.flat import NEVER
from nanort.timeline.tracks import Tracks, counters, tracks

ACTUAL, PLAN, HOST = 1, 2, 3  # process ids
SLICES = ("kernel", "gpu_memcpy", "plan")
"""The categories of the rows that are activities; tools that count what a device did pass over ``"plan"``."""
USUAL = {field.name: field.default for field in fields(Activity) if isinstance(field.default, (str, int, float))}
CALL_NS = 1000  # HolisticTraceAnalysis rounds to whole microseconds where it is not told otherwise
_SHARED = attrgetter("operator", "stream", *USUAL)
_ENCODER = json.JSONEncoder(allow_nan=False)


class Rows:
    """Every row of a trace: names, slices, arrows and counters of ``timeline`` and of ``plan`` beside it, and calls.

    Attributes:
        lead_ns: how much later than in the timeline every row is, to leave room for the calls.
    """

    def __init__(self, timeline: Timeline, plan: Timeline | None = None) -> None:
        self._timeline, self._plan = timeline, plan
        self._tracks = tracks(timeline)
        self._calls = list(calls(timeline, self._tracks))
        self._shared: dict[tuple[Any, ...], str] = {}
        self.lead_ns = CALL_NS * len(self._calls)

    def __iter__(self) -> Iterator[str]:
        numbers = count(HOST + 1)  # of lanes and arrows: no two processes share one
        yield from self._process(self._timeline, self._tracks, ACTUAL, numbers)
        if self._plan is not None:
            yield from self._process(self._plan, tracks(self._plan), PLAN, numbers)
        if self._calls:
            yield from self._host(next(numbers), next(numbers))

    def describe(self, index: int, activity: Activity) -> str:
        """What is known of an activity beside its name, less what is as usual: an object but for its last bracket."""
        key = _SHARED(activity)
        shared = self._shared.get(key)
        if shared is None:
            values = zip(USUAL.items(), key[2:], strict=True)
            about = {"operator": key[0], "lane": key[1], **{name: now for (name, usual), now in values if now != usual}}
            shared = self._shared[key] = encode(about)[1:-1]
        text = f'{{"index": {index}, {shared}'
        if activity.scope:
            text += (
                f', "scope": {{{", ".join(f"{quoted(label)}: {_label(value)}" for label, value in activity.scope)}}}'
            )
        if activity.needs is not None:
            text += f', "needs": [{", ".join(map(str, activity.needs))}]'
        if activity.waits:
            text += f', "waits": [{", ".join(f"[{waited}, {quoted(reason)}]" for waited, reason in activity.waits)}]'
        return text

    def _us(self, nanoseconds: int) -> float:
        """Microseconds of the trace."""
        return (nanoseconds + self.lead_ns) / 1e3

    def _process(self, timeline: Timeline, drawn: Tracks, pid: int, numbers: Iterator[int]) -> Iterator[str]:
        """One timeline as one process."""
        tids = [next(numbers) for _ in drawn.lanes]
        yield from _named(pid, f"{timeline.kind} on {timeline.device}", pid)
        for place, (lane, tid) in enumerate(zip(drawn.lanes, tids, strict=True)):
            yield from _named(pid, lane.title, place, tid)
        yield from self._slices(timeline, drawn, pid, tids)
        start, us = timeline.flat.start.tolist(), self._us
        for arrow in drawn.arrows:
            both = f'"cat": "wait", "name": {quoted(arrow.reason)}, "id": {next(numbers)}, "pid": {pid}'
            tail, head = (tids[drawn.lane[index]] for index in (arrow.waited, arrow.index))
            yield f'{{"ph": "s", {both}, "tid": {tail}, "ts": {us(arrow.leaves_ns)}}}'
            yield f'{{"ph": "f", "bp": "e", {both}, "tid": {head}, "ts": {us(start[arrow.index])}}}'
        for name, unit, times, values in counters(timeline):
            begin = f'{{"ph": "C", "pid": {pid}, "name": "{name}", "ts": '
            for time, value in zip(times, values, strict=True):
                yield f'{begin}{us(time)}, "args": {{"{unit}": {value}}}}}'

    def _slices(self, timeline: Timeline, drawn: Tracks, pid: int, tids: list[int]) -> Iterator[str]:
        """A row per activity that started, in order of start; one that never ended is a beginning without an end."""
        streams = _numbered(timeline)
        start, end = timeline.flat.start.tolist(), timeline.flat.end.tolist()
        for index, lane in drawn.lane.items():
            activity, length_ns = timeline.activities[index], end[index] - start[index]
            name, category, args = activity.name, "plan", self.describe(index, activity)
            if pid == ACTUAL:
                category = SLICES[is_copy(activity)]
                if category == "gpu_memcpy":
                    name = _copy(activity)
                    args += f', "node": {quoted(activity.name)}, {_moved(activity, length_ns)}'
                stream = streams[activity.stream]
                args += f', "device": 0, "context": 1, "stream": {stream}, "correlation": {launched(index)}'
            length = f'"ph": "X", "dur": {length_ns / 1e3}' if end[index] != NEVER else '"ph": "B"'
            place = f'"pid": {pid}, "tid": {tids[lane]}, "ts": {self._us(start[index])}'
            yield f'{{{length}, {place}, "name": {quoted(name)}, "cat": "{category}", "args": {args}}}}}'

    def _host(self, tid: int, waits: int) -> Iterator[str]:
        """The host's calls, each after the other, and the moments at which streams had waited long enough."""
        yield from _named(HOST, "host: calls in their order, not timed", HOST)
        yield from _named(HOST, "launches", 0, tid)
        yield from _named(ACTUAL, "waits", len(self._tracks.lanes), waits)
        length = f'"ts": 0, "dur": {self._us(self._timeline.flat.makespan_ns)}, "pid": {HOST}, "tid": {tid}'
        yield f'{{"ph": "X", {length}, "name": "ProfilerStep#0", "cat": "user_annotation", "args": {{}}}}'
        streams = _numbered(self._timeline)
        for place, call in enumerate(self._calls):
            about = f'"name": "{call.name}", "cat": "cuda_runtime", "args": {{"correlation": {call.correlation}}}'
            time = f'"ts": {place * CALL_NS / 1e3}, "dur": {CALL_NS / 1e3}'
            yield f'{{"ph": "X", {time}, "pid": {HOST}, "tid": {tid}, {about}}}'
            if call.arrow is not None:
                yield self._waited(call, waits, streams)

    def _waited(self, call: Call, tid: int, streams: dict[str, int]) -> str:
        """The end of a wait: a row of no length, since tools take it for something that kept the device busy.

        HolisticTraceAnalysis puts waits and launches in order by whole microseconds: this one comes before its launch.
        """
        assert call.arrow is not None
        waiter, waited = (self._timeline.activities[index].stream for index in (call.arrow.index, call.arrow.waited))
        args = f'"stream": {streams[waiter]}, "correlation": {call.correlation}, "device": 0, "context": 1'
        event = record(self._timeline, call.arrow.waited)
        args += f', "wait_on_stream": {streams[waited]}, "wait_on_cuda_event_record_corr_id": {event}'
        time = max(0, (call.arrow.leaves_ns + self.lead_ns) // 1000 - 1)
        place = f'"ts": {time}, "dur": 0, "pid": {ACTUAL}, "tid": {tid}'
        return f'{{"ph": "X", {place}, "name": "Stream Wait Event", "cat": "cuda_sync", "args": {{{args}}}}}'


def encode(value: object) -> str:
    """``value`` as JSON.

    Raises:
        FileError: a figure is NaN or infinite, or no number of Python's.
    """
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, dict):
        return f"{{{', '.join(f'{quoted(name)}: {encode(part)}' for name, part in value.items())}}}"
    try:
        return _ENCODER.encode(value)
    except (TypeError, ValueError) as error:
        raise FileError(
            f"a figure cannot be saved ({error}): give finite Python numbers as work and bandwidths"
        ) from error


def quoted(text: str) -> str:
    r"""``text`` as a string of JSON that Perfetto shows as it is.

    It shows escapes as they stand in the file, so only what does not print is one; and to it, a quotation mark after a
    backslash is a part of the string, so none ends in a backslash.

    >>> print(quoted("\u6f22"), quoted("a" + chr(27)), quoted("C:" + chr(92)))
    "\u6f22" "a\u001b" "C:\u005c"
    """
    shown = encode_basestring(text)
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else encode_basestring_ascii(c)[1:-1] for c in shown)
    return f'{shown[:-3]}\\u005c"' if text.endswith("\\") else shown


def _label(value: Any) -> str:
    """A label as JSON can hold it: what it cannot hold is said in words."""
    if type(value) is int:
        return str(value)  # nearly all are: the number of a layer
    fits = value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value))
    return encode(value if fits else str(value))


def _named(pid: int, name: str, place: int, tid: int = 0) -> Iterator[str]:
    """What a process, or one of its lanes, is called, and where it stands."""
    what = "thread" if tid else "process"
    for key, args in (("name", f'"name": {quoted(name)}'), ("sort_index", f'"sort_index": {place}')):
        yield f'{{"ph": "M", "pid": {pid}, "tid": {tid or pid}, "name": "{what}_{key}", "args": {{{args}}}}}'


def _numbered(timeline: Timeline) -> dict[str, int]:
    """Streams by number, as CUDA knows them; HolisticTraceAnalysis passes over stream 0."""
    return {stream: number for number, stream in enumerate(timeline.streams, 1)}


def _copy(activity: Activity) -> str:
    """A copy as Kineto names it, "Memcpy HtoD (prefetch)": by its first word tools tell it from a kernel."""
    if activity.name.startswith("Memcpy "):
        return activity.name
    up = activity.stream == "d2h" or activity.d2h_bytes > activity.h2d_bytes
    return f"Memcpy {'DtoH' if up else 'HtoD'} ({activity.name})"


def _moved(activity: Activity, length_ns: int) -> str:
    """The bytes of a copy, and how many it moved a second where that is known."""
    moved = activity.h2d_bytes + activity.d2h_bytes
    rate = moved / length_ns if 0 < length_ns < NEVER // 2 else 0.0
    return f'"bytes": {round(moved)}, "memory bandwidth (GB/s)": {rate}'
