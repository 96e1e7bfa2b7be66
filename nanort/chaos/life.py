"""A life: one process of a world that serves, from an untouched device to the last thing that is given back."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from nanort import driver
from nanort.chaos.device import FaultyDriver
from nanort.chaos.faults import TIMEOUT
from nanort.chaos.house import DTYPE, GPU, House, graph_of, schedule_of, weights
from nanort.chaos.turns import Turns
from nanort.clock import VirtualClock
from nanort.errors import InternalError
from nanort.runtime.cuda import release_hung
from nanort.runtime.partitions import forget
from nanort.serving.engine import Engine
from nanort.serving.ferry import Ferry
from nanort.serving.host_store import HostStore
from nanort.serving.kv_cache import PagedKVCache
from nanort.serving.model_runner import ModelRunner
from nanort.serving.planner import Planner
from nanort.serving.plans import PlanBank


@dataclass(frozen=True, slots=True)
class Options:
    """How a model is served.

    Attributes:
        preempt, sharing: what becomes of requests that make room, and whether pages are shared by prefix.
        policy, pieces: how steps are scheduled, see schedule_of.
        plans: executors that are kept.
        background: whether better plans are searched while serial ones serve.
        pace: seconds a token that decoding requests are to hold; None for any.
        timeout: seconds in which some node of a step has to end; None where steps are queued ahead of their results.
        trace: whether steps are timed, for which the host waits for each.
    """

    preempt: Literal["recompute", "swap"]
    sharing: bool
    policy: int
    pieces: int
    plans: int
    background: bool
    pace: float | None
    timeout: float | None
    trace: bool

    @classmethod
    def drawn(cls, chance: random.Random, house: House) -> Options:
        """Any that go together."""
        sharing = chance.random() < 0.8
        return cls(
            preempt="swap" if house.host_pages and sharing and chance.random() < 0.5 else "recompute",
            sharing=sharing,
            policy=chance.randrange(3),
            pieces=chance.choice((1, 1, 2)),
            plans=chance.choice((2, 4, 32)),
            background=chance.random() < 0.2,
            pace=chance.choice((None, 1e-4, 3e-4)) if house.config.layers > 1 else None,
            timeout=chance.choice((None, TIMEOUT)),
            trace=chance.random() < 0.7,
        )

    def __str__(self) -> str:
        placed = f"scattered by {self.policy}" if self.policy else "serial"
        search = "in the background" if self.background else "at once"
        pace = "" if self.pace is None else f", {1e6 * self.pace:.0f} us a token"
        return (
            f"{self.preempt}, {'' if self.sharing else 'no '}prefix sharing, plans {placed} in {self.pieces}, made "
            f"{search}, {self.plans} kept{pace}, {'no' if self.timeout is None else f'{1e3 * self.timeout:.0f} ms'} "
            f"timeout, {'' if self.trace else 'not '}timed"
        )


@contextmanager
def life(
    house: House, options: Options, chance: random.Random, time: VirtualClock
) -> Iterator[tuple[FaultyDriver, Engine]]:
    """A device, and an engine on it with all that is below, as an LLM has them; ends with everything given back.

    Raises:
        InternalError: something was not.
    """
    gpu, threads = FaultyDriver(chance, time), threading.active_count()
    memory = gpu.memory
    with driver.standing_in(gpu):
        engine = _engine(house, options, chance, time)
        try:
            yield gpu, engine
            engine.close()
        finally:
            gpu.fault = None
            release_hung()
            forget(gpu)
    lent = {kind: len(handles) for kind, handles in gpu.live.items() if handles}
    if lent:
        raise InternalError(f"handles are left: {lent}")
    if (gpu.memory, gpu.pinned) != (memory, 0):
        gc.collect()  # errors and their frames refer to each other
    if (gpu.memory, gpu.pinned) != (memory, 0):
        raise InternalError(f"{memory - gpu.memory} bytes of the device and {gpu.pinned} pinned pieces are left")
    if threading.active_count() != threads:
        raise InternalError(f"{threading.active_count() - threads} threads are left")


def _engine(house: House, options: Options, chance: random.Random, time: VirtualClock) -> Engine:
    """The engine of a new process."""
    steps, slots = house.steps, house.host_pages if options.sharing else 0
    cache = PagedKVCache(house.pages, house.page_size, host_pages=slots, sharing=options.sharing)
    planner = Planner(
        lambda shape: graph_of(house, shape),
        lambda shape, graph: schedule_of(house, shape, options.policy, options.pieces),
        GPU,
        carry=False,
        background=options.background,
        threads=lambda name: Turns(chance),
    )
    states, ferry = steps.states(FaultyDriver.device), Ferry(GPU, options.timeout)
    bank = PlanBank(
        planner,
        weights(house.config),
        states,
        capacity=options.plans,
        trace=options.trace,
        backend=ferry.backend,
        timeout=options.timeout,
    )
    runner = ModelRunner(
        steps,
        bank,
        states,
        cache,
        ferry,
        HostStore(house.config, slots, house.page_size, DTYPE) if slots else None,
        trace=options.trace,
        clock=time,
        threads=lambda name: Turns(chance),
    )
    return Engine(
        runner,
        cache,
        max_tokens=house.room,
        clock=time,
        vocab=house.config.vocab,
        max_rows=house.max_rows,
        seats=house.seats,
        preempt=options.preempt,
        slo_tpot=options.pace,
    )
