"""lower: the flat program of a schedule, its values placed in buffers and its waits made events."""

from __future__ import annotations

from nanort.errors import ProgramError
from nanort.graph import Graph
from nanort.nodes import Node
from nanort.programs.program import Buffer, Copy, Instruction, Launch, Program, Record, View, Wait
from nanort.scheduling.schedule import Assignment, Schedule
from nanort.timeline.events import Activity
from nanort.values import Value


def lower(schedule: Schedule) -> Program:
    """The program that carries out ``schedule``: launches in planned order, exactly its waits, one buffer a value.

    Joins own one buffer that their parts are views of, so that splitting and joining nano-batches copies nothing.
    """
    graph = schedule.graph
    placed = _Placement(graph)
    order = sorted(schedule.assignments, key=lambda a: (a.start, a.node))
    waits: dict[int, list[tuple[int, str]]] = {}
    for wait in schedule.waits:
        waits.setdefault(wait.node, []).append((wait.on, wait.reason))
    events = {on: event for event, on in enumerate(sorted({wait.on for wait in schedule.waits}))}
    instructions: list[Instruction] = []
    position: dict[int, int] = {}  # of a node among launches and copies
    activities = []
    for assignment in order:
        node = graph.nodes[assignment.node]
        for on, reason in waits.get(node.index, ()):
            if on not in position:
                raise ProgramError(f"{node.name} waits for {graph.nodes[on].name}, which is launched after it")
            instructions.append(Wait(assignment.stream, events[on], reason))
        instructions.append(_step(node, assignment, placed))
        waited = tuple((position[on], reason) for on, reason in waits.get(node.index, ()))
        position[node.index] = len(activities)
        activities.append(_activity(node, assignment, schedule, waited))
        if node.index in events:
            instructions.append(Record(assignment.stream, events[node.index]))
    outputs = {name: placed.view(value) for name, value in graph.outputs.items()}
    return Program(
        graph.name, schedule.device, schedule.streams, tuple(placed.buffers), tuple(instructions), outputs,
        tuple(activities), graph,
    )  # fmt: skip  # the fields in their order


def _step(node: Node, assignment: Assignment, placed: _Placement) -> Launch | Copy:
    outs = tuple(placed.view(value) for value in node.outputs)
    args = tuple(placed.view(argument) if isinstance(argument, Value) else argument for argument in node.args)
    if _is_copy(node):
        source = next(argument for argument in args if isinstance(argument, View))
        return Copy(node.index, node.name, assignment.stream, source, outs[0], node.reads, node.where)
    return Launch(
        node.index, node.name, assignment.stream, node.op, assignment.kernel, args, node.static, outs, node.reads,
        node.writes, assignment.sms, node.where,
    )  # fmt: skip  # the fields in their order


def _is_copy(node: Node) -> bool:
    """Whether a copy engine can do it: a transfer of one value to the other side, unchanged."""
    if not (node.op.to and node.demand.engine and len(node.args) == 1 == len(node.outputs)):
        return False
    (source,), (target,) = node.inputs, node.outputs
    return (source.shape, source.dtype) == (target.shape, target.dtype)


def _activity(node: Node, assignment: Assignment, schedule: Schedule, waits: tuple[tuple[int, str], ...]) -> Activity:
    demand = node.demand
    stream = next(stream for stream in schedule.streams if stream.name == assignment.stream)
    return Activity(
        name=node.name,
        operator=node.op.name,
        stream=assignment.stream,
        group=stream.group.name if stream.group else "",
        sms=assignment.sms,
        flops=demand.flops,
        hbm_bytes=demand.hbm_bytes,
        h2d_bytes=demand.h2d_bytes,
        d2h_bytes=demand.d2h_bytes,
        piece=node.piece,
        scope=node.scope,
        waits=waits,
        where=node.where,
    )


class _Placement:
    """Which buffer, at which offset, holds every root of a graph."""

    def __init__(self, graph: Graph) -> None:
        self.buffers: list[Buffer] = []
        self.at: dict[int, tuple[int, int]] = {}  # by root: buffer, offset in elements
        joins = [root for root in graph.roots if root.kind == "join"]
        for join in sorted(joins, key=lambda join: -len(join.parts)):  # an outer join before those nested in it
            self._join(join)
        for root in graph.roots:
            if root.index not in self.at:
                self.at[root.index] = (self._buffer(root, "result" if root.kind == "node" else root.kind), 0)

    def view(self, value: Value) -> View:
        """Where a value of the graph lies."""
        place = value.placement
        buffer, offset = self.at[value.index]
        return View(buffer, offset + place.offset, value.shape, place.strides)

    def _join(self, join: Value) -> None:
        if (first := join.parts[0].index) in self.at:
            self.at[join.index] = self.at[first]
            return
        buffer, offset = self._buffer(join, "join"), 0
        self.at[join.index] = (buffer, 0)
        for part in join.parts:
            self.at[part.index] = (buffer, offset)
            offset += part.nbytes // part.dtype.itemsize

    def _buffer(self, root: Value, kind: str) -> int:
        self.buffers.append(Buffer(len(self.buffers), root.index, root.name, kind, root.shape, root.dtype, root.device))
        return len(self.buffers) - 1
