"""The cpu backend: one worker thread a stream runs references in FIFO order, with events between streams."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from queue import SimpleQueue
from time import perf_counter_ns

import numpy as np
import torch

from nanort.eager import bind
from nanort.errors import BackendError, ExecutionError
from nanort.partition import Stream
from nanort.printable import said
from nanort.programs.program import Copy, Launch, Program, Record, Wait
from nanort.programs.record import RunRecord
from nanort.runtime.recorder import CpuRecorder, Happening, refuse
from nanort.runtime.steps import Compiler, Step
from nanort.timeline.events import Timeline

Item = Step | Record | Wait


class _Run:
    """The state of one run: tensors, events (a held lock is one that has not happened), times, a failure."""

    def __init__(
        self, compiler: Compiler, bound: dict[int, torch.Tensor], events: Sequence[Happening], steps: int, workers: int
    ) -> None:
        self.env = compiler.env(bound)
        self.users = compiler.users()
        self.events = events
        self.start = [-1] * steps
        self.end = [-1] * steps
        self.failure: tuple[Step | None, BaseException] | None = None  # no step where the caller was interrupted
        self.busy = [None] * workers  # whoever takes the last item ends the run
        self.over: SimpleQueue[None] = SimpleQueue()  # not an Event, which an interrupt can leave locked
        self.began = perf_counter_ns()


class CpuBackend:
    """Runs a program's references; a program of one stream runs in the calling thread.

    A group of n cores runs its operators on n threads. After a failure the streams skip what is left to launch but
    still record their events, so that nobody is left waiting.

    With ``debug`` a recorder takes the place of steps and events; the loop that carries them out is the same.
    """

    def __init__(self, program: Program, bound: dict[int, torch.Tensor], *, trace: bool, debug: bool = False) -> None:
        self.program = program
        self.trace = trace
        self.bound = bound
        self.compiler = Compiler(program)
        self.recorder = CpuRecorder(program) if debug else None
        if self.recorder is not None:
            made = {step.node: step for step in program.instructions if isinstance(step, (Launch, Copy))}
            for node, step in self.compiler.steps.items():
                self.compiler.steps[node] = self.recorder.watched(step, made[node])
        self.queues = _queues(program, self.compiler)
        self.last: _Run | None = None
        self.go: dict[str, SimpleQueue[_Run | None]] = {}
        self.workers: list[threading.Thread] = []
        if len(self.queues) > 1:
            before, ready = torch.get_num_threads(), SimpleQueue[None]()
            try:
                for stream in program.streams:
                    if stream.name in self.queues:
                        self._hire(stream, ready)
                for _ in self.workers:
                    ready.get()
            except BaseException:
                self.close()
                raise
            finally:
                torch.set_num_threads(before)  # threads that start later take what was last set anywhere

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The outputs of one run.

        Raises:
            ExecutionError: a node failed.
            RecordError: with ``debug``, the run was other than the program says.
        """
        bound = self.bound | bind(self.program.graph, inputs, ("input",), "cpu")
        steps, workers = len(self.program.activities), len(self.workers)
        made = _held if self.recorder is None else self.recorder.event
        events = [made(number) for number in range(self.program.events)]
        run = self.last = _Run(self.compiler, bound, events, steps, workers)
        if self.recorder is not None:
            self.recorder.begin(run.env)
        record = None
        try:
            if self.workers:
                self._dispatch(run)
            else:
                self._alone(run)
        finally:
            if self.recorder is not None:
                record = self.recorder.end(ended=run.failure is None)
        if run.failure is not None:
            step, error = run.failure
            # An interrupt, or a node that wants the process to end, is no failure of the node.
            if step is None or not isinstance(error, Exception):
                raise error
            if record is not None:
                refuse(record, error)
            raise ExecutionError(
                f"node {step.name} ({step.where}) failed: {said(error)}", node=step.name, where=step.where
            ) from error
        if record is not None:
            refuse(record)
        return self.compiler.outputs(run.env)

    @property
    def record(self) -> RunRecord | None:
        """What really happened in the last run, with ``debug``."""
        return None if self.recorder is None else self.recorder.last

    @property
    def timeline(self) -> Timeline:
        """What happened in the last run."""
        run, device = self.last, self.program.device
        began = run.began if run else 0
        never = [-1] * len(self.program.activities)
        end = np.array(run.end if run else never, dtype=np.int64)  # first: a run that goes on has started what ended
        start = np.array(run.start if run else never, dtype=np.int64)
        return self.program.plan.with_times(
            np.where(start < 0, np.nan, (start - began) * 1e-9),
            np.where(end < 0, np.nan, (end - began) * 1e-9),
            kind="measured",
            device="cpu",
            foreign=device.kind != "cpu",
            failure=_told(run.failure) if run and run.failure else "",
        )

    def close(self) -> None:
        """Ends the worker threads and waits for them."""
        for queue in self.go.values():
            queue.put(None)
        for worker in self.workers:
            worker.join()
        self.go, self.workers, self.bound = {}, [], {}
        if self.last is not None:
            self.last.env = []

    def _alone(self, run: _Run) -> None:
        """Runs the one stream in this thread."""
        name, items = next(iter(self.queues.items()), ("", []))
        stream = next((stream for stream in self.program.streams if stream.name == name), None)
        before, gradients = torch.get_num_threads(), torch.is_grad_enabled()
        if self.recorder is not None:
            self.recorder.enter(name)
        try:
            torch.set_num_threads(self._threads(stream))
            torch.set_grad_enabled(False)
            self._walk(items, run)
        except BaseException as error:  # an interrupt between two nodes
            run.failure = run.failure or (None, error)
            raise
        finally:  # whatever struck, and before what: a with statement may miss an interrupt as it begins
            torch.set_grad_enabled(gradients)
            torch.set_num_threads(before)

    def _dispatch(self, run: _Run) -> None:
        """Wakes every worker and waits until all are through; an interrupt makes them skip to their end first."""
        try:
            self._wake(run)
            run.over.get()
        except BaseException as error:
            run.failure = None, error
            self._wake(run)  # those that it came before; a worker takes a run once
            if run.busy:
                run.over.get()
            raise

    def _wake(self, run: _Run) -> None:
        for queue in self.go.values():
            queue.put(run)

    def _hire(self, stream: Stream, ready: SimpleQueue[None]) -> None:
        queue: SimpleQueue[_Run | None] = SimpleQueue()
        items, threads = self.queues[stream.name], self._threads(stream)

        def work() -> None:
            torch.get_num_threads()  # the first call in a thread takes what was last set anywhere
            torch.set_num_threads(threads)  # per thread: without it every worker makes a team of all cores
            if self.recorder is not None:
                self.recorder.enter(stream.name)
            ready.put(None)
            last: _Run | None = None
            with torch.no_grad():
                while (run := queue.get()) is not None:
                    if run is last:
                        continue
                    self._walk(items, run)
                    last = run
                    run.busy.pop()
                    if not run.busy:
                        run.over.put(None)

        self.go[stream.name] = queue
        worker = threading.Thread(target=work, name=f"nanort {stream.name}", daemon=True)
        try:
            worker.start()
        except RuntimeError as error:
            raise BackendError(
                f"stream {stream.name!r} needs a thread of its own, and there is none ({error}): end some, or raise "
                f"the limits of this process"
            ) from error
        self.workers.append(worker)

    def _threads(self, stream: Stream | None) -> int:
        """The cores of the stream's group; one for a plan that was made for another device."""
        return max(1, stream.sms) if stream is not None and self.program.device.kind == "cpu" else 1

    def _walk(self, items: list[Item], run: _Run) -> None:
        """Carries out one stream's queue; this loop is what a node costs."""
        env, users, start, end, trace, clock = run.env, run.users, run.start, run.end, self.trace, perf_counter_ns
        for item in items:
            if isinstance(item, Step):
                if run.failure is not None:
                    continue
                if trace:
                    start[item.index] = clock()
                try:
                    result = item.call(*item.fetch(env))
                    if item.store is None:
                        env[item.slot] = result.contiguous()
                    else:
                        item.store(env, result)
                except BaseException as error:  # whatever user code raises must not leave others waiting
                    run.failure = item, error  # in one step, since another stream may fail as well
                    continue
                result = None
                if trace:
                    end[item.index] = clock()
                for buffer in item.uses:
                    left = users[buffer]
                    left.pop()
                    if not left:
                        env[buffer] = None
            elif isinstance(item, Wait):
                event = run.events[item.event]
                event.acquire()
                event.release()  # for whoever else waits for it
            else:
                run.events[item.event].release()


def _held(number: int) -> Happening:
    """An event that has not happened: a lock that is held."""
    lock = threading.Lock()
    lock.acquire()
    return lock


def _told(failure: tuple[Step | None, BaseException]) -> str:
    step, error = failure
    return f"{step.name}: {said(error)}" if step else said(error)


def _queues(program: Program, compiler: Compiler) -> dict[str, list[Item]]:
    """Each stream's steps, waits and records, in order; streams without work are left out."""
    queues: dict[str, list[Item]] = {}
    for instruction in program.instructions:
        item = instruction if isinstance(instruction, (Record, Wait)) else compiler.steps[instruction.node]
        queues.setdefault(instruction.stream, []).append(item)
    return queues
