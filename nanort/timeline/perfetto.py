"""A timeline as Perfetto's own protobuf trace: named tracks within tracks, counters with units, flows, annotations."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, BinaryIO

from nanort.drafts import draft
from nanort.errors import BackendError
from nanort.timeline.activities import Activity
from nanort.timeline.events import Timeline
from nanort.timeline.flat import NEVER
from nanort.timeline.kineto import USUAL
from nanort.timeline.tracks import Tracks, counters, tracks

SEQUENCE = 1  # all packets are of one writer
ENDED, BEGINS, ENDS_AT_ONCE = range(3)
"""What comes first of what happens in one nanosecond of a lane."""


def save(timeline: Timeline, path: str | os.PathLike[str], plan: Timeline | None = None) -> None:
    """Writes ``timeline``, and ``plan`` beside it, to ``path`` at once, for ui.perfetto.dev and trace_processor.

    Raises:
        BackendError: the package perfetto is not installed.
    """
    try:
        from perfetto.protos.perfetto.trace import perfetto_trace_pb2
    except ImportError as error:
        raise BackendError(
            f"{error.name} is not installed: pip install 'nanort[perfetto]', or save JSON, which Perfetto opens too"
        ) from error
    with draft(path) as beside, beside.open("xb") as file:
        writer = _Writer(file, perfetto_trace_pb2)
        writer.device(timeline, f"{timeline.kind} on {timeline.device}")
        if plan is not None:
            writer.device(plan, f"plan: {plan.kind} on {plan.device}")


@dataclass(frozen=True, slots=True)
class _Writer:
    """Packets written one by one; no two tracks, and no two flows, have the same number."""

    file: BinaryIO
    protos: Any
    tracks: Iterator[int] = field(default_factory=lambda: count(1))
    flows: Iterator[int] = field(default_factory=lambda: count(1))

    def device(self, timeline: Timeline, title: str) -> None:
        """One timeline: a track for the device, and in it groups of SMs, their streams and lanes, and counters."""
        drawn, root = tracks(timeline), self.track(title, 0)
        lanes = self.lanes(timeline, drawn, root)
        leaving, arriving = defaultdict(list), defaultdict(list)
        for arrow, flow in zip(drawn.arrows, self.flows, strict=False):
            leaving[arrow.waited].append(flow)
            arriving[arrow.index].append(flow)
        for time, kind, index in _moments(timeline, drawn):
            packet = self.event(time, lanes[drawn.lane[index]], "SLICE_BEGIN" if kind == BEGINS else "SLICE_END")
            if kind == BEGINS:
                activity = timeline.activities[index]
                packet.track_event.name = _utf8(activity.name)
                packet.track_event.categories.append(_utf8(activity.operator))
                packet.track_event.flow_ids.extend(leaving[index])
                packet.track_event.terminating_flow_ids.extend(arriving[index])
                self.annotate(packet.track_event, activity, index)
            self.write(packet)
        for name, unit, times, values in counters(timeline):
            if times:
                number = self.track(name, root, unit)
                for time, value in zip(times, values, strict=True):
                    packet = self.event(time, number, "COUNTER")
                    packet.track_event.double_counter_value = value
                    self.write(packet)

    def lanes(self, timeline: Timeline, drawn: Tracks, root: int) -> list[int]:
        """The track of each lane: a stream's first, in the track of its group, holds the stream's further ones."""
        group = {activity.stream: activity.group for activity in timeline.activities}
        groups: dict[str, int] = {"": root}
        first: dict[str, int] = {}
        found = []
        for lane in drawn.lanes:
            if lane.number:
                found.append(self.track(lane.title, first[lane.stream]))
                continue
            name = group[lane.stream]
            if name not in groups:
                groups[name] = self.track(name, root)
            first[lane.stream] = self.track(lane.title, groups[name])
            found.append(first[lane.stream])
        return found

    def track(self, name: str, parent: int, unit: str = "") -> int:
        """The number of a new track in the order of the file; with a unit, it is a counter."""
        packet = self.protos.TracePacket(trusted_packet_sequence_id=SEQUENCE)
        about = packet.track_descriptor
        about.uuid = number = next(self.tracks)
        about.name = _utf8(name)
        about.child_ordering = about.ChildTracksOrdering.EXPLICIT
        about.sibling_order_rank = number
        about.sibling_merge_behavior = about.SIBLING_MERGE_BEHAVIOR_NONE
        if parent:
            about.parent_uuid = parent
        if unit:
            about.counter.unit_name = unit
        self.write(packet)
        return number

    def event(self, time: int, track: int, kind: str) -> Any:
        """A packet that says what happens on a track at this nanosecond."""
        packet = self.protos.TracePacket(trusted_packet_sequence_id=SEQUENCE, timestamp=time)
        packet.track_event.track_uuid = track
        packet.track_event.type = getattr(packet.track_event, f"TYPE_{kind}")
        return packet

    def annotate(self, event: Any, activity: Activity, index: int) -> None:
        """What else is known of the activity, less what is as usual."""
        known: dict[str, Any] = {"index": index}
        known |= {name: value for name, usual in USUAL.items() if (value := getattr(activity, name)) != usual}
        known |= {f"scope.{label}": value for label, value in activity.scope}
        for name, value in known.items():
            about = event.debug_annotations.add(name=_utf8(name))
            if isinstance(value, float):
                about.double_value = value
            elif isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
                about.int_value = value
            else:
                about.string_value = _utf8(str(value))

    def write(self, packet: Any) -> None:
        """Adds it to the file, which is a list of packets."""
        trace = self.protos.Trace()
        trace.packet.append(packet)
        self.file.write(trace.SerializeToString())


def _moments(timeline: Timeline, drawn: Tracks) -> list[tuple[int, int, int]]:
    """Nanosecond, kind and activity of every beginning and end, in order of time."""
    start, end = timeline.flat.start.tolist(), timeline.flat.end.tolist()
    moments = [(start[index], BEGINS, index) for index in drawn.lane]
    ended = [index for index in drawn.lane if end[index] != NEVER]
    moments += [(end[index], ENDS_AT_ONCE if end[index] == start[index] else ENDED, index) for index in ended]
    return sorted(moments)


def _utf8(text: str) -> str:
    """``text`` as protobuf can hold it and SQL read it to its end: half a character, and NUL, are said in words."""
    if text.isascii() and "\0" not in text:
        return text
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
