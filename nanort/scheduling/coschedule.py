"""co_schedule: the verb from a graph and a device to a schedule."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from nanort.compiled import COMPILES
from nanort.costs.profile import Profile
from nanort.costs.provenance import versions
from nanort.costs.shipped import shipped
from nanort.devices import GIB, Device
from nanort.errors import CapacityError, CostError, DeviceError, PolicyError, ScheduleError
from nanort.graph import Graph
from nanort.nodes import Node
from nanort.partition import WHOLE
from nanort.scheduling import structures
from nanort.scheduling.assemble import assemble
from nanort.scheduling.cuts import cut, worth_trying
from nanort.scheduling.flat import Flat
from nanort.scheduling.guard import Measure, fastest, measure_of
from nanort.scheduling.list_schedule import ORDERS, ListPolicy, serial
from nanort.scheduling.policy import Policy
from nanort.scheduling.rivals import overlapped, rivals
from nanort.scheduling.schedule import Outlook, Schedule, Split
from nanort.scheduling.search import Found, Progress, Search
from nanort.scheduling.tuning import part

POLICIES: dict[str, tuple[Policy, ...]] = {
    "serial": (),
    "list": (ListPolicy(quick=True), ListPolicy(borrow=True, quick=True)),
    "search": tuple(ListPolicy(order, borrow) for borrow in (False, True) for order in ORDERS),
}
"""The baseline; the most promising structure of each mechanism; every structure in every order, and the best tuned."""

LARGE = 20_000
"""Nodes from which on "auto" is "list": a search would try too few of its structures to be one."""

NODES_BY_DEFAULT = 1_800_000 if COMPILES else 400_000
"""Nodes that are placed in all the schedules judged by default: what a core does in a second or two."""

THOROUGH = 8
"""How many times as many schedules "search" judges, and tries more cuts, than "auto" does."""


def co_schedule(
    graph: Graph,
    device: Device,
    *,
    policy: str | Policy = "auto",
    nano_batches: int | Sequence[int | Sequence[int]] | None = None,
    per_op: Mapping[str, int] | None = None,
    effort: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    profile: Profile | None = None,
    guard: bool = True,
    measure: Measure | bool | None = None,
    progress: Progress | None = None,
) -> Schedule:
    """A schedule of ``graph`` on ``device`` that is never predicted to be slower than the serial one.

    Args:
        graph: is sealed.
        device: what it runs on.
        policy: "serial", "list", "search", or a policy of your own; "auto" is a search of a second or two, or list for
            a large graph.
        nano_batches: the splits to try: counts of pieces, or their sizes; by default the uncut graph, and two pieces of
            one that has inputs with ``batch=``; "search" tries more of them. The serial policy takes the first.
        per_op: other counts for some operators, in every split (see nano_batch).
        effort: schedules to judge, by default what takes a second or two; equal efforts and seeds give equal bytes (the
            default is less where numba is absent).
        seconds: when to stop whatever the effort; a schedule that was stopped says so.
        seed: of the refinement.
        profile: measured costs; by default those of this GPU that come with nanort, if there are any. An empty Profile
            leaves everything to the cost model.
        guard: whether the serial schedule is used where no other is predicted to beat it; else the best other is.
        measure: what runs the plan, the best of each other mechanism, and the serial schedule, of which the fastest is
            kept: a Stopwatch; True is one on random tensors.
        progress: called with schedules judged, effort, the best seconds so far, and seconds that no cut can beat.

    Raises:
        CapacityError: the device has too few SMs or too little memory.
        DeviceError: the device is none, but its name for example.
        SplitError: the graph cannot be cut in any of the ways asked for.
        PolicyError: the policy is unknown, or no structure has the streams that nodes are pinned to.
        CostError: the profile is of another device, or none.
        ScheduleError: a budget that cannot be, or a measurement that is none.
        MissingInputError: ``measure=True`` of a graph that asks for integers, which cannot be random.
    """
    _refuse_names(device, profile)
    thorough = policy == "search"
    if nano_batches is None:
        nano_batches = worth_trying(graph, thorough)
    if isinstance(nano_batches, int):
        nano_batches = (nano_batches,)
    _refuse_budgets(policy, nano_batches, effort, seconds)
    refuse_excess(graph.seal(), device)
    measured = measure_of(measure, graph, seed)
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    if profile is None and (profile := shipped(device)) is not None:
        device = profile.fitted(device)
    source, is_serial = Flat(graph, device, profile), policy == "serial"
    cuts, uncut = cut(source, nano_batches[:1] if is_serial else nano_batches, per_op, deadline)
    if policy == "auto":
        policy = "list" if max(map(len, cuts.values())) > LARGE else "search"
    budget = effort or THOROUGH**thorough * max(64, min(6144, NODES_BY_DEFAULT // max(1, *map(part, cuts.values()))))
    policies = POLICIES[policy] if isinstance(policy, str) else (policy,)
    search = Search(source, list(cuts.values()), policies, budget, deadline, seed, progress)
    found = search.run(refine=policy == "search")
    pinned, said = next((node for node in graph.nodes if node.stream not in (None, WHOLE)), None), list[str]()
    if found is not None and (found.worst.gain > 1.0 or pinned is not None or not guard):
        schedule = _planned(found, cuts, source)
        if measured is not None and pinned is None:
            beside = [_planned(*rival, source) for rival in rivals(search, found, cuts)]
            schedule, said = fastest(_serial(search, None, source), [schedule, *beside], measured)
        elif measured is not None and pinned is not None:
            said.append(f"not measured: {pinned.name} is pinned, so that no serial schedule can be run beside it")
    elif pinned is None:
        schedule = _serial(search, *(next(iter(cuts.items())) if is_serial else (None, source)))
        if search.tops:
            said.append("the serial schedule is used: nothing was predicted to beat it at every saturation point")
        guess = overlapped(search, cuts) if measured is not None and not is_serial else None
        if measured is not None and guess is not None and guess[0].worst.gain > 1.0:  # only running it can tell
            schedule, said = fastest(schedule, [_planned(*guess, source)], measured)
    else:
        raise _refusal(pinned, search)
    return replace(
        schedule,
        seed=seed,
        effort=search.judged,
        truncated=bool(search.stopped),
        why=(*said, *_given_up(search, cuts, schedule), *uncut),
        versions=versions(),
    )


def _refuse_names(device: object, profile: object) -> None:
    if not isinstance(device, Device):
        called = device if isinstance(device, str) else "h200"
        raise DeviceError(f"{device=} is no Device: give nr.device({called!r})")
    if profile is not None and not isinstance(profile, Profile):
        raise CostError(f"profile={profile!r} is no Profile: give nr.Profile.load(path)")


def _refuse_budgets(
    policy: str | Policy, nano_batches: Sequence[object], effort: int | None, seconds: float | None
) -> None:
    if isinstance(policy, str) and policy not in (*POLICIES, "auto"):
        raise PolicyError(f"there is no policy {policy!r}: give one of {', '.join(POLICIES)}, auto, or one of your own")
    if not isinstance(policy, str) and not all(hasattr(policy, part) for part in ("name", "structures", "dispatch")):
        raise PolicyError(f"{policy!r} is no policy: it needs a name, structures(work) and dispatch(work, structure)")
    if isinstance(nano_batches, str) or not isinstance(nano_batches, Sequence):
        raise ScheduleError(f"{nano_batches=}: give a count of pieces, or several to choose from: (1, 2)")
    if not nano_batches:
        raise ScheduleError("nano_batches=() leaves nothing to try: give (1,) for the graph as it is")
    if effort is not None and (not isinstance(effort, int) or effort < 1):
        raise ScheduleError(f"effort={effort!r} is no budget: give the schedules to judge, 1 or more, or None")
    if seconds is not None and not 0 < seconds < math.inf:
        raise ScheduleError(f"seconds={seconds!r} is no budget: give more than zero, or None for no limit")


def refuse_excess(graph: Graph, device: Device) -> None:
    """Refuses what the device has too little of for any schedule."""
    kept = [root for root in graph.roots if root.kind in ("constant", "state") and root.device == "device"]
    if (asked := sum(root.nbytes for root in kept)) > device.memory_bytes:
        largest = max(kept, key=lambda root: root.nbytes)
        raise CapacityError(
            f"constants and states of graph {graph.name!r} take {asked / GIB:.1f} GiB, {device.name} has "
            f"{device.memory_bytes / GIB:.1f} GiB: keep some on the host (device='host'), the largest is {largest!r}"
        )
    for node in graph.nodes:
        if node.span[0] > device.sms:
            raise CapacityError(
                f"{node.where}: {node.name} needs {node.span[0]} SMs, {device.name} has {device.sms}: ask for fewer"
            )


def _refusal(pinned: Node, search: Search) -> PolicyError | CapacityError:
    """Why no schedule keeps the pins; too few SMs on the right stream tell more than structures that lack it."""
    lacking = f"{pinned.where}: {pinned.name} is pinned to {pinned.stream!r}, serial plans lack that stream"
    found = reversed(search.refused)
    return min(found, key=lambda error: isinstance(error, PolicyError), default=PolicyError(lacking))


def _serial(search: Search, split: Split | None, flat: Flat) -> Schedule:
    """Every node of a cut after the one before it; of the uncut graph, the baseline."""
    traces = {point: serial(flat, point) for point in search.serial_seconds}
    outlooks = tuple(Outlook(point, traces[point].makespan, base) for point, base in search.serial_seconds.items())
    worst = min(outlooks, key=lambda outlook: outlook.gain)
    outlooks = (worst, *(outlook for outlook in outlooks if outlook is not worst))
    trace = traces[worst.saturation]
    return assemble(search.source, split, flat, structures.serial(flat.device), trace, outlooks)


def _planned(found: Found, cuts: Mapping[Split | None, Flat], source: Flat) -> Schedule:
    """The schedule of what the search found."""
    flat = found.candidate.work.flat
    split = next(split for split, cut in cuts.items() if cut is flat)
    outlooks = (found.worst, *(outlook for outlook in found.outlooks if outlook is not found.worst))
    return assemble(source, split, flat, found.candidate.structure, found.trace, outlooks)


def _given_up(search: Search, cuts: Mapping[Split | None, Flat], chosen: Schedule) -> list[str]:
    """One line for each mechanism and cut that was not chosen, and for what cut the search short."""
    lines = []
    pessimist = search.points[0]
    names = {id(flat): f"cut into {split.sizes}" if split else "uncut" for split, flat in cuts.items()}
    for (flat, mechanism), (seconds, candidate) in sorted(search.tops.items(), key=lambda item: item[1][0]):
        if chosen.graph is not flat.graph or not chosen.mechanism.startswith(mechanism):
            gain = Outlook(pessimist, seconds, search.serial_seconds[pessimist]).gain
            how = f"{candidate.structure}, {names[id(flat)]}"
            lines.append(f"{how}: {gain:.2f}x serial where {pessimist} SMs saturate device memory")
    unused = chosen.device.sms - chosen.device.partitionable_sms
    if chosen.mechanism.startswith(structures.ISOLATED) and unused:
        lines.append(f"{unused} of {chosen.device.sms} SMs fit in no group: only nodes on the whole device use them")
    if search.stopped:
        lines.append(f"{search.stopped} after {search.judged} of {search.effort} schedules")
    if search.refused:
        lines.append(f"{len(search.refused)} plans were refused, the last since {search.refused[-1]}")
    return lines
