"""ModelRunner: batches carried out on a device by the executors of their plans, in a thread of their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from nanort.clock import Clock, WallClock
from nanort.errors import DriverError, NanortError, PoisonedError
from nanort.serving.batching import Batch, Rows
from nanort.serving.ferry import Ferry, Voyage
from nanort.serving.host_store import HostStore
from nanort.serving.kv_cache import PagedKVCache
from nanort.serving.logprobs import likeliest, told
from nanort.serving.plans import PlanBank
from nanort.serving.runner import Result
from nanort.serving.shapes import Shape
from nanort.serving.steps import Steps
from nanort.serving.threads import Threads, one_thread
from nanort.timeline.events import Timeline


@dataclass(frozen=True, slots=True)
class _Flight:
    """A batch that was queued: what comes of it, when that was, and how long the call took."""

    voyage: Voyage
    began: float
    seconds: float
    saved: Mapping[str, torch.Tensor] | None = None
    timeline: Timeline | None = None


class ModelRunner:
    """A Runner on a real device.

    What a batch says is put down in numbers when it is launched. The thread then finds its plan, packs the numbers as
    the plan wants them and runs it, so that the engine never waits for compute and only this thread uses executors.

    Args:
        steps: the model's.
        bank: its plans.
        states: what its steps change in place.
        cache: which pages requests hold, asked when a batch is launched.
        store: the pages of the host tier; None where there is none.
        ferry: brings inputs to the device and tokens back.
        trace: whether results have timelines.
        clock: by which steps are timed; by default the machine's.
        threads: starts the thread.
    """

    def __init__(
        self,
        steps: Steps,
        bank: PlanBank,
        states: Mapping[str, torch.Tensor],
        cache: PagedKVCache,
        ferry: Ferry,
        store: HostStore | None = None,
        *,
        trace: bool = False,
        clock: Clock | None = None,
        threads: Threads = one_thread,
    ) -> None:
        self.layers = steps.config.layers
        self.trace = trace
        self._steps, self._bank, self._cache, self._ferry = steps, bank, cache, ferry
        self._states, self._store = states, store
        self._clock: Clock = WallClock() if clock is None else clock
        self._thread = threads("nanort steps")
        self._flying: deque[tuple[Batch, Future[_Flight]]] = deque()
        self._keeping: Future[None] | None = None  # the pages saved last, on their way into the store
        self._ended = 0.0  # when the device was done with the batch collected last

    @property
    def in_flight(self) -> int:
        """Batches launched and not collected yet."""
        return len(self._flying)

    @property
    def planning_seconds(self) -> float:
        """Seconds that steps waited for their plans."""
        return self._bank.planner.seconds

    def launch(self, batch: Batch) -> None:
        """Queues a batch, and waits for nothing."""
        shape = self._steps.shape(batch)
        rows = Rows.of(batch, self._cache, shape.bucket.width)
        self._flying.append((batch, self._thread.submit(self._run, batch, rows, shape)))

    def collect(self) -> Result:
        """What came of the batch that was launched first; waits for its end.

        Raises:
            ExecutionError: it failed.
            PoisonedError: so did the device.
        """
        batch, future = self._flying[0]
        try:
            flight = future.result()  # an interrupt here, or in the wait for the device, leaves it in flight
            fetched = self._ferry.wait(flight.voyage)
        except Exception as error:
            self._flying.popleft()
            if isinstance(error, DriverError) and error.sticky:
                raise PoisonedError(
                    f"the device failed in or after the step of {batch.layout} for {batch.requests}, and is of no use "
                    f"any more in this process: {error}. Start the process again"
                ) from error
            raise
        self._flying.popleft()
        if self._store is not None and flight.saved is not None:
            # In the thread, and so before the batch after next, which may load these pages and writes where they are.
            self._keeping = self._thread.submit(self._store.keep, batch, flight.saved)
        ended = self._clock.now()
        seconds = ended - max(flight.began, self._ended) if self._ferry.waits else flight.seconds
        self._ended = ended
        drawn = fetched["tokens"].tolist() if batch.shares else []
        tokens = tuple(token if draws else None for token, draws in zip(drawn, batch.draws, strict=False))
        return Result(tokens, seconds, told(batch, tokens, fetched), flight.timeline)

    def predict(self, batch: Batch) -> float:
        """Seconds that the plan of such a batch says."""
        shape = self._steps.shape(batch)
        twin = None if shape.beside is None else shape.beside.twin
        return self._bank.planner.find(replace(shape, beside=twin)).schedule.makespan

    def close(self) -> None:
        """Ends the thread and the executors, after what is in flight."""
        try:
            while self._flying:
                with suppress(NanortError):  # whoever would have been told is gone
                    self.collect()
        finally:
            self._thread.submit(self._bank.close)
            self._thread.shutdown()
            self._ferry.close()
            self._bank.planner.close()

    def _run(self, batch: Batch, rows: Rows, shape: Shape) -> _Flight:
        """Queues a batch on the device; on the CPU, runs it."""
        began, store, keeping = self._clock.now(), self._store, self._keeping
        if keeping is not None and keeping.done():
            keeping.result()  # what it raises must not pass in silence
        if not batch.shares:
            if store is not None:
                self._ferry.settle()  # the store reads and writes what steps before may still use
                store.move(batch, self._states)
            return _Flight(self._ferry.back({}), began, self._clock.now() - began)
        plan = self._bank.find(shape)
        given = rows.inputs(
            plan.layout, (plan.shape.requests, plan.shape.width), self._steps.seats, plan.shape.sampling
        )
        moved = {} if store is None else store.inputs(batch, plan.run.host_inputs)
        given |= {name: moved.pop(name) for name in ("swap_out", "swap_in") if name in moved}  # the rest is the host's
        inputs = self._ferry.there(given)
        began = self._clock.now()
        outputs = plan.run(**inputs, **moved)
        seconds = self._clock.now() - began
        timeline = plan.run.timeline if self.trace else None
        voyage = self._ferry.back({"tokens": outputs["tokens"], **likeliest(batch, outputs)})
        saved = outputs if batch.saves else None
        return _Flight(voyage, began, seconds, saved, timeline)
