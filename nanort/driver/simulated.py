"""SimulatedDriver: a GPU's driver on the CPU, which keeps every rule and carries work out as late as it may.

Everything that is queued is a node of one graph of work: it comes after what its stream queued before, and a wait after
the record that was the event's latest when the wait was queued. With a seed, nodes are carried out only when the host
waits for something, in a random order that this graph allows; so a missing wait, or a buffer that is used again too
early, shows as wrong values. What is captured is kept as such a graph and copied at every replay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch

from nanort.clock import Clock, VirtualClock
from nanort.driver.books import Books
from nanort.driver.facts import Facts, Resource
from nanort.driver.work import Capture, Event, Gpu, Node, Stream, ancestors
from nanort.errors import REFUSALS, BackendError, DriverError

GLANCE = 1e-3
"""Seconds that it takes to ask whether something has happened: what ends by then has."""


class KernelError(RuntimeError):
    """What a kernel does that a fault makes fail."""


class SimulatedDriver(Books):
    """A Driver without a GPU: handles are never used twice, and fresh memory is full of NaN.

    It runs references alone. Torch operators that are not given to ``launch`` are carried out at once, whatever is
    queued. Subclasses have faults come in: see ``refusal`` and ``spoil``.

    Args:
        sms, minimum, alignment: the device's SMs, and what groups of them must be.
        seed: None carries work out at once, in the order it is queued; a number does it late, in a random order.
        memory: bytes of device memory; the host's has no end.
        grants: SMs of each group of the split, where they are not what was asked for.
        green: whether there are green contexts.
        time: the host's, which goes on to the end of what the host waits for; by default a VirtualClock.

    Attributes:
        cost: seconds that a launch takes, given its stream and its call.
    """

    device = "cpu"
    runs_kernels = False

    def __init__(
        self,
        sms: int = 132,
        minimum: int = 8,
        alignment: int = 8,
        *,
        seed: int | None = None,
        memory: int = 2**40,
        grants: Sequence[int] | None = None,
        green: bool = True,
        time: Clock | None = None,
    ) -> None:
        super().__init__(memory)
        self.time: Clock = VirtualClock() if time is None else time
        self.cost: Callable[[int, Callable[[], object]], float] = lambda stream, call: 1e-6
        self._resource = Resource(sms, minimum, alignment)
        self._grants = grants
        self._green = green
        self._gpu = Gpu(seed)
        self._groups: tuple[int, ...] = ()
        self._contexts: dict[int, tuple[int, ...]] = {}
        self._streams: dict[int, Stream] = {0: Stream(0)}
        self._events: dict[int, Event] = {}
        self._graphs: dict[int, Capture] = {}

    def spoil(self, node: Node) -> None:
        """Changes work that the call under way queues, as a fault has it: it takes longer, hangs, or fails."""

    def sms(self, stream: int) -> tuple[int, ...]:
        """The numbers of the SMs that a stream's blocks run on."""
        if not (context := self._streams[stream].context):
            return tuple(range(self._resource.sms))
        starts = (0, *accumulate(self._groups))
        return tuple(sm for group in self._contexts[context] for sm in range(starts[group], starts[group + 1]))

    # The device.

    def facts(self) -> Facts:
        with self._call("facts"):
            return Facts("fake GPU", "580.0", "13.0", self._resource.sms, 2)

    def clocks(self) -> dict[str, float]:
        with self._call("clocks"):
            return {"sm": 1980.0, "memory": 3201.0}

    def resource(self) -> Resource:
        with self._call("resource"):
            self._need_green()
            return self._resource

    def split(self, sms: int) -> tuple[int, ...]:
        with self._call("split", sms):
            self._need_green()
            total, minimum, alignment = self._resource
            self._refuse(bool(self._groups), "the device is split already, and a result cannot be split again")
            self._refuse(not minimum <= sms <= total, f"groups of {sms} SMs: at least {minimum}, at most {total}")
            self._refuse(sms % alignment > 0, f"groups of {sms} SMs: a multiple of {alignment}")
            self._groups = tuple(self._grants or (sms,) * (total // sms))
            return self._groups

    def create_context(self, groups: Sequence[int]) -> int:
        with self._call("create_context", tuple(groups)):
            known = set(groups) <= set(range(len(self._groups)))
            self._refuse(not groups or not known, f"groups {list(groups)} of a split into {len(self._groups)}")
            self._refuse(len(set(groups)) < len(groups), f"a group twice in {list(groups)}")
            return self._make("context", self._contexts, tuple(groups))

    def granted(self, context: int) -> int:
        with self._call("granted", context):
            return sum(self._groups[group] for group in self._find("context", self._contexts, context))

    def destroy_context(self, context: int) -> None:
        with self._call("destroy_context", context):
            self._find("context", self._contexts, context)
            streams = [handle for handle, stream in self._streams.items() if stream.context == context]
            self._refuse(bool(streams), f"streams {streams} are on it: destroy them first")
            self._drop("context", self._contexts, context)

    # Streams and events.

    def create_stream(self, context: int = 0) -> int:
        with self._call("create_stream", context):
            if context:
                self._find("context", self._contexts, context)
            return self._make("stream", self._streams, Stream(context))

    def destroy_stream(self, stream: int) -> None:
        with self._call("destroy_stream", stream):
            self._refuse(
                self._find("stream", self._streams, stream).joined, "it takes part in a capture: end that first"
            )
            self._drop("stream", self._streams, stream)

    def create_event(self, *, timed: bool = False) -> int:
        with self._call("create_event", timed):
            return self._make("event", self._events, Event(timed))

    def destroy_event(self, event: int) -> None:
        with self._call("destroy_event", event):
            self._find("event", self._events, event)
            self._drop("event", self._events, event)

    def record(self, event: int, stream: int, *, external: bool = False) -> None:
        with self._call("record", event, stream, external):
            there, queue = self._find("event", self._events, event), self._queue(stream)
            self._refuse(external and not queue.joined, "an external record on a stream that is not captured")
            node = self._add(queue)
            if external and self._capture:
                self._capture.externals[node] = event
            else:
                there.record, there.graph = node, self._capture if queue.joined else None

    def wait(self, stream: int, event: int) -> None:
        with self._call("wait", stream, event):
            there, queue = self._find("event", self._events, event), self._queue(stream)
            captured = there.graph is not None
            self._refuse(captured and there.graph is not self._capture, "the event was recorded in another capture")
            self._refuse(queue.joined and not captured, "the event was not recorded in this capture")
            self._refuse(captured and not stream, "the default stream cannot be captured")
            queue.joined = captured
            self._add(queue, also=there.record)

    def happened(self, event: int) -> bool:
        with self._call("happened", event):
            self._host_only(event)
            self._gpu.wander()
            record = self._events[event].record
            end = self.time.now() if record is None else record.end
            if end is None or end > self.time.now() + GLANCE:
                return False
            self.time.wait(end)
            return True

    def synchronize(self, event: int) -> None:
        with self._call("synchronize", event):
            self._host_only(event)
            if record := self._events[event].record:
                self._gpu.finish([record])
                self.time.wait(record.end or 0.0)

    def seconds(self, first: int, second: int) -> float:
        with self._call("seconds", first, second):
            ends = []
            for event in (first, second):
                there = self._find("event", self._events, event)
                self._refuse(not there.timed, f"event {event} is not timed")
                end = there.record.end if there.record else None
                self._refuse(end is None, f"event {event} has not happened")
                ends.append(end or 0.0)
            return ends[1] - ends[0]

    # Work.

    def launch(self, stream: int, call: Callable[[], object]) -> None:
        with self._call("launch", stream):
            self._add(self._queue(stream), call, self.cost(stream, call))

    def copy(self, stream: int, target: torch.Tensor, source: torch.Tensor) -> None:
        pinned = self._is_pinned(source), self._is_pinned(target)
        direction = {(True, False): "h2d", (False, True): "d2h", (True, True): "h2h"}.get(pinned, "d2d")
        with self._call("copy", stream, source.nbytes, direction):
            ours, theirs = _form(target), _form(source)
            self._refuse(ours != theirs, f"shape, dtype or layout differ: {ours} from {theirs}")
            held = self._bare(source) if pinned[0] else source
            self._add(self._queue(stream), lambda: target.copy_(held), 1e-6 + source.nbytes / 5e10)

    def probe(self, stream: int, seen: torch.Tensor) -> None:
        with self._call("probe", stream, len(seen)):
            self._refuse(seen.dtype != torch.int32 or seen.dim() != 1, "seen must be int32 [blocks]")
            queue, sms = self._queue(stream), torch.tensor(self.sms(stream), dtype=torch.int32)
            where = sms[torch.arange(len(seen)) % len(sms)]
            self._add(queue, lambda: seen.copy_(where), 1e-6)

    # Graphs.

    def begin_capture(self, stream: int) -> None:
        with self._call("begin_capture", stream):
            queue = self._queue(stream)
            self._refuse(not stream, "the default stream cannot be captured")
            self._refuse(self._capture is not None, "a capture is going on")
            self._capture, queue.joined = Capture(stream), True

    def end_capture(self, stream: int) -> int:
        with self._call("end_capture", stream):
            self._refuse(self._capture is None, "nothing is captured")
            graph, end = self._capture or Capture(stream), self._queue(stream).captured
            self._drop_capture()
            self._refuse(self.poisoned != "", self.poisoned, sticky=True)
            self._refuse(graph.origin != stream, f"it began on stream {graph.origin}")
            self._refuse(graph.invalid, "an earlier failure made the capture invalid")
            joined = ancestors(end)
            loose = [node for node in graph.nodes if (node.work or node in graph.externals) and node not in joined]
            self._refuse(bool(loose), f"{len(loose)} pieces of work are on streams that were not joined again")
            self._raise_fault()
            return self._make("graph", self._graphs, graph)

    def launch_graph(self, graph: int, stream: int) -> None:
        with self._call("launch_graph", graph, stream):
            there, queue = self._find("graph", self._graphs, graph), self._queue(stream)
            self._refuse(queue.joined, "the stream is being captured")
            for event in there.externals.values():
                self._find("event", self._events, event)
            copies: dict[Node, Node] = {}
            entry = self._add(queue, also=there.last)  # a graph never runs beside itself
            for node in there.nodes:
                after = [copies[other] for other in node.after] or [entry]
                copy = copies[node] = Node(
                    after, node.work, node.seconds, self.time.now(), node.hangs, node.what
                )  # fmt: skip  # its fields in order
                self.spoil(copy)
                if node in there.externals:
                    copy.work = self._recording(there.externals[node], copy)
            for copy in copies.values():
                self._gpu.add(copy)
            there.last = queue.last = self._gpu.add(Node([entry, *copies.values()], issued=self.time.now()))

    def destroy_graph(self, graph: int) -> None:
        with self._call("destroy_graph", graph):
            last = self._find("graph", self._graphs, graph).last
            self._refuse(bool(last and last.end is None and not self.poisoned), "it is running")
            self._drop("graph", self._graphs, graph)

    # What is refused.

    def _need_green(self) -> None:
        if not self._green:
            raise BackendError(f"{self._method}: this device has no green contexts")

    def _host_only(self, event: int) -> None:
        self._refuse(self._capture is not None, "the host cannot ask for events while something is captured")
        there = self._find("event", self._events, event)
        self._refuse(there.graph is not None, f"event {event} was recorded in a capture, and is not external")

    def _drop_capture(self) -> None:
        self._capture = None
        for queue in self._streams.values():
            queue.joined, queue.captured = False, None

    def _queue(self, stream: int) -> Stream:
        return self._find("stream", self._streams, stream) if stream else self._streams[0]

    # What is queued.

    def _add(
        self,
        queue: Stream,
        work: Callable[[], object] | None = None,
        seconds: float = 0.0,
        *,
        also: Node | None = None,
    ) -> Node:
        last = queue.captured if queue.joined else queue.last
        after = [node for node in (last, also) if node]
        node = Node(after, self._guarded(work) if work else None, seconds, self.time.now(), what=self._method)
        self.spoil(node)
        if queue.joined and self._capture:
            self._capture.nodes.append(node)
            queue.captured = node
        else:
            queue.last = self._gpu.add(node)
        return node

    def _guarded(self, work: Callable[[], object]) -> Callable[[], object]:
        def guarded() -> None:
            try:
                work()
            except REFUSALS as error:
                if not self._gpu.late and not isinstance(error, KernelError):
                    raise
                self._poison(f"a kernel failed: {error}")
                raise DriverError(f"{self._method}: {self.poisoned}", call=self._method, sticky=True) from error

        return guarded

    def _failing(self, message: str) -> Callable[[], object]:
        def fail() -> None:
            raise KernelError(message)

        return self._guarded(fail)

    def _recording(self, event: int, node: Node) -> Callable[[], object]:
        there = self._events[event]

        def record() -> None:
            there.record, there.graph = node, None

        return record

    def _poison(self, why: str) -> None:
        super()._poison(why)
        self._gpu.drop([stream.last for stream in self._streams.values() if stream.last])


def _form(tensor: torch.Tensor) -> tuple[object, ...]:
    strides = [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
    return tuple(tensor.shape), tensor.dtype, tuple(strides)
