"""The cuda backend: a program queued on streams of the GPU, instruction by instruction or as one captured graph.

A run is queued like this, without waiting for the GPU unless the host has a part in it:

1. Inputs of the host are copied into pinned staging, which the run before the last is done with.
2. The main stream, the program's first, waits for what the caller has queued, and copies the inputs of the device.
3. Every other stream waits for the main one; then come the program's instructions, in order; then the main stream waits
   for every other one. This part is what a captured graph holds.
4. The caller's stream waits for the main one, so that torch code may use the outputs and change the inputs right away.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial

import torch

from nanort.driver import Driver
from nanort.errors import BackendError, CapacityError, DriverError, ExecutionError, HangError
from nanort.printable import said
from nanort.programs.program import Program
from nanort.programs.record import RunRecord
from nanort.runtime import faults
from nanort.runtime.buffers import SLOTS, bound_on, buffers, is_read_by_host, pageable
from nanort.runtime.kernels import references, supported
from nanort.runtime.marks import Marks, Run
from nanort.runtime.partitions import partitions
from nanort.runtime.queues import Queue, handles, joining, queue, work
from nanort.runtime.recorded import CudaRecorder
from nanort.runtime.recorder import refuse
from nanort.timeline.events import Timeline

_HUNG: list[tuple[ExitStack, object]] = []
"""What closed backends cannot give back, since a node of theirs hangs and may still write to their memory."""


def release_hung() -> None:
    """Gives back what closed backends could not, once everything on the device has ended."""
    while _HUNG:
        held, _ = _HUNG.pop()
        held.close()


class CudaBackend:
    """Runs a program on a GPU, or on whatever else ``driver`` stands for.

    Args:
        program: planned for this GPU.
        bound: constants and states by root, on the device or on the host.
        driver: the GPU's.
        trace: whether activities are timed.
        capture: whether runs after the first are replays of a graph, one for each slot of the outputs. The first is
            queued instruction by instruction, since kernels are compiled and libraries set up when they are first used.
        timeout: seconds in which some activity has to end; with it the host waits for the end of every run.
        budget: bytes of the device that it may take, besides constants and states, and what references and libraries
            allocate on the way.
        strict: whether a kernel that does not take its arguments is an error; otherwise its reference runs.
        wait: whether the host waits for the end of a run that leaves something there.
        debug: whether runs are recorded and judged, for which the host waits for their end.

    Raises:
        BackendError: the program was planned for another GPU, or cannot run on any.
        CapacityError: the budget is too small.
        DeviceMemoryError: there is not enough memory.
        PoisonedError: the device has failed before in this process.
    """

    def __init__(
        self,
        program: Program,
        bound: dict[int, torch.Tensor],
        *,
        driver: Driver,
        trace: bool = True,
        capture: bool = False,
        timeout: float | None = None,
        budget: int | None = None,
        strict: bool = False,
        wait: bool = True,
        debug: bool = False,
    ) -> None:
        if timeout is not None and not timeout > 0:
            raise BackendError(f"timeout={timeout!r}: give more than zero seconds, or None to wait for ever")
        if budget is not None and not budget > 0:
            raise CapacityError(f"budget={budget!r}: give bytes of the device, more than none, or None for no limit")
        faults.refuse_poisoned(driver)
        program = supported(program, strict=strict) if driver.runs_kernels else references(program)
        self.program, self.timeout = program, timeout
        self.device = torch.device(driver.device)
        lent = partitions(driver, program.device)
        if lent.fallback and any(stream.group and stream.group.units for stream in program.streams):
            warnings.warn(f"program {program.name} runs on {lent.fallback}", RuntimeWarning, stacklevel=2)
        if costs := pageable(program, bound):
            warnings.warn(costs, RuntimeWarning, stacklevel=2)
        with ExitStack() as held:
            self._marks = Marks.make(program, driver, held, trace=trace, watched=timeout is not None, capture=capture)
            self._handles = handles(program, driver, lent, held, self._marks)
            self._buffers = buffers(program, bound, driver, budget)
            self._recorder: CudaRecorder | None = None
            if debug:
                self._recorder = CudaRecorder(program, driver, self._handles, self._buffers, self.device)
                driver = self._recorder.driver
            self.driver = driver
            self._work = [work(program, driver, self._handles, self._buffers, slot, self.device) for slot in SLOTS]
            if self._recorder is not None:
                self._work = [self._recorder.watched(self._work[slot], slot) for slot in SLOTS]
            driver.record(self._handles.arrived, 0)  # what torch lent may still be used by the caller's stream
            driver.wait(self._handles.main, self._handles.arrived)
            self._held = held.pop_all()
        self._outputs = [
            {name: view.of(tensors[view.buffer]) for name, view in program.outputs.items()}
            for tensors in self._buffers.slots
        ]
        self._queues: dict[int, Queue] = {}
        self._graphs: dict[int, int] = {}
        self._capture, self._warm = capture, False
        self._synchronous = debug or timeout is not None or (wait and is_read_by_host(program))
        self._watch = faults.Watch(program, self._marks)
        self._last: Run | None = None
        self._slot = 0  # of the next run
        self._flying = 0  # runs that may not have ended
        self._loose = False  # whether something may be queued that the main stream does not wait for
        self._timeline: Timeline | None = None

    @property
    def memory_bytes(self) -> int:
        """Bytes of the device that it holds until it is closed, without what torch keeps for references and graphs."""
        return self._buffers.memory_bytes

    @property
    def host_inputs(self) -> dict[str, torch.Tensor]:
        """Where the next run reads its inputs of the host; waits for the run before the last, which may still do so."""
        if not self._buffers.staged:
            return {}
        if self._loose:
            self._settle()
        self._wait(self._slot)
        tensors, roots = self._buffers.slots[self._slot], self.program.graph.roots
        return {roots[b.root].name: tensors[b.index] for b in self._buffers.staged if b.root is not None}

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The outputs of one run, which stay as they are until the run after the next one."""
        faults.refuse_poisoned(self.driver)
        given = bound_on(self.device, self.program.graph, inputs, "input")
        try:
            if self._loose:
                self._settle()
            run = self._begin()
            with torch.no_grad():
                self._take(given, run.slot)
                self._carry_out(run)
            self._hand_over(run.slot)
            if self._synchronous:
                self._wait(run.slot)
                self._flying = 0
        except BaseException as error:
            self._recover(error)
            raise
        self._loose, self._warm, self._slot = False, True, 1 - run.slot
        if self._recorder is not None:
            refuse(self._recorder.end())
        return dict(self._outputs[run.slot])

    @property
    def timeline(self) -> Timeline:
        """What happened in the last run; waits for its end.

        Raises:
            PoisonedError: the run left the device unusable.
            DriverError: a call failed.
        """
        try:
            if self._timeline is None:
                self._timeline = self._read()
        except DriverError as error:
            self._recover(error)
            raise
        return self._timeline

    @property
    def record(self) -> RunRecord | None:
        """What was really asked of the driver in the last run, and what it touched, with ``debug``."""
        return None if self._recorder is None else self._recorder.record()

    def close(self) -> None:
        """Waits for the last run, then gives streams, events, graphs and memory back.

        Raises:
            PoisonedError: the run left the device unusable.
            DriverError: a call failed; everything else is given back nevertheless.
        """
        try:
            if self._loose and not self.driver.poisoned:
                self._settle()
            if self._timeline is None:
                self._timeline = self._read()
        except HangError:
            self._timeline = self._read()
            _HUNG.append((self._held.pop_all(), self._buffers))
        except BaseException as error:
            self._recover(error)
            raise
        finally:
            self._let_go()

    # A run.

    def _begin(self) -> Run:
        self._last = Run(self._slot)
        self._timeline = None
        self._loose = True
        self._flying += 1
        self._watch.begin(self._last)
        if self._recorder is not None:
            self._recorder.begin(self._slot)
        return self._last

    def _take(self, given: dict[int, torch.Tensor], slot: int) -> None:
        """Copies the inputs to where the program reads them."""
        driver, here, tensors = self.driver, self._handles, self._buffers.slots[slot]
        if self._buffers.staged:
            self._wait(slot)
            self._flying = min(self._flying, len(SLOTS))
        for buffer in self._buffers.staged:
            if tensors[buffer.index].data_ptr() != given[buffer.root].data_ptr():  # else it was written there
                tensors[buffer.index].copy_(given[buffer.root])
        driver.record(here.arrived, 0)
        driver.wait(here.main, here.arrived)
        for buffer in self._buffers.copied:
            driver.copy(here.main, tensors[buffer.index], given[buffer.root])
        for event in self._marks.began:
            driver.record(event, here.main)

    def _carry_out(self, run: Run) -> None:
        """Queues the program, or the graph that was captured of it."""
        if self._capture and self._warm and (graph := self._graph(run)):
            self.driver.launch_graph(graph, self._handles.main)
            run.begun = run.queued = len(self.program.activities)
            run.replay = True
            return
        if run.slot not in self._queues:
            self._queues[run.slot] = self._queue(run.slot, captured=False)
        self._queues[run.slot].carry_out(run)

    def _queue(self, slot: int, *, captured: bool) -> Queue:
        return queue(self.program, self.driver, self._handles, self._work[slot], captured)

    def _graph(self, run: Run) -> int:
        """The graph of the run's slot, captured now if it was not yet; 0 if it cannot be."""
        if run.slot not in self._graphs:
            try:
                self._graphs[run.slot] = self._captured(run)
            except ExecutionError as error:
                if self.driver.poisoned:
                    raise
                self._capture = False
                message = f"program {self.program.name} is not captured but queued call by call from now on: {error}"
                warnings.warn(message, RuntimeWarning, stacklevel=2)
                return 0
            finally:
                run.begun = run.queued = 0
        return self._graphs[run.slot]

    def _captured(self, run: Run) -> int:
        main, listed = self._handles.main, self._queue(run.slot, captured=True)
        self.driver.begin_capture(main)
        try:
            listed.carry_out(run)
        except BaseException:
            with suppress(Exception):  # what failed may have broken it; what is raised is why
                self.driver.destroy_graph(self.driver.end_capture(main))
            raise
        graph = self.driver.end_capture(main)
        self._held.callback(self.driver.destroy_graph, graph)
        return graph

    def _hand_over(self, slot: int) -> None:
        """Lets the caller's stream go on when all is done."""
        self.driver.record(self._handles.joined[slot], self._handles.main)
        self.driver.wait(0, self._handles.joined[slot])

    def _wait(self, slot: int) -> None:
        """Blocks until the latest run of that slot has ended."""
        joined = self._handles.joined[slot]
        if self.timeout is None:
            self.driver.synchronize(joined)
            return
        self._watch.wait(partial(self.driver.happened, joined), self.timeout)

    # What went wrong, and the end.

    def _recover(self, error: BaseException) -> None:
        """After a failure: the next run can begin, unless the device is lost.

        Raises:
            PoisonedError: it is.
        """
        if self._last is not None:
            self._last.failure = said(error)
        if not self.driver.poisoned and not isinstance(error, HangError):
            with suppress(DriverError, HangError):  # then the next run tries again
                self._settle()
        if self.driver.poisoned:
            poisoned = self._watch.poisoned(error, self._flying)
            self._timeline = self._read()
            self._let_go()
            raise poisoned from error

    def _settle(self) -> None:
        """Waits for whatever was queued, on every stream."""
        for call in joining(self.driver, self._handles):
            call()
        self._hand_over(self._slot)
        self._wait(self._slot)
        self._loose, self._flying = False, 0

    def _let_go(self) -> None:
        """Gives everything back."""
        held, self._held = self._held, ExitStack()
        self._work, self._queues, self._outputs = [], {}, []
        self._buffers = replace(self._buffers, slots=({}, {}), scratch={}, memory_bytes=0)
        self._last, self._loose = None, False
        if self._recorder is not None:
            self._recorder.close()
        with suppress(DriverError) if self.driver.poisoned else ExitStack():
            held.close()

    def _read(self) -> Timeline:
        """The timeline of the last run: once it has ended, or what is known of one that has not."""
        run = self._last
        begun: Sequence[int] = ()
        ended: Sequence[int] = ()
        if run is not None and not self.driver.poisoned:
            if self._loose:
                begun = ended = self._watch.ended()
            else:
                self._wait(run.slot)
                self._flying = 0
                begun, ended = range(run.begun), range(run.queued)
        return self.program.plan.with_times(
            *self._marks.times(begun, ended), kind="measured", failure=run.failure if run else ""
        )
