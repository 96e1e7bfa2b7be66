"""replan: a schedule carried over to the same model with other sizes, without a search."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from heapq import heapify, heappop, heappush
from itertools import accumulate, pairwise

from nanort.costs.provenance import versions
from nanort.errors import ScheduleError
from nanort.graph import Graph
from nanort.layout import Layout
from nanort.nanobatch import batch_rows
from nanort.nodes import Node
from nanort.partition import WHOLE, Stream
from nanort.scheduling import structures
from nanort.scheduling.assemble import assemble
from nanort.scheduling.coschedule import refuse_excess
from nanort.scheduling.cuts import TILE
from nanort.scheduling.flat import Flat
from nanort.scheduling.list_schedule import serial
from nanort.scheduling.players import replayed
from nanort.scheduling.schedule import Outlook, Schedule, Split
from nanort.scheduling.search import saturations
from nanort.scheduling.structures import SERIAL, Structure
from nanort.scheduling.waits import waits
from nanort.simulation.fluid import Trace
from nanort.values import Value

Spot = tuple[int, int]  # where a node stood in the order of the old plan, and on which stream


def replan(schedule: Schedule, graph: Graph, *, guard: bool = True) -> Schedule:
    """The plan of ``schedule`` for ``graph``: the same model with other rows or lengths.

    Streams, the count of pieces and what runs where after what are kept; waits, times and outlooks are made anew.

    Args:
        schedule: any, one loaded from a file too; returned as it is where the graphs are equal.
        graph: is sealed.
        guard: whether the serial schedule is used where the plan is not predicted to beat it any more.

    Raises:
        CapacityError: the device has too few SMs or too little memory for it.
        ScheduleError: the graph is of another model, or has nodes that the plan tells no stream for.
        SplitError: the graph cannot be cut as the plan is.
    """
    if _equal(schedule.source, graph.seal()):
        return schedule
    _refuse_another(schedule.source, graph)
    refuse_excess(graph, schedule.device)
    device, points = schedule.device, saturations(schedule.device)
    source, split = Flat(graph, device, schedule.profile), _split(schedule, graph)
    flat = source if split is None else Flat(split.cut(graph), device, schedule.profile)
    baseline = {point: serial(source, point) for point in points}
    structure, traces = _played(schedule, flat, points)
    outlooks = _outlooks(traces, baseline)
    why = [f"replanned from a plan for {schedule.source.layout or schedule.source}"]
    mechanism, pinned = schedule.mechanism, any(node.stream not in (None, WHOLE) for node in graph.nodes)
    if guard and outlooks[0].gain <= 1.0 and mechanism != SERIAL and not pinned:
        gain, at = outlooks[0].gain, outlooks[0].saturation
        why.append(f"the serial schedule is used: {mechanism} is {gain:.2f}x serial where {at} SMs saturate memory")
        flat, split, structure, mechanism = source, None, structures.serial(device), SERIAL
        traces, outlooks = baseline, _outlooks(baseline, baseline)
    plan = assemble(source, split, flat, structure, traces[outlooks[0].saturation], outlooks, mechanism)
    return replace(plan, seed=schedule.seed, effort=1, why=tuple(why), versions=versions())


def _equal(source: Graph, graph: Graph) -> bool:
    """Whether two graphs are the same; what sizes tell is asked first."""
    if graph is source:
        return True
    shapes, others = ([root.shape for root in one.roots] for one in (source, graph))
    return graph.layout == source.layout and shapes == others and graph.fingerprint == source.fingerprint


def _refuse_another(source: Graph, graph: Graph) -> None:
    """Refuses a graph that has other nodes than ``source``, but for those that a step without such rows lacks."""
    for one, other, says in ((source, graph, "lacks"), (graph, source, "has")):
        known = {node.name: node.op.name for node in other.nodes}
        sizes = {root.name: root.shape for root in other.roots if root.kind == "input"}
        lacking = set[int]()
        for node in one.nodes:
            if (found := known.get(node.name, "")) and found != node.op.name:
                raise _anew(graph, f"node {node.name!r} calls {found} in one and {node.op.name} in the other")
            if found:
                continue
            if not any(_empty(value, other.layout, sizes) for value in node.inputs) and not any(
                pred in lacking for pred, _ in node.preds
            ):
                raise _anew(graph, f"it {says} the node {node.name!r}, which is there in only one of them")
            lacking.add(node.index)


def _empty(value: Value, layout: Layout | None, sizes: dict[str, tuple[int, ...]]) -> bool:
    """Whether a value would have no rows in a graph with this layout and inputs of these sizes."""
    while value.parent is not None:
        if layout is not None and not {"decode": layout.decode, "prefill": layout.prefill_rows}.get(value.how[0], 1):
            return True
        value = value.parent
    return value.kind == "input" and 0 in sizes.get(value.name, ())


def _split(schedule: Schedule, graph: Graph) -> Split | None:
    """The same count of pieces, their sizes in proportion; counts of operators that the graph lacks are left out."""
    if (split := schedule.split) is None:
        return None
    known = {node.op.name for node in graph.nodes} | {node.name for node in graph.nodes}
    sizes = split.sizes if isinstance(split.sizes, int) else _scaled(split.sizes, batch_rows(graph))
    return Split.of(sizes, {name: count for name, count in split.per_op if name in known})


def _scaled(sizes: Sequence[int], rows: int) -> list[int]:
    """``rows`` in proportion to ``sizes``, cut at multiples of what they are cut at, up to a tile, if there are enough.

    >>> _scaled([512, 640], 1100), _scaled([512, 640], 60)
    ([512, 588], [27, 33])
    """
    *ends, total = accumulate(sizes)
    for grain in (math.gcd(TILE, *ends), 1):
        cuts = [min(rows, round(rows * end / max(1, total) / grain) * grain) for end in ends]
        found = [high - low for low, high in pairwise([0, *cuts, rows])]
        if all(found):
            break
    return found


def _played(schedule: Schedule, flat: Flat, points: Sequence[int]) -> tuple[Structure, dict[int, Trace]]:
    """The structure of a schedule, and what becomes of its plan for another graph at every saturation point."""
    if schedule.mechanism == SERIAL:
        return structures.serial(flat.device), {point: serial(flat, point) for point in points}
    lanes = Counter(stream.group for stream in schedule.streams)  # streams that nothing runs on were left out
    groups = tuple(replace(group, lanes=lanes[group]) for group in schedule.partition)
    structure = Structure(schedule.mechanism, groups, schedule.streams, ())
    spots = _spots(schedule, flat)
    order, lane = _ordered(flat, [place for place, _ in spots]), [lane for _, lane in spots]
    awaited: list[list[int]] = [[] for _ in order]
    for wait in waits(flat.graph, structure.streams, order, lane):
        awaited[wait.node].append(wait.on)
    return structure, {point: replayed(flat, structure, order, lane, awaited, point) for point in points}


def _spots(schedule: Schedule, flat: Flat) -> list[Spot]:
    """Where each node of another graph stands: where its namesake does, or beside its neighbours."""
    lanes, nodes = {stream.name: lane for lane, stream in enumerate(schedule.streams)}, schedule.graph.nodes
    known: dict[tuple[str, int], Spot] = {}
    pieces: dict[str, list[Spot]] = {}
    for place, assignment in enumerate(schedule.assignments):
        node, stood = nodes[assignment.node], (place, lanes[assignment.stream])
        known[node.origin, node.piece] = stood
        pieces.setdefault(node.origin, []).append(stood)
    spots = list[Spot]()
    for node in flat.graph.nodes:
        spot = known.get((node.origin, node.piece))
        if spot is None:
            after = [spots[pred] for pred in flat.preds[node.index]]
            before = [flat.graph.nodes[succ] for succ in flat.succs[node.index]]
            beside = [
                *after,
                *(known[succ.origin, succ.piece] for succ in before if (succ.origin, succ.piece) in known),
            ]
            spot = _beside(node, pieces.get(node.origin) or beside, max(after, default=(0, 0))[0], schedule)
        if not _carries(schedule.streams[spot[1]], node):
            raise _anew(flat.graph, f"{node.name!r} no longer fits on stream {schedule.streams[spot[1]].name!r}")
        spots.append(spot)
    return spots


def _beside(node: Node, neighbours: Sequence[Spot], earliest: int, schedule: Schedule) -> Spot:
    """The spot of a node that the plan does not know: on the one stream that carries it, or that its neighbours use."""
    able = {lane for lane, stream in enumerate(schedule.streams) if _carries(stream, node)}
    used = {lane for _, lane in neighbours} & able
    chosen = used if len(used) == 1 else able
    if len(chosen) != 1:
        raise ScheduleError(
            f"the plan has no {node.name!r}, and its neighbours are on several streams: plan anew with nr.co_schedule"
        )
    return max((place for place, _ in neighbours if place >= earliest), default=earliest), chosen.pop()


def _carries(stream: Stream, node: Node) -> bool:
    """Whether a node may run there."""
    pinned, engine = node.stream not in (None, stream.name), stream.engine
    return not pinned and (node.demand.engine == engine if engine else node.span[0] <= stream.sms)


def _ordered(flat: Flat, places: Sequence[int]) -> list[int]:
    """The nodes by place, each after all that it waits for: pieces cut elsewhere may wait for others than before."""
    missing = [len(preds) for preds in flat.preds]
    ready = [(places[node], node) for node, count in enumerate(missing) if not count]
    heapify(ready)
    order = list[int]()
    while ready:
        order.append(node := heappop(ready)[1])
        for succ in flat.succs[node]:
            missing[succ] -= 1
            if not missing[succ]:
                heappush(ready, (places[succ], succ))
    return order


def _outlooks(traces: dict[int, Trace], baseline: dict[int, Trace]) -> tuple[Outlook, ...]:
    """What they come to beside the serial schedule, the point where they gain least first."""
    found = [Outlook(point, trace.makespan, baseline[point].makespan) for point, trace in traces.items()]
    worst = min(found, key=lambda outlook: outlook.gain)
    return (worst, *(outlook for outlook in found if outlook is not worst))


def _anew(graph: Graph, what: str) -> ScheduleError:
    return ScheduleError(
        f"the plan cannot be carried over to graph {graph.name!r}: {what}: replan is for one model in other sizes, "
        f"plan this graph with nr.co_schedule"
    )
