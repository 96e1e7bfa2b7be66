"""Schedule: what runs where and when, as a plain value; decisions only."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from nanort.costs.profile import Profile
from nanort.costs.roofline import Cost, Costs
from nanort.devices import Device
from nanort.graph import Graph
from nanort.nanobatch import nano_batch
from nanort.partition import Group, Stream
from nanort.scheduling.bounds import NAMES, PHYSICAL, Bounds, bounds
from nanort.scheduling.check import check
from nanort.scheduling.explain import Difference, Explanation, diff, explain
from nanort.scheduling.waits import Wait
from nanort.timeline import picture
from nanort.timeline.activities import Activity
from nanort.timeline.events import Timeline
from nanort.timeline.units import duration


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where and when a node of the cut graph runs; ``sms`` is how many SMs it holds, 0 for a transfer."""

    node: int
    name: str
    stream: str
    sms: int
    kernel: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Split:
    """How a graph is cut: what :func:`nanort.nanobatch.nano_batch` was told."""

    sizes: int | tuple[int, ...]
    per_op: tuple[tuple[str, int], ...] = ()

    @staticmethod
    def of(sizes: int | Sequence[int], per_op: Mapping[str, int] | None = None) -> Split | None:
        """The split into a count of pieces or pieces of these sizes; None if that leaves the graph as it is."""
        if sizes == 1 and not per_op:
            return None
        return Split(sizes if isinstance(sizes, int) else tuple(sizes), tuple(sorted((per_op or {}).items())))

    def cut(self, source: Graph) -> Graph:
        """The graph whose nodes the schedule assigns."""
        return nano_batch(source, self.sizes, dict(self.per_op))


@dataclass(frozen=True, slots=True)
class Outlook:
    """A plan's makespan and the serial one where ``saturation`` SMs saturate device memory."""

    saturation: int
    seconds: float
    serial_seconds: float

    @property
    def gain(self) -> float:
        """How many times faster than the serial plan it is."""
        return self.serial_seconds / self.seconds if self.seconds else 1.0


@dataclass(frozen=True)
class Schedule:
    """What runs where and when, in the order in which it is issued.

    Attributes:
        source, split, graph: the graph as it was given, how it is cut (None: not at all), and what comes of that.
        device: what it is planned for.
        mechanism: how nodes overlap, ``"isolated 88+40 SMs"``.
        streams: the queues that are used; a stream runs its nodes in order.
        assignments: every node of ``graph``, by start.
        waits: the orders across streams that a run must keep: the fewest that imply all.
        outlooks: the makespan at each plausible saturation point of device memory; times are those of the first.
        seed, effort, truncated: of the search: schedules judged, and whether it ran out of time.
        profile: the measurements that it rests on.
        why: what was given up, and for what reason.
        versions: what it was made with.
    """

    source: Graph
    split: Split | None
    graph: Graph = field(compare=False)
    device: Device
    mechanism: str
    streams: tuple[Stream, ...]
    assignments: tuple[Assignment, ...]
    waits: tuple[Wait, ...]
    outlooks: tuple[Outlook, ...]
    seed: int = 0
    effort: int = 0
    truncated: bool = False
    profile: Profile | None = None
    why: tuple[str, ...] = ()
    versions: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.timeline().text()}\n{self!r}"

    def _repr_html_(self) -> str:
        return picture.html(self.timeline(), repr(self))

    def __repr__(self) -> str:
        cut = f" in {len({node.piece for node in self.graph.nodes})} nano-batches" if self.split else ""
        return (
            f"<Schedule of {self.source.name}{cut} on {self.device.name}: {self.mechanism}, "
            f"{len(self.assignments)} nodes, {duration(self.makespan)}, {self.outlooks[0].gain:.2f}x serial>"
        )

    @property
    def partition(self) -> tuple[Group, ...]:
        """The SM groups that its streams stand on."""
        return tuple(dict.fromkeys(stream.group for stream in self.streams if stream.group))

    @property
    def saturation(self) -> int:
        """SMs that saturate device memory in its times: the point at which it gains least over the serial schedule."""
        return self.outlooks[0].saturation

    @cached_property
    def makespan(self) -> float:
        """Predicted seconds from start to end."""
        return max((assignment.end for assignment in self.assignments), default=0.0)

    @property
    def serial_makespan(self) -> float:
        """Predicted seconds of the uncut graph, node after node."""
        return self.outlooks[0].serial_seconds

    @cached_property
    def costs(self) -> Costs:
        """What each node takes alone, as its times have it."""
        return Costs(self.device, self.profile, self.saturation)

    @cached_property
    def alone(self) -> tuple[Cost, ...]:
        """What each assignment takes alone on the SMs that it holds."""
        return tuple(self.costs.solo(self.graph.nodes[a.node], a.sms) for a in self.assignments)

    @cached_property
    def bounds(self) -> Bounds:
        """Seconds that no schedule of the cut graph on its groups of SMs can beat, nor any other."""
        return bounds(self.graph, self.costs, self.partition)

    def check(self) -> None:
        """Judges it by itself, whatever made it.

        Raises:
            ScheduleError: it breaks a constraint; the message names the nodes.
        """
        check(self)

    def explain(self) -> Explanation:
        """Serial and predicted time, lower bounds, what limits it, and what was given up; prints."""
        return explain(self)

    def diff(self, other: Schedule) -> Difference:
        """What is decided otherwise in ``other``; prints."""
        return diff(self, other)

    def timeline(self) -> Timeline:
        """The plan as a timeline, to compare with what was measured."""
        place = {assignment.node: index for index, assignment in enumerate(self.assignments)}
        awaited: dict[int, list[tuple[int, str]]] = {}
        for wait in self.waits:
            awaited.setdefault(wait.node, []).append((place[wait.on], wait.reason))
        groups = {stream.name: stream.group.name if stream.group else "" for stream in self.streams}
        activities = []
        flops: dict[torch.dtype | None, float] = {None: 0.0}
        for assignment, cost in zip(self.assignments, self.alone, strict=True):
            node = self.graph.nodes[assignment.node]
            work = {name: getattr(node.demand, name) for name in ("flops", "hbm_bytes", "h2d_bytes", "d2h_bytes")}
            flops[node.dtype] = flops.get(node.dtype, 0.0) + node.demand.flops
            activities.append(
                Activity(
                    name=node.name,
                    operator=node.op.name,
                    stream=assignment.stream,
                    group=groups[assignment.stream],
                    sms=assignment.sms,
                    bound=node.bound_by(self.device),
                    alone=cost.seconds,
                    shapes=node.shapes,
                    kernel=assignment.kernel,
                    piece=node.piece,
                    scope=node.scope,
                    needs=tuple(place[pred] for pred, _ in node.preds),
                    waits=tuple(awaited.get(assignment.node, ())),
                    where=node.where,
                    **work,
                )
            )
        return Timeline(
            activities,
            [assignment.start for assignment in self.assignments],
            [assignment.end for assignment in self.assignments],
            kind="planned",
            device=self.device.name,
            sm_capacity=self.device.sms,
            flops=self.device.rate(max(flops, key=flops.__getitem__)),
            hbm_bandwidth=self.device.hbm_bandwidth,
            h2d_bandwidth=self.device.h2d_bandwidth,
            d2h_bandwidth=self.device.d2h_bandwidth,
            limits=self._limits,
        )

    def _limits(self) -> dict[str, float]:
        """The serial makespan, and the lower bounds that hold for this schedule, by what a person calls them."""
        held = (*PHYSICAL, self.bounds.own) if self.bounds.own else PHYSICAL
        found = {NAMES[name]: self.bounds.seconds[name] for name in held}
        return {"serial": self.serial_makespan} | {name: seconds for name, seconds in found.items() if seconds}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes readable, versioned JSON; the graph itself is not in it, its fingerprint is."""
        from nanort.scheduling import files

        files.save(self, path)

    @staticmethod
    def load(path: str | os.PathLike[str], source: Graph, *, profile: Profile | None = None) -> Schedule:
        """The schedule that :meth:`save` wrote for ``source``, cut again and checked.

        Raises:
            TruncatedFileError: the file is cut short, or is no schedule.
            ForeignFileError: it is of another graph, or rests on another profile.
            NewerVersionError: a newer nanort wrote it.
            FileError, ScheduleError: it says something that cannot be.
        """
        from nanort.scheduling import files

        return files.load(path, source, profile)
