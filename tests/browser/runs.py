"""Timelines that the report is tried on: one whose answers are known, odd ones, and a large one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from nanort.timeline.activities import Activity
from nanort.timeline.events import Timeline

ABOUT: dict[str, Any] = {
    "device": "h200",
    "sm_capacity": 132,
    "flops": 780e12,
    "hbm_bandwidth": 4.3e12,
    "h2d_bandwidth": 50e9,
    "d2h_bandwidth": 50e9,
}
US = 1e-6


def activity(name: str, stream: str = "g0", **about: Any) -> Activity:
    """One activity whose operator is its name up to a dot or slash."""
    group = "" if stream in ("h2d", "d2h") else stream
    about = {"operator": name.split(".")[-1].split("/")[0], "group": group, "sms": 64 if group else 0} | about
    return Activity(name, stream=stream, where=f"model.py:{len(name)}", **about)


ACTIVITIES = (
    activity("layer0.linear/0", flops=3e10, hbm_bytes=5e7, bound="compute", needs=(), scope=(("layer", 0),)),
    activity("layer0.fetch/0", "h2d", h2d_bytes=2e6, bound="pcie", needs=(), scope=(("layer", 0),)),
    activity(
        "layer0.attention/0", "g1", flops=1e9, hbm_bytes=1.2e8, bound="memory", needs=(0, 1),
        waits=((0, "data"), (1, "data")), scope=(("layer", 0),),
    ),
    activity("layer0.linear/1", flops=3e10, hbm_bytes=5e7, bound="compute", needs=(), piece=1, scope=(("layer", 0),)),
    activity("layer1.norm/0", "g1", flops=1e7, hbm_bytes=1e7, bound="launch", needs=(2,), scope=(("layer", 1),)),
    activity(
        "layer1.join", flops=6e10, hbm_bytes=1e8, bound="compute", needs=(3, 4), waits=((4, "data"),),
        scope=(("layer", 1),),
    ),
)  # fmt: skip
START, END = np.array([0, 0, 40, 30, 80, 90]), np.array([30, 40, 80, 70, 90, 130])
PLANNED_START, PLANNED_END = np.array([0, 0, 30, 30, 70, 80]), np.array([30, 30, 70, 60, 80, 120])


def known() -> Timeline:
    """Six launches on three lanes in 130 µs, planned in 120: fetch, attention, norm and join are the critical path."""
    limits = {"serial": 190 * US, "longest path": 120 * US, "SMs": 100 * US}
    plan = Timeline(ACTIVITIES, PLANNED_START * US, PLANNED_END * US, kind="planned", limits=limits, **ABOUT)
    return plan.with_times(START * US, END * US, kind="measured")


def odd() -> dict[str, Timeline]:
    """What is not as a report would like it."""
    run = known()
    unknown = [replace(one, needs=None, bound="", scope=()) for one in ACTIVITIES]
    cut = np.array([0, 0, 40, 30, np.nan, np.nan]), np.array([30, 40, np.nan, 70, np.nan, np.nan])
    assert run.plan is not None
    return {
        "empty": Timeline((), (), (), kind="measured", device="h200"),
        "instant": Timeline(ACTIVITIES[:1], [0.0], [0.0], kind="measured", device="h200"),
        "failed": run.plan.with_times(cut[0] * US, cut[1] * US, kind="measured", failure="layer0.attention/0 failed"),
        "never started": run.plan.with_times(np.full(6, np.nan), np.full(6, np.nan), kind="measured"),
        "foreign": run.plan.with_times(START * US, END * US, kind="measured", device="cpu", foreign=True),
        "imported": Timeline(unknown, START * US, END * US, kind="measured", device="a GPU", lost=3),
        "planned": run.plan,
    }


def hostile(names: tuple[str, ...]) -> Timeline:
    """A run in which every text is one of ``names``."""
    made = [
        Activity(
            name,
            operator=name,
            stream=name,
            group=name,
            sms=4,
            flops=1e6,
            hbm_bytes=1e6,
            bound=name,
            shapes=name,
            kernel=name,
            scope=((name, name),),
            needs=(index - 1,) if index else (),
            waits=((index - 1, name),) if index else (),
            where=name,
        )
        for index, name in enumerate(names)
    ]
    start = np.arange(len(made)) * US
    about = ABOUT | {"device": names[0], "failure": names[-1], "limits": dict.fromkeys(names, US)}
    plan = Timeline(made, start, start + US, kind="planned", **about)
    return Timeline(made, start, start + 2 * US, kind="measured", plan=plan, **about)


def large(count: int) -> Timeline:
    """``count`` launches on six lanes, each of which needs two before it, beside its plan."""
    lanes = ("g0", "g0.1", "g1", "g1.1", "h2d", "d2h")
    made = [
        activity(
            f"layer{index // 100 % 80}.{('linear', 'norm', 'attention', 'rope', 'add')[index % 5]}/{index}",
            lanes[index % len(lanes)],
            needs=tuple(one for one in (index - 6, index - 7) if one >= 0),
            waits=((index - 7, "data"),) if index > 6 else (),
            flops=1e9,
            hbm_bytes=1e6,
            bound=("compute", "memory")[index % 2],
            piece=index % 2,
            scope=(("layer", index // 100 % 80),),
        )
        for index in range(count)
    ]
    step = np.arange(count) // len(lanes)
    seconds = np.random.default_rng(0).integers(2, 9, count)
    plan = Timeline(
        made, step * 10 * US, (step * 10 + 8) * US, kind="planned", limits={"serial": count * 8 * US}, **ABOUT
    )
    return plan.with_times(step * 10 * US, (step * 10 + seconds) * US, kind="measured")
