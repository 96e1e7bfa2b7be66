"""Timelines whose critical path, idle time and overlap are known to everybody: what starts, starts when it can."""

from __future__ import annotations

import random
from typing import Any

from nanort.timeline.activities import Activity
from nanort.timeline.events import Timeline

CAPACITY: dict[str, Any] = {
    "device": "h200", "sm_capacity": 132, "flops": 9e14, "hbm_bandwidth": 4e12, "h2d_bandwidth": 5e10,
    "d2h_bandwidth": 5e10,
}  # fmt: skip
COUNT = 50


def planted(seed: int) -> Timeline:
    """A measured timeline with its plan, on two or three SM groups and one copy engine.

    An activity starts when the last of those it waits for ends; where that is the one before it on its own stream, now
    and then up to five microseconds later. No two last equally long. Times are whole nanoseconds, for odd seeds whole
    microseconds.
    """
    rng = random.Random(seed)
    grain = 1000 if seed % 2 else 1
    engine = rng.choice(("h2d", "d2h"))
    streams = [*(f"g{number}" for number in range(rng.randint(2, 3))), engine]
    chosen = streams * 2 + [rng.choice(streams) for _ in range(rng.randint(10, 60))]
    waits = [_waits(rng, chosen, index) for index in range(len(chosen))]
    activities = [
        _activity(f"layer{index // 8}.{index}", stream, waited, index)
        for index, (stream, waited) in enumerate(zip(chosen, waits, strict=True))
    ]
    plan = Timeline(activities, *_times(rng, activities, grain), kind="planned", **CAPACITY)
    return plan.with_times(*_times(rng, activities, grain), kind="measured")


def _waits(rng: random.Random, chosen: list[str], index: int) -> tuple[tuple[int, str], ...]:
    """Up to two of the last activities on other streams."""
    others = [earlier for earlier in range(max(0, index - 12), index) if chosen[earlier] != chosen[index]]
    waited = rng.sample(others, min(len(others), rng.choice((0, 1, 1, 2))))
    return tuple((earlier, rng.choice(("data", "state", "resource", "after"))) for earlier in sorted(waited))


def _activity(name: str, stream: str, waits: tuple[tuple[int, str], ...], index: int) -> Activity:
    about: dict[str, Any] = {"needs": tuple(waited for waited, _ in waits), "waits": waits, "piece": index % 4}
    if not stream.startswith("g"):
        return Activity(name, f"to_{stream}", stream, **{f"{stream}_bytes": 1e6}, bound="pcie", **about)
    operator = ("linear", "decode_attention", "rms_norm")[index % 3]
    return Activity(name, operator, stream, stream, 40, 1e9, 2e6, bound="memory", where="model.py:12", **about)


def _times(rng: random.Random, activities: list[Activity], grain: int) -> tuple[list[float], list[float]]:
    """Starts and ends in seconds, multiples of ``grain`` nanoseconds."""
    lengths = rng.sample(range(20_000 // grain, 400_000 // grain), len(activities))
    free: dict[str, int] = {}
    start, end = [], []
    for activity, length in zip(activities, lengths, strict=True):
        before = free.get(activity.stream, 0)
        begin = max([before, *(end[waited] for waited, _ in activity.waits)])
        if before == begin > 0 and rng.random() < 0.3:
            begin += rng.randint(1, 5000 // grain)
        start.append(begin)
        end.append(begin + length)
        free[activity.stream] = end[-1]
    return [time * grain / 1e9 for time in start], [time * grain / 1e9 for time in end]
