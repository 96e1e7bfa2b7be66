"""lower: the flat program of a schedule, its values placed in buffers and its waits made events."""

from __future__ import annotations

from nanort.errors import ProgramError, ScheduleError
from nanort.graph import Graph
from nanort.nodes import Node
from nanort.programs.hazards import refuse_hazards
from nanort.programs.program import Buffer, Copy, Instruction, Launch, Program, Record, View, Wait
from nanort.scheduling.schedule import Assignment, Schedule
from nanort.values import Value, contiguous, joined

KINDS = {"node": "result"}
"""What a buffer is called where it is not called as its root is."""


def lower(schedule: Schedule) -> Program:
    """The program that carries out ``schedule``: launches in planned order, exactly its waits, one buffer a value.

    Joins own one buffer that their parts are views of, so that splitting and joining nano-batches copies nothing.

    Raises:
        ScheduleError: it is no schedule, but a graph for example.
        ProgramError: the schedule leaves something to chance, which those of co_schedule do not; it names both nodes
            and the wait that is missing.
    """
    if not isinstance(schedule, Schedule):
        raise ScheduleError(f"{schedule!r} is no Schedule: give what nr.co_schedule(graph, device) returns")
    graph = schedule.graph
    placed = _Placement(graph)
    waits: dict[int, list[Wait]] = {}
    events = {on: event for event, on in enumerate(dict.fromkeys(wait.on for wait in schedule.waits))}
    streams = {assignment.node: assignment.stream for assignment in schedule.assignments}
    for kept in schedule.waits:
        waits.setdefault(kept.node, []).append(Wait(streams[kept.node], events[kept.on], kept.reason))
    instructions: list[Instruction] = []
    recorded: set[int] = set()
    for assignment in schedule.assignments:
        node = graph.nodes[assignment.node]
        for wait in waits.get(node.index, ()):
            if wait.event not in recorded:
                raise ProgramError(f"{node.name} waits ({wait.reason}) for a node that is launched after it")
            instructions.append(wait)
        instructions.append(_step(node, assignment, placed))
        if node.index in events:
            instructions.append(Record(assignment.stream, events[node.index]))
            recorded.add(events[node.index])
    outputs = {name: placed.view(value) for name, value in graph.outputs.items()}
    program = Program(
        graph.name, schedule.device, schedule.streams, tuple(placed.buffers), tuple(instructions), outputs,
        schedule.timeline(), graph, schedule.costs,
    )  # fmt: skip  # the fields in their order
    refuse_hazards(program)
    return program


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


class _Placement:
    """Which buffer, at which offset, holds every root of a graph."""

    def __init__(self, graph: Graph) -> None:
        lies = {root.index: (root.index, 0) for root in graph.roots}  # by root: the one whose buffer it is in, offset
        for join, inside in joined(graph.roots).items():
            lies |= {index: (join, offset) for index, offset in inside.items()}
        owners = [root for root in graph.roots if lies[root.index][0] == root.index]
        self.buffers = [
            Buffer(number, root.index, root.name, KINDS.get(root.kind, root.kind), root.shape, root.dtype, root.device)
            for number, root in enumerate(owners)
        ]
        numbers = {buffer.root: buffer.index for buffer in self.buffers}
        self.wholes = [
            View(numbers[owner], offset, root.shape, contiguous(root.shape))
            for root, (owner, offset) in zip(graph.roots, lies.values(), strict=True)
        ]

    def view(self, value: Value) -> View:
        """Where a value of the graph lies."""
        whole, part = self.wholes[value.index], value.view
        return whole if part is None else View(whole.buffer, whole.offset + part.offset, value.shape, part.strides)
