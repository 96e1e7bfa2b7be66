"""Meter: what launches take on SM partitions of a GPU, alone and side by side, by the GPU's own clock."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from statistics import median

import torch

from nanort.costs.samples import Place, Sample
from nanort.devices import Device
from nanort.driver import Driver
from nanort.errors import REFUSALS, BackendError, CostError, DeviceMemoryError, DriverError, ExecutionError, NanortError
from nanort.partition import Group, Stream, split, whole
from nanort.runtime.faults import failure
from nanort.runtime.kernels import Call, launch, refusal, scratch_bytes
from nanort.runtime.partitions import partitions
from nanort.runtime.sweeps import Part, Point

COPIES = 256
"""Of a launch's tensors at most: smaller ones stay in L2, as they would in a model, and cost little but the launch."""
SHORT = 200e-6
"""Seconds below which launches are captured in a graph, since queueing one would take as long as running it."""
ROUND = 1e-3
"""Seconds that such a graph takes at least, so that the events at its ends do not count."""
OVERLAP = 4
"""Rounds of the longer part for which two run side by side, at least."""


@dataclass(slots=True)
class _Loop:
    """Launches of one part on one stream, again and again: a round is one of each call, or a graph of several such."""

    part: Part
    stream: int
    begin: int
    end: int
    calls: list[Call]
    graph: int = 0
    launches: int = 0  # in a round


class GpuMeter:
    """Measures points on the GPU behind ``driver``.

    Launches take turns with copies of their tensors that together exceed L2, so that each finds nothing of its own
    there, as in a model. Two parts side by side repeat until both are done; the longer one's rest counts as alone.

    Args:
        driver: the GPU.
        device: its figures, as plans have them.
        repeats: times taken of each part, of which a sample has the median.

    Attributes:
        device, place, counts, pairs: see Meter.

    Raises:
        BackendError: ``device`` is not like the GPU.
        DriverError: the driver failed to split the SMs.
    """

    def __init__(self, driver: Driver, device: Device, *, repeats: int = 9) -> None:
        self.device = device
        self.place = Place.of(device, driver)
        self.pairs = True
        self._driver = driver
        self._partitions = partitions(driver, device)
        self._repeats = repeats
        groups = range(device.sm_minimum, device.partitionable_sms + 1, device.sm_granularity)
        self.counts = tuple(sorted({*(() if self._partitions.fallback else groups), device.sms}))

    def __call__(self, point: Point) -> tuple[Sample, ...]:
        """A sample of each part.

        Raises:
            ExecutionError: a launch failed, and is named; or the driver refuses the partition.
        """
        with ExitStack() as made, torch.no_grad():
            loops = [made.enter_context(self._loop(*on)) for on in zip(point, self._groups(point), strict=True)]
            alone = [[self._timed(loop) for _ in range(self._repeats)] for loop in loops]
            if len(loops) == 1:
                return (self._sample(point[0], alone[0]),)
            times = self._beside(loops, [median(found) for found in alone])
            one, other = point
            return self._sample(one, times[0], other), self._sample(other, times[1], one)

    def _sample(self, part: Part, times: list[float], beside: Part | None = None) -> Sample:
        clocks = tuple(sorted(self._driver.clocks().items()))
        return Sample.of(part.call, times, clocks, beside.call if beside else None)

    def _groups(self, point: Point) -> tuple[Group, ...]:
        """Disjoint groups of SMs; the whole device for parts that hold all of it, or that no groups can hold."""
        sizes, grain = [part.sms for part in point], self.device.sm_granularity
        if sum(sizes) > self.device.partitionable_sms or any(sms % grain for sms in sizes):
            return (whole(self.device, len(point)),) * len(point)
        return split(self.device, sizes)

    @contextmanager
    def _loop(self, part: Part, group: Group) -> Iterator[_Loop]:
        """A part ready to be repeated: compiled, warm, and captured if it is short."""
        driver = self._driver
        with ExitStack() as made:
            stream = self._partitions.stream(Stream(group.name, group))
            made.callback(self._partitions.release, [stream])
            begin, end = self._event(made), self._event(made)
            try:
                calls = self._calls(part)
            except NanortError:
                raise
            except REFUSALS as error:  # of torch itself, which fills the tensors
                raise failure(part.operands.program, part.launch, error) from error
            loop = _Loop(part, stream, begin, end, calls, launches=len(calls))
            made.callback(self._drain, loop)
            driver.record(end, 0)  # torch fills tensors on the default stream
            driver.wait(stream, end)
            self._timed(loop)
            if (seconds := self._timed(loop)) < SHORT:
                loop.launches *= math.ceil(ROUND / (seconds * loop.launches))
                if graph := self._captured(loop):
                    made.callback(driver.destroy_graph, graph)
                    made.callback(self._drain, loop)
                    loop.graph = graph
                    self._timed(loop)
            yield loop

    def _event(self, made: ExitStack) -> int:
        event = self._driver.create_event(timed=True)
        made.callback(self._driver.destroy_event, event)
        return event

    def _calls(self, part: Part) -> list[Call]:
        """The launch on each of as many copies of its tensors as together exceed L2, memory allowing."""
        step = replace(part.launch, kernel=part.kernel, sms=part.sms)
        program, allocate = part.operands.program, self._driver.allocate
        if reason := refusal(program, step):
            raise CostError(f"the kernel {step.kernel!r} of {step.op.name} {reason}")
        nbytes = scratch_bytes(program, step)
        scratch = allocate(nbytes) if nbytes else None
        sets = [part.operands.tensors(step, allocate)]
        held = max(1, sum(tensor.nbytes for tensor in sets[0].values()))
        touched = min(held, part.node.demand.hbm_bytes) or held  # of a table of embeddings, some rows
        room = self.device.memory_bytes // 4 // held
        copies = max(1, min(1 + math.ceil(self.device.l2_bytes / touched), COPIES, room))
        sets += [part.operands.tensors(step, allocate) for _ in range(copies - 1)]
        device = torch.device(self._driver.device)
        return [launch(program, step, tensors, scratch, device) for tensors in sets]

    def _captured(self, loop: _Loop) -> int:
        """A graph of a round; 0 where the launch cannot be captured, and so will be queued in a run too."""
        try:
            self._driver.begin_capture(loop.stream)
            try:
                self._launch(loop)
            except BaseException:
                with suppress(DriverError):  # what failed may have broken the capture as well
                    self._driver.destroy_graph(self._driver.end_capture(loop.stream))
                raise
            return self._driver.end_capture(loop.stream)
        except ExecutionError:
            if self._driver.poisoned:
                raise
            return 0

    def _launch(self, loop: _Loop) -> None:
        """Queues the launches of a round one by one."""
        for at in range(loop.launches):
            try:
                self._driver.launch(loop.stream, loop.calls[at % len(loop.calls)])
            except (DriverError, DeviceMemoryError, *REFUSALS) as error:
                raise failure(loop.part.operands.program, loop.part.launch, error) from error

    def _round(self, loop: _Loop) -> None:
        if loop.graph:
            self._driver.launch_graph(loop.graph, loop.stream)
        else:
            self._launch(loop)

    def _timed(self, loop: _Loop) -> float:
        """Seconds of a launch, over a round."""
        self._driver.record(loop.begin, loop.stream)
        self._round(loop)
        self._driver.record(loop.end, loop.stream)
        self._driver.synchronize(loop.end)
        return self._driver.seconds(loop.begin, loop.end) / loop.launches

    def _beside(self, loops: list[_Loop], alone: list[float]) -> list[list[float]]:
        """Seconds of a launch of each of two parts while the other runs, several times."""
        rounds = [loop.launches * seconds for loop, seconds in zip(loops, alone, strict=True)]
        counts = [math.ceil(OVERLAP * max(rounds) / each) for each in rounds]
        took = self._together(loops, counts)  # tells how many rounds keep both busy for as long
        counts = [math.ceil(count * max(took) / each) for count, each in zip(counts, took, strict=True)]
        times: list[list[float]] = [[], []]
        for _ in range(self._repeats):
            took = self._together(loops, counts)
            for found, loop, count, each, seconds in zip(times, loops, counts, took, alone, strict=True):
                beside = loop.launches * count - (each - min(took)) / seconds
                found.append(min(took) / beside if beside >= 1 else each / (loop.launches * count))
        return times

    def _together(self, loops: list[_Loop], counts: list[int]) -> list[float]:
        """Seconds from the common begin until each part has done so many rounds."""
        driver, (first, second) = self._driver, loops
        driver.record(first.begin, first.stream)
        driver.wait(second.stream, first.begin)
        turns = sorted((turn / count, which) for which, count in enumerate(counts) for turn in range(count))
        for _, which in turns:  # in the order in which they will begin, so that neither waits for the host
            self._round(loops[which])
        for loop in loops:
            driver.record(loop.end, loop.stream)
        for loop in loops:
            driver.synchronize(loop.end)
        return [driver.seconds(first.begin, loop.end) for loop in loops]

    def _drain(self, loop: _Loop) -> None:
        """Waits for what is queued, so that nothing is destroyed or given away that is still in use."""
        with suppress(BackendError):  # what failed is being raised already
            self._driver.record(loop.end, loop.stream)
            self._driver.synchronize(loop.end)
