"""co_schedule: the verb from a graph and a device to a schedule."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata

import torch

from nanort.costs.profile import Profile
from nanort.devices import Device
from nanort.errors import CapacityError, PolicyError, ScheduleError, SplitError
from nanort.graph import Graph
from nanort.partition import WHOLE
from nanort.scheduling import structures
from nanort.scheduling.flat import Flat
from nanort.scheduling.list_schedule import serial
from nanort.scheduling.schedule import Assignment, Outlook, Schedule, Split
from nanort.scheduling.search import Found, Progress, Search
from nanort.scheduling.structures import Structure
from nanort.scheduling.waits import waits
from nanort.simulation.fluid import Trace
from nanort.timeline.units import duration

POLICIES = ("serial", "list", "auto")
"""The baseline; the most promising structure of each mechanism; every structure, and the best one refined."""

Measure = Callable[[Schedule], float]


def co_schedule(
    graph: Graph,
    device: Device,
    *,
    policy: str = "auto",
    nano_batches: Sequence[int | Sequence[int]] = (1, 2),
    per_op: Mapping[str, int] | None = None,
    effort: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    profile: Profile | None = None,
    measure: Measure | None = None,
    progress: Progress | None = None,
) -> Schedule:
    """A schedule of ``graph`` on ``device`` that is never predicted to be slower than the serial one.

    Args:
        graph: is sealed.
        device: what it runs on.
        policy: one of ``POLICIES``.
        nano_batches: the splits to try: counts of pieces, or their sizes.
        per_op: other counts for some operators, in every split (see nano_batch).
        effort: schedules to judge; by default as many as take a second or two. Equal efforts and seeds give equal bytes.
        seconds: when to stop whatever the effort; a schedule that was stopped says so.
        seed: of the refinement.
        profile: measured costs.
        measure: what tells the seconds of a schedule by running it; the faster of plan and serial schedule is kept.
        progress: called with schedules judged, effort, and the best seconds so far.

    Raises:
        CapacityError: the device has too few SMs or too little memory.
        SplitError: the graph cannot be cut in any of the ways asked for.
        PolicyError: no structure has the streams that nodes are pinned to.
        ScheduleError: a budget that cannot be.
    """
    _refuse_budgets(policy, nano_batches, effort, seconds)
    _refuse_excess(graph.seal(), device)
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    source, why = Flat(graph, device, profile), list[str]()
    flats = _cuts(source, nano_batches if policy != "serial" else (1,), per_op or {}, why)
    budget = effort or max(32, min(512, 400_000 // max(map(len, flats.values()), default=1)))
    search = Search(source, list(flats.values()), budget, deadline, seed, progress)
