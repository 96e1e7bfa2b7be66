"""Simulation: a model served in virtual time, its steps as long as their plans say; nothing is computed."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Literal
from zlib import crc32

import torch

from nanort.clock import Clock, VirtualClock
from nanort.costs.profile import Profile
from nanort.costs.shipped import shipped
from nanort.devices import Device
from nanort.errors import RequestError
from nanort.graphs import DecoderConfig
from nanort.scheduling.schedule import Schedule
from nanort.serving.batching import Batch
from nanort.serving.engine import Engine
from nanort.serving.kv_cache import PagedKVCache
from nanort.serving.planner import Planner
from nanort.serving.runner import Result
from nanort.serving.steps import Steps, page_bytes, pages_within, searcher
from nanort.serving.traces import Trace

PLANS = 1 << 14
"""Schedules that a simulation keeps: those of all steps, where a real bank has to mind its executors' memory."""


class SimulatedRunner:
    """A Runner that computes nothing: a step takes what its plan predicts; tokens follow from request and position.

    Args:
        steps: the model's.
        planner: finds plans, and keeps them by the shapes of steps.
        clock: by which steps begin and end.
        trace: whether results have timelines, those of the plans.
    """

    def __init__(self, steps: Steps, planner: Planner, clock: Clock, *, trace: bool = False) -> None:
        self.layers = steps.config.layers
        self.trace = trace
        self._steps, self._planner, self._clock = steps, planner, clock
        self._flying: deque[tuple[Batch, Schedule | None, float]] = deque()
        self._free = 0.0  # when the device is done with all that was launched

    @property
    def in_flight(self) -> int:
        """Batches launched and not collected yet."""
        return len(self._flying)

    def launch(self, batch: Batch) -> None:
        """Queues a batch behind those in flight."""
        schedule = self._schedule(batch)
        self._free = max(self._free, self._clock.now()) + self._seconds(batch, schedule)
        self._flying.append((batch, schedule, self._free))

    def collect(self) -> Result:
        """What the batch that was launched first drew, once the clock has come to its end."""
        batch, schedule, ended = self._flying.popleft()
        self._clock.wait(ended)
        vocab = self._steps.config.vocab
        tokens = tuple(
            crc32(f"{share.request.id} {share.stop}".encode()) % vocab if draws else None
            for share, draws in zip(batch.shares, batch.draws, strict=True)
        )
        timeline = schedule.timeline() if self.trace and schedule is not None else None
        return Result(tokens, self._seconds(batch, schedule), timeline=timeline)

    def predict(self, batch: Batch) -> float:
        """Seconds that the plan of such a batch says; pages that move without any rows take what PCIe gives."""
        return self._seconds(batch, self._schedule(batch))

    def close(self) -> None:
        """Ends the planner."""
        self._planner.close()

    def _schedule(self, batch: Batch) -> Schedule | None:
        """The plan of a batch that has rows."""
        shape = self._steps.shape(batch)
        if shape.beside is not None:
            shape = replace(shape, beside=shape.beside.twin)  # layers are alike: few plans tell of all
        return self._planner.find(shape).schedule if batch.shares else None

    def _seconds(self, batch: Batch, schedule: Schedule | None) -> float:
        if schedule is not None:
            return schedule.makespan
        device, page = self._planner.device, self._steps.page_bytes
        return max(len(batch.loads) * page / device.h2d_bandwidth, len(batch.saves) * page / device.d2h_bandwidth)


class Simulation:
    """A decoder served on a device that need not be there: like an LLM, but for weights, tokenizer and wall clock.

    Args:
        config: the model's shapes.
        device: what to schedule for and simulate.
        profile: what was measured on it; by default what comes with nanort for such a device, if anything does.
        dtype: of weights, cache and arithmetic.
        cache_tokens: tokens that the KV cache holds.
        memory: bytes for weights and cache together, where no tokens are given; by default 9 / 10 of the device's.
        host_cache: bytes of host memory for pages of finished and preempted requests.
        nano_batches, policy, guard, page_size, max_rows, seats, preempt, prefix_sharing, slo_tpot, trace: as LLM's.

    >>> from nanort.devices import device
    >>> from nanort.graphs import CONFIGS
    >>> from nanort.bench.arrivals import arrivals
    >>> from nanort.bench.serve import bench_serve
    >>> with Simulation(CONFIGS["tiny"], device("h200"), cache_tokens=1024) as simulation:
    ...     bench_serve(simulation, arrivals("const:32/8", 4)).output_tokens
    32
    """

    def __init__(
        self,
        config: DecoderConfig,
        device: Device,
        *,
        profile: Profile | None = None,
        dtype: torch.dtype = torch.bfloat16,
        nano_batches: tuple[int, ...] = (1, 2),
        policy: str = "list",
        cache_tokens: int | None = None,
        memory: int | None = None,
        host_cache: int = 0,
        page_size: int = 16,
        max_rows: int = 2048,
        seats: int = 2048,
        preempt: Literal["recompute", "swap"] = "recompute",
        prefix_sharing: bool = True,
        slo_tpot: float | None = None,
        guard: bool = True,
        trace: Path | str | None = None,
    ) -> None:
        if min(page_size, max_rows, seats, 1 if cache_tokens is None else cache_tokens) < 1:
            raise RequestError(f"{page_size=}, {max_rows=}, {seats=}, {cache_tokens=}: give at least 1 of each")
        if profile is None and (profile := shipped(device)) is not None:
            device = profile.fitted(device)
        self.config, self.device, self.profile, self.dtype = config, device, profile, dtype
        each = page_bytes(config, page_size, dtype)
        if cache_tokens is not None:
            pages = -(-cache_tokens // page_size) + 1
        else:
            weights = config.parameters * dtype.itemsize
            pages, _ = pages_within(memory or int(0.9 * device.memory_bytes), weights, each)
        steps = Steps(config, dtype, pages, page_size, min(seats, max_rows), max_rows)
        search = searcher(device, profile, policy=policy, nano_batches=nano_batches, guard=guard)
        self._planner = Planner(steps.graph, search, device, guard=guard, carry=policy != "serial", capacity=PLANS)
        clock = VirtualClock()
        self.engine = Engine(
            SimulatedRunner(steps, self._planner, clock, trace=trace is not None),
            PagedKVCache(pages, page_size, host_pages=host_cache // each, sharing=prefix_sharing),
            max_tokens=config.max_positions,
            vocab=config.vocab,
            clock=clock,
            max_rows=max_rows,
            seats=seats,
            preempt=preempt,
            slo_tpot=slo_tpot,
            observe=None if trace is None else Trace(trace),
        )

    @property
    def plans_made(self) -> int:
        """Schedules made so far."""
        return self._planner.made

    @property
    def planning_seconds(self) -> float:
        """What that took."""
        return self._planner.seconds

    def close(self) -> None:
        """Cancels what is served."""
        self.engine.close()

    def __enter__(self) -> Simulation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
