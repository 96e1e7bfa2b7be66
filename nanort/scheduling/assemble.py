"""assemble: a trace made a schedule."""

from __future__ import annotations

from nanort.costs.roofline import CORESIDENT
from nanort.scheduling.flat import Flat
from nanort.scheduling.schedule import Assignment, Outlook, Schedule, Split
from nanort.scheduling.structures import Structure
from nanort.scheduling.waits import waits
from nanort.simulation.fluid import Trace


def assemble(
    source: Flat,
    split: Split | None,
    flat: Flat,
    structure: Structure,
    trace: Trace,
    outlooks: tuple[Outlook, ...],
    mechanism: str = "",
) -> Schedule:
    """A trace as a schedule; streams without a node are left out. ``mechanism`` says what the structure does not."""
    saturation, nodes = outlooks[0].saturation, flat.graph.nodes
    costs = [flat.kind_costs(saturation, stream.sms) for stream in structure.streams]
    modes = [flat.modes(saturation, stream.sms) for stream in structure.streams]
    cuda = flat.device.kind == "cuda"
    shared = [cuda and stream.group is not None and stream.group.lanes > 1 for stream in structure.streams]
    assignments, used = [], set(trace.lane)
    for node in trace.order:
        lane = trace.lane[node]
        kernel = costs[lane][flat.kinds[node]].kernel
        if shared[lane] and CORESIDENT in nodes[node].op.kernels:
            kernel = CORESIDENT
        assignments.append(
            Assignment(
                node,
                nodes[node].name,
                structure.streams[lane].name,
                modes[lane].sms[node],
                kernel,
                trace.start[node],
                trace.end[node],
            )
        )
    return Schedule(
        source=source.graph,
        split=split,
        graph=flat.graph,
        device=flat.device,
        mechanism=mechanism or str(structure),
        streams=tuple(stream for lane, stream in enumerate(structure.streams) if lane in used),
        assignments=tuple(assignments),
        waits=waits(flat.graph, structure.streams, trace.order, trace.lane),
        outlooks=outlooks,
        profile=flat.profile,
    )
