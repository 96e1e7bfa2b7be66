"""How busy every resource of a timeline was.

All of it is sums of boxes: a box is a weight between a start and an end. Activities that never ended count for nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nanort.partition import ENGINES

if TYPE_CHECKING:
    from nanort.timeline.events import Timeline

Array = npt.NDArray[Any]  # float64 seconds, or int64 nanoseconds
SMS = "sms"
RESOURCES = (SMS, *ENGINES)


def column(timeline: Timeline, name: str) -> npt.NDArray[np.float64]:
    """One field of every activity as an array."""
    return np.fromiter(map(attrgetter(name), timeline.activities), np.float64, len(timeline))


def grouped(keys: Sequence[Hashable]) -> Iterator[tuple[Any, npt.NDArray[np.int64]]]:
    """Every distinct key with the indices at which it stands."""
    places: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        places[key].append(index)
    for key, indices in places.items():
        yield key, np.array(indices)


def levels(start: Array, end: Array, weight: Array) -> tuple[Array, Array]:
    """Times at which a sum of boxes changes, and the sum from each time on; the last is exactly 0."""
    times, where = np.unique(np.concatenate((start, end)), return_inverse=True)
    sums = np.cumsum(np.bincount(where, np.concatenate((weight, -weight)), len(times)))
    open_boxes = np.cumsum(np.bincount(where, np.repeat((1, -1), len(start)), len(times)))
    sums[open_boxes == 0] = 0.0  # where nothing runs, no rounding error may stay behind
    return times, sums


def merged(start: Array, end: Array) -> tuple[Array, Array]:
    """The disjoint intervals that the boxes cover."""
    times, running = levels(start, end, np.ones(len(start)))
    edges = np.diff((running > 0).astype(np.int8), prepend=0)
    return times[edges > 0], times[edges < 0]


def elapsed(times: Array, flags: Array, until: Array) -> Array:
    """How long ``flags``, each from one of the ``times`` to the next, were true before each of ``until``."""
    if not len(times):
        return np.zeros_like(until)
    lengths = np.where(flags[:-1], np.diff(times), 0)
    before = np.concatenate((np.zeros(1, lengths.dtype), np.cumsum(lengths)))
    place = np.searchsorted(times, until, "right") - 1
    return np.where(place < 0, 0, before[place] + np.where(flags[place], until - times[place], 0))


def group_sms(timeline: Timeline, start: Array, end: Array) -> dict[str, tuple[Array, Array, Array]]:
    """The SMs that each group held, as boxes; its lanes share its SMs, so they count once."""
    sms, ended = column(timeline, "sms"), ~np.isnan(timeline.end)
    boxes = {}
    for name, group in grouped([a.group or a.stream for a in timeline.activities]):
        ran = group[ended[group]]
        times, held = levels(start[ran], end[ran], sms[ran])
        boxes[name] = (times[:-1], times[1:], np.minimum(held, sms[group].max())[:-1])
    return boxes


def sms_in_use(timeline: Timeline, start: Array, end: Array) -> tuple[Array, Array]:
    """Times and the SMs in use from each on."""
    boxes = group_sms(timeline, start, end).values()
    if not boxes:
        return np.empty(0), np.empty(0)
    times, total = levels(*(np.concatenate(part) for part in zip(*boxes, strict=True)))
    return times, np.minimum(total, timeline.sm_capacity or np.inf)


def stream_sms(timeline: Timeline) -> dict[str, int]:
    """The SMs of each stream: the most that one of its activities may hold; 0 for a copy engine."""
    sms = dict.fromkeys(timeline.streams, 0)
    for activity in timeline.activities:
        sms[activity.stream] = max(sms[activity.stream], activity.sms)
    return sms


def utilization(timeline: Timeline) -> dict[str, float]:
    """How much of what there was has been used, 0 to 1.

    ``"sms"`` is SM-seconds held, ``"hbm"``, ``"h2d"`` and ``"d2h"`` are bytes moved, over makespan times capacity; a
    resource whose capacity is not known is left out. ``"busy g0"`` is the share of the makespan in which stream g0 ran
    something.
    """
    makespan = timeline.makespan
    ended = ~np.isnan(timeline.end)
    times, held = sms_in_use(timeline, timeline.start, timeline.end)
    used = {SMS: (float(held[:-1] @ np.diff(times)), float(timeline.sm_capacity))}
    for name in ("hbm", *ENGINES):
        used[name] = (float(column(timeline, f"{name}_bytes")[ended].sum()), getattr(timeline, f"{name}_bandwidth"))
    shares = {
        name: amount / whole if (whole := makespan * most) else 0.0 for name, (amount, most) in used.items() if most
    }
    for stream, (start, end) in busy(timeline, timeline.start, timeline.end).items():
        shares[f"busy {stream}"] = min(1.0, float((end - start).sum()) / makespan) if makespan else 0.0
    return shares


def busy(timeline: Timeline, start: Array, end: Array) -> dict[str, tuple[Array, Array]]:
    """The disjoint intervals in which each stream ran something."""
    found, ended = {}, ~np.isnan(timeline.end)
    for stream, indices in grouped([activity.stream for activity in timeline.activities]):
        ran = indices[ended[indices]]
        found[stream] = merged(start[ran], end[ran])
    return found
