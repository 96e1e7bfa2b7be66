"""Overlap that was not had: operators with nothing between them in the graph that never ran at the same time."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from nanort.partition import ENGINES
from nanort.timeline.flat import Flat, Ints

if TYPE_CHECKING:
    from nanort.timeline.events import Timeline

OPERATORS = 24
"""The operators that are asked about: those with most time."""
EXACT = 4096
"""Activities up to which all paths are followed; of more, those from and to an even sample of each operator's."""
SAMPLES = 1024

WHYS = SAME_SMS, SAME_ENGINE, MEMORY, ORDERED, NEVER_READY, BEHIND = (
    "same SMs",
    "same copy engine",
    "both need memory",
    "ordered by a wait (resource)",
    "never ready at the same time",
    "behind others on its stream",
)


@dataclass(frozen=True, slots=True)
class Missed:
    """An operator beside which another could have run and never did.

    Attributes:
        other: the operator.
        possible_ns: what the two could share at most: of each, the activities that have no path to one of the other.
        why: the first that holds of ``"same SMs"``: they are on one stream, or need more SMs together than there are;
            ``"same copy engine"``; ``"both need memory"``: each is bound by it alone; ``"ordered by a wait
            (resource)"``; ``"never ready at the same time"``; ``"behind others on its stream"``: one was ready while
            the other ran, and its stream ran something else.
    """

    other: str
    possible_ns: int
    why: str


def missed(timeline: Timeline) -> dict[str, tuple[Missed, ...]]:
    """By operator, what it could have run beside, the longest first; nothing where nobody knows what needs what."""
    flat = timeline.flat
    spent = np.bincount(flat.operator, flat.lasted_ns, len(flat.operators))
    asked = [operator for operator in np.argsort(-spent, kind="stable")[:OPERATORS].tolist() if spent[operator]]
    found: dict[int, list[Missed]] = {operator: [] for operator in asked}
    if flat.knows_needs.any() and len(asked) > 1:
        members = {operator: np.flatnonzero((flat.operator == operator) & flat.ended) for operator in asked}
        free = _free(flat, members)
        together, in_reach = _meetings(flat, members)
        ordered = _ordered(flat)
        for (a, one), (b, other) in combinations(enumerate(asked), 2):
            possible = min(free[one, other], free[other, one])
            if not possible or together[a] >> b & 1:
                continue
            why = _on_one(timeline, members[one], members[other])
            why = why or (ORDERED if (one, other) in ordered or (other, one) in ordered else "")
            why = why or (BEHIND if in_reach[a] >> b & 1 or in_reach[b] >> a & 1 else NEVER_READY)
            found[one].append(Missed(flat.operators[other], possible, why))
            found[other].append(Missed(flat.operators[one], possible, why))
    return {
        flat.operators[operator]: tuple(sorted(pairs, key=lambda pair: -pair.possible_ns))
        for operator, pairs in found.items()
    }


def _free(flat: Flat, members: dict[int, Ints]) -> dict[tuple[int, int], int]:
    """For two operators, the nanoseconds of the first's activities that have no path to or from one of the second's."""
    exact = len(flat.start) <= EXACT
    most = EXACT if exact else SAMPLES // len(members)
    places: dict[int, int] = {}
    spans: dict[int, tuple[int, int]] = {}
    for operator, mine in members.items():
        known = mine[flat.knows_needs[mine]]
        sample = known[np.linspace(0, len(known) - 1, min(len(known), most)).astype(np.int64)].tolist()
        spans[operator] = (len(places), len(places) + len(sample))
        places.update(zip(sample, range(len(places), len(places) + len(sample)), strict=True))
    width = -(-len(places) // 8)
    related = b"".join([reached.to_bytes(width, "little") for reached in _related(flat, places)])
    sets = np.frombuffer(related, np.uint8).reshape(len(flat.start), width)
    free: dict[tuple[int, int], int] = {}
    for other, (low, high) in spans.items():
        bits = np.zeros(8 * width, np.uint8)
        bits[low:high] = 1
        mask = np.packbits(bits, bitorder="little")
        touched = slice(low // 8, -(-high // 8))
        apart = flat.knows_needs & (~sets[:, touched] & mask[touched]).any(1) & flat.ended
        spent = np.zeros(len(flat.operators), np.int64)
        np.add.at(spent, flat.operator[apart], flat.lasted_ns[apart])
        free.update(((operator, other), int(spent[operator])) for operator in members)
    return free


def _related(flat: Flat, places: dict[int, int]) -> list[int]:
    """For every activity, those in ``places`` that it has a path from or to, as a set of bits."""
    needs = flat.needs.lists()
    order = np.lexsort((flat.end, flat.start)).tolist()
    own = [0] * len(needs)
    for index, place in places.items():
        own[index] = 1 << place
    above, below = [0] * len(needs), [0] * len(needs)
    for index in order:
        reached = own[index]
        for need in needs[index]:
            reached |= above[need]
        above[index] = reached
    for index in reversed(order):
        below[index] = reached = below[index] | own[index]
        for need in needs[index]:
            below[need] |= reached
    return [one | other for one, other in zip(above, below, strict=True)]


def _meetings(flat: Flat, members: dict[int, Ints]) -> tuple[list[int], list[int]]:
    """For each operator, as bits: those that ran while it ran, and those that ran while it was ready, or ran."""
    ready = np.minimum(flat.needs.latest(flat.end)[0], flat.start)
    every = np.concatenate(list(members.values()))
    times = np.sort(np.concatenate((ready[every], flat.start[every], flat.end[every])))
    takes_time = np.diff(times) > 0

    def held(since: Ints) -> Ints:
        """From each of the times to the next, as bits, the operators with an activity between ``since`` and its end."""
        bits = np.zeros(len(times), np.int64)
        for place, mine in enumerate(members.values()):
            change = np.bincount(np.searchsorted(times, since[mine]), minlength=len(times))
            change -= np.bincount(np.searchsorted(times, flat.end[mine]), minlength=len(times))
            bits |= (np.cumsum(change) > 0).astype(np.int64) << place
        return bits[:-1][takes_time]

    running = held(flat.start)

    def beside(bits: Ints) -> list[int]:
        """For each operator, all that ran while its bit was set."""
        return [int(np.bitwise_or.reduce(running[bits >> place & 1 > 0])) for place in range(len(members))]

    return beside(running), beside(held(ready))


def _ordered(flat: Flat) -> set[tuple[int, int]]:
    """The operators of which one waited for the other only for its resources."""
    for_resources = flat.for_resources()
    waited, on = flat.operator[flat.waits.owner[for_resources]], flat.operator[flat.waits.to[for_resources]]
    return set(zip(waited.tolist(), on.tolist(), strict=True))


def _on_one(timeline: Timeline, one: Ints, other: Ints) -> str:
    """The one thing that all activities of both need, or "" if there is none."""
    flat = timeline.flat
    lanes = {*flat.lane[one].tolist(), *flat.lane[other].tolist()}
    if len(lanes) == 1:
        return SAME_ENGINE if flat.lanes[lanes.pop()] in ENGINES else SAME_SMS
    a, b = ([timeline.activities[index] for index in mine.tolist()] for mine in (one, other))
    fewest = min(activity.sms for activity in a), min(activity.sms for activity in b)
    shared = {activity.group for activity in a} & {activity.group for activity in b}
    if not shared and all(fewest) and 0 < timeline.sm_capacity < sum(fewest):
        return SAME_SMS
    return MEMORY if {activity.bound for activity in (*a, *b)} == {"memory"} else ""
