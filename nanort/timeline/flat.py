"""A timeline as arrays: whole nanoseconds, and who waits for whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nanort.errors import TimelineError
from nanort.timeline import units

if TYPE_CHECKING:
    from nanort.timeline.events import Timeline

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]
NEVER = np.iinfo(np.int64).max
"""The nanosecond at which nothing starts and nothing ends."""

NEED = "need"
RESOURCE = "resource"
STREAM = "stream"
UNKNOWN_NEEDS = "nothing says what needs what: a launch gap may be a wait for another stream, or thread"


@dataclass(frozen=True, slots=True)
class Edges:
    """A list of indices for every activity, all lists one after the other.

    Attributes:
        at: activity ``i`` has those from ``at[i]`` to ``at[i + 1]``.
        to: the indices.
        owner: the activity that has each.
    """

    at: Ints
    to: Ints
    owner: Ints

    @staticmethod
    def of(lists: Sequence[Sequence[int]]) -> Edges:
        """These lists, one an activity."""
        counts = np.fromiter(map(len, lists), np.int64, len(lists))
        at = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts)))
        to = np.fromiter(chain.from_iterable(lists), np.int64, int(at[-1]))
        return Edges(at, to, np.repeat(np.arange(len(lists)), counts))

    def lists(self) -> list[list[int]]:
        """The lists."""
        at, to = self.at.tolist(), self.to.tolist()
        return [to[low:high] for low, high in pairwise(at)]

    def latest(self, times: Ints, which: Array | None = None) -> tuple[Ints, Ints]:
        """The latest of ``times`` over each activity's list, 0 over an empty one, and whose it is, -1 for nobody's.

        ``which`` says of each index in the lists whether it counts.
        """
        to, owner = (self.to, self.owner) if which is None else (self.to[which], self.owner[which])
        found, who = np.zeros(len(self.at) - 1, np.int64), np.full(len(self.at) - 1, -1)
        by_time = np.lexsort((times[to], owner))  # of the equal, the last assignment stays
        found[owner[by_time]] = times[to[by_time]]
        who[owner[by_time]] = to[by_time]
        return found, who


@dataclass(frozen=True, slots=True)
class Flat:
    """What analyses compute with.

    Attributes:
        start, end: nanoseconds, ``NEVER`` for what never started or never ended.
        began, ended: which started, and which of them ran to their end.
        lasted_ns: how many nanoseconds those ran, 0 for the others.
        makespan_ns: the last nanosecond of which anything is known.
        lane, operator: of each activity, as places in ``lanes`` and ``operators``.
        lanes, operators: streams in the order of the timeline, operators in alphabetical order.
        needs: the graph's edges; ``knows_needs`` says for which activities they are known.
        waits: across streams, with the ``reasons``, one a wait.
        order: the activities by lane, start and end; in each lane, those that never started come last.
        before: of those that started before each on its lane, the last to end; -1 where there is none, and for what
            never started.
    """

    start: Ints
    end: Ints
    began: Flags
    ended: Flags
    lasted_ns: Ints
    makespan_ns: int
    lane: Ints
    operator: Ints
    lanes: tuple[str, ...]
    operators: tuple[str, ...]
    needs: Edges
    knows_needs: Flags
    waits: Edges
    reasons: tuple[str, ...]
    order: Ints
    before: Ints

    def blockers(self) -> Edges:
        """What each activity that started had to wait for: its needs, its waits and the one before it on its lane.

        Only what started before it, or with it, and ended counts: clocks that disagree make no cycles.
        """
        behind = np.flatnonzero(self.before >= 0)
        owner = np.concatenate((self.needs.owner, self.waits.owner, behind))
        to = np.concatenate((self.needs.to, self.waits.to, self.before[behind]))
        rank = np.empty(len(self.start), np.int64)
        rank[np.lexsort((self.end, self.start))] = np.arange(len(rank))
        real = (self.start[owner] != NEVER) & (self.end[to] != NEVER) & (rank[to] < rank[owner])
        owner, to = owner[real], to[real]
        by_owner = np.argsort(owner, kind="stable")
        return Edges(np.searchsorted(owner[by_owner], np.arange(len(rank) + 1)), to[by_owner], owner[by_owner])

    def for_resources(self) -> Flags:
        """Which waits are for order that only resources ask for."""
        return np.fromiter((reason == RESOURCE for reason in self.reasons), np.bool_, len(self.reasons))


def flat(timeline: Timeline) -> Flat:
    """The arrays of ``timeline``.

    Raises:
        TimelineError: an activity needs, or waits for, one that is not there.
    """
    activities, lanes = timeline.activities, timeline.streams
    operators = tuple(sorted({activity.operator for activity in activities}))
    start, end = nanoseconds(timeline.start), nanoseconds(timeline.end)
    lane = _places(lanes, [activity.stream for activity in activities])
    order = np.lexsort((end, start, lane))
    return Flat(
        start=start,
        end=end,
        began=start != NEVER,
        ended=end != NEVER,
        lasted_ns=np.where(end != NEVER, end - start, 0),
        makespan_ns=int(max(start.max(where=start != NEVER, initial=0), end.max(where=end != NEVER, initial=0))),
        lane=lane,
        operator=_places(operators, [activity.operator for activity in activities]),
        lanes=lanes,
        operators=operators,
        needs=_edges(timeline, [activity.needs or () for activity in activities]),
        knows_needs=np.fromiter((activity.needs is not None for activity in activities), np.bool_, len(activities)),
        waits=_edges(timeline, [[index for index, _ in activity.waits] for activity in activities]),
        reasons=tuple(reason for activity in activities for _, reason in activity.waits),
        order=order,
        before=_before(start, end, order, np.searchsorted(lane[order], np.arange(len(lanes) + 1)).tolist()),
    )


def _edges(timeline: Timeline, lists: Sequence[Sequence[int]]) -> Edges:
    """These lists, once they are known to name activities."""
    edges = Edges.of(lists)
    astray = np.flatnonzero((edges.to < 0) | (edges.to >= len(lists)))
    if len(astray):
        owner, to = int(edges.owner[astray[0]]), int(edges.to[astray[0]])
        raise TimelineError(
            f"{units.plain(timeline.activities[owner].name, 48)!r} needs, or waits for, activity {to}: give indices "
            f"from 0 to {len(lists) - 1}"
        )
    return edges


def _before(start: Ints, end: Ints, order: Ints, edges: list[int]) -> Ints:
    """For each activity, that of its lane which :class:`Flat` calls the one before; lanes begin at ``edges``."""
    before = np.full(len(order), -1)
    for low, high in pairwise(edges):
        mine = order[low:high]
        ended = np.where(end[mine] == NEVER, -1, end[mine])
        latest = np.maximum.accumulate(np.where(ended == np.maximum.accumulate(ended), np.arange(len(mine)), 0))[:-1]
        follows = (start[mine[1:]] != NEVER) & (ended[latest] >= 0)
        before[mine[1:][follows]] = mine[latest][follows]
    return before


def nanoseconds(seconds: npt.NDArray[np.float64]) -> Ints:
    """Whole nanoseconds; ``NEVER`` for NaN."""
    known = ~np.isnan(seconds)
    whole = np.full(len(seconds), NEVER, np.int64)
    whole[known] = np.rint(seconds[known] * 1e9)
    return whole


def _places(names: Sequence[str], used: Sequence[str]) -> Ints:
    """Where each name stands in ``names``."""
    places = {name: place for place, name in enumerate(names)}
    return np.fromiter(map(places.__getitem__, used), np.int64, len(used))
