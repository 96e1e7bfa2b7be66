"""Contests: kernels beside their public peers and beside the GPU's roofs, on all SMs and on parts of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TypeVar

import numpy as np
import torch
from triton.errors import TritonError

import nanort as nr
from benchmarks.gpu.calls import Calls, Maker
from benchmarks.gpu.places import device_of, on, streams
from benchmarks.gpu.timing import DTYPE, Work, captured, device_seconds, finish, interleave, random_tensor, rate, sized
from benchmarks.measure import Row, Samples, Spread, compared
from nanort.driver import Driver
from nanort.errors import NanortError

Case = TypeVar("Case")
Entry = tuple[str, int]
"""Who competes, and on how many SMs."""
Goal = tuple[str, float]

PARTS_OF = (64, 96, 32, 128)
"""SMs of the partitions."""
SAMPLE, MOST = 2e-3, 100
"""Seconds that a sample takes at least, so that what starts a graph is lost in it; replays of one at most."""
FAILS = (NanortError, TritonError, RuntimeError, ValueError, TypeError, ImportError, OSError, AttributeError)
"""What a kernel fails with that does not run here, and a library of another version."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a contest found.

    Attributes:
        name: of the contest.
        sms: of the device.
        kernels, peers: who competed, ours and others.
        seconds: of one call, in every round, by who it was and on how many SMs.
        roof: seconds below which no call could be at this round's bandwidth and rate of products, on all SMs.
        failed: why others could not, in one line.
    """

    name: str
    sms: int
    kernels: Collection[str]
    peers: Collection[str]
    seconds: Mapping[Entry, Samples]
    roof: Samples
    failed: Mapping[Entry, str]

    def best(self, names: Collection[str], sms: int) -> str:
        """The fastest of these on so many SMs; "" where none ran."""
        ran = [name for name in names if (name, sms) in self.seconds]
        return min(ran, key=lambda name: float(np.median(self.seconds[name, sms])), default="")

    def rows(self) -> Iterator[Row]:
        """Seconds of everyone beside the best peer on the same SMs, and what share of the roof that is."""
        for (who, sms), seconds in self.seconds.items():
            told, peer = f"{who}, {self.name}, {sms} SMs", self.best(self.peers, sms)
            if peer in ("", who):
                yield Row(told, "us", Spread.of(1e6 * seconds))
            else:
                yield compared(told, 1e6 * seconds, peer, 1e6 * self.seconds[peer, sms], unit="us")
            yield Row(f"{told}: of the roof", "%", Spread.of(100 * self.roof / seconds))
        for (who, sms), why in self.failed.items():
            yield _absent(f"{who}, {self.name}, {sms} SMs", why, ours=who in self.kernels)

    def against_peers(self, names: Collection[str], sms: int, least: float) -> Iterator[Row]:
        """The fastest of these kernels beside the fastest peer, with a goal."""
        ours, theirs = self.best(names, sms), self.best(self.peers, sms)
        if ours and theirs:
            seconds, against = self.seconds[ours, sms], self.seconds[theirs, sms]
            told = f"goal: {ours}{', the best of ours' * (len(names) > 1)}, {self.name}, {sms} SMs"
            yield compared(told, 1e6 * seconds, theirs, 1e6 * against, unit="us", goal=(">=", least))

    def against_roof(self, names: Collection[str], least: float) -> Iterator[Row]:
        """The fastest of these kernels on all SMs beside the roof, with a goal."""
        if ours := self.best(names, self.sms):
            share = Spread.of(100 * self.roof / self.seconds[ours, self.sms])
            yield Row(f"goal: {ours}, {self.name}, {self.sms} SMs, of the roof", "%", share, goal=(">=", 100 * least))

    def against_itself(self, names: Collection[str], sms: int, least: float, *, share: float = 1.0) -> Iterator[Row]:
        """The fastest of these on a part of the SMs beside all of them, of whose speed that is to keep ``share``."""
        ours, whole = self.best(names, sms), self.best(names, self.sms)
        if ours and whole and sms != self.sms:
            told, seconds = f"goal: {ours}, {self.name}, {sms} SMs beside all", self.seconds[ours, sms]
            base = f"{'' if share == 1 else f'{share:.3f} of '}its speed on {self.sms} SMs"
            against = self.seconds[whole, self.sms] / share
            yield compared(told, 1e6 * seconds, base, 1e6 * against, unit="us", goal=(">=", least))


def _absent(name: str, why: str, *, ours: bool) -> Row:
    """What did not run, which is a goal missed where it is ours."""
    return Row(f"{name} does not run: {why}", "runs", Spread.of([0.0]), goal=(">=", 1.0) if ours else None)


class Arena:
    """Where contests take place: streams on all SMs and on partitions, and what tells the roofs.

    Attributes:
        sms: of the device.
        counts: all SMs, then those of the partitions.
    """

    def __init__(self, driver: Driver, scale: float, handles: Mapping[int, int]) -> None:
        self.driver, self.scale = driver, scale
        self.counts = tuple(handles)
        self.sms = self.counts[0]
        self._handles = handles
        self._roofs = _roofs(driver, scale)

    def roofs(self) -> Iterator[Row]:
        """Bandwidth and rate of products that shares are taken of, alone."""
        found = self._interleaved({name: call for name, (_, call) in self._roofs.items()}, {})
        for name, (amount, _) in self._roofs.items():
            unit = "TFLOP/s" if name == PRODUCT else "GB/s"
            yield rate(f"roof: {name}", amount * (1e-12 if name == PRODUCT else 1e-9), unit, found[name, self.sms])

    def errors(self, calls: Calls) -> Iterator[Row]:
        """How far each kernel of these calls is from the exact result."""
        told = f"its error over the tolerance of {DTYPE}"
        yield from self.judged(calls, told, "times", partial(calls.error, sms=self.sms), ("<=", 1.0))

    def judged(self, calls: Calls, told: str, unit: str, judge: Callable[[str], float], goal: Goal) -> Iterator[Row]:
        """What is found of each kernel of these calls, given its name; one that does not run has missed its goal."""
        for kernel in calls.op.kernels:
            name = f"{calls.op.name}.{kernel}"
            try:
                found = Spread.of([judge(kernel)])
            except FAILS as failure:
                yield _absent(name, self._why(failure), ours=True)
            else:
                yield Row(f"{name}: {told}", unit, found, goal=goal)

    def contest(
        self, name: str, calls: Calls, peers: Mapping[str, Maker], counts: Sequence[int] | None = None
    ) -> Found:
        """Everyone in every round, captured; who cannot run is left out, and the result says so."""
        everyone, ready, failed = {**calls.kernels, **peers}, dict[Entry, Callable[[], float]](), dict[Entry, str]()
        with ExitStack() as stack:
            for sms in counts or self.counts:
                for who, maker in everyone.items():
                    try:
                        ready[who, sms] = self._ready(stack, sms, maker(sms))
                    except FAILS as failure:
                        failed[who, sms] = self._why(failure)
            found = self._interleaved({name: call for name, (_, call) in self._roofs.items()}, ready)
        return Found(
            name, self.sms, calls.kernels.keys(), peers.keys(),
            {entry: found[entry] for entry in ready}, self._roof(calls.demand, found), failed,
        )  # fmt: skip  # one argument a line would hide what they are

    def _why(self, failure: Exception) -> str:
        """In one line, unless the device is left unusable."""
        if self.driver.poisoned:
            raise failure
        return f"{type(failure).__name__}: {str(failure).strip().partition(chr(10))[0][:200]}"

    def _ready(self, stack: ExitStack, sms: int, calls: Sequence[Work]) -> Callable[[], float]:
        """What tells the seconds of a call, all of them captured as one graph."""
        driver, handle = self.driver, self._handles[sms]

        def work() -> None:
            for call in calls:
                driver.launch(handle, call)

        finish(driver, 0)  # tensors were filled there
        work()  # compiles and loads, which no capture can
        finish(driver, handle)
        graph = stack.enter_context(captured(driver, handle, work))
        graph()
        times = min(sized(MOST, self.scale), math.ceil(SAMPLE / device_seconds(driver, handle, graph)))
        return lambda: device_seconds(driver, handle, graph, times) / len(calls)

    def _interleaved(
        self, roofs: Mapping[str, Work], entries: Mapping[Entry, Callable[[], float]]
    ) -> dict[Entry, Samples]:
        handle = self._handles[self.sms]
        known = {
            (name, self.sms): partial(device_seconds, self.driver, handle, partial(self.driver.launch, handle, call), 3)
            for name, call in roofs.items()
        }
        variants: dict[Entry, Callable[[], float]] = {**known, **entries}
        found = interleave({f"{who}\n{sms}": variant for (who, sms), variant in variants.items()}, self.scale)
        return {(who, sms): found[f"{who}\n{sms}"] for who, sms in variants}

    def _roof(self, demand: nr.Demand, found: Mapping[Entry, Samples]) -> Samples:
        """Seconds that the demand takes at the round's rates, whichever binds."""
        rates = {name: amount / found[name, self.sms] for name, (amount, _) in self._roofs.items()}
        memory = demand.hbm_bytes / np.maximum(rates[COPY], rates[READ])
        return np.maximum(memory, demand.flops / rates[PRODUCT])


COPY, READ, PRODUCT = "bandwidth, read and written", "bandwidth, read", "rate of products"


def _roofs(driver: Driver, scale: float) -> dict[str, tuple[float, Work]]:
    """Bytes or flops of each roof and what does them: 1 GiB without reuse in L2, and a large square product."""
    x = random_tensor(driver, sized(1 << 15, scale), sized(1 << 13, scale, 64), dtype=torch.float32)
    y, sums = torch.empty_like(x), torch.empty(len(x), device=driver.device)
    a, b = (random_tensor(driver, sized(8192, scale, 64), sized(8192, scale, 64), dtype=DTYPE) for _ in "ab")
    product = torch.empty_like(a)
    return {
        COPY: (2 * x.nbytes, lambda: torch.neg(x, out=y)),
        READ: (x.nbytes + sums.nbytes, lambda: torch.sum(x, dim=1, out=sums)),
        PRODUCT: (2 * len(a) ** 3, lambda: torch.mm(a, b.T, out=product)),
    }


@contextmanager
def arena(driver: Driver, scale: float) -> Iterator[Arena]:
    """All SMs and, of the partitions that benchmarks look at, those that this device has; a few at a small scale."""
    device = device_of(driver)
    counts = few([device.sms, *(sms for sms in PARTS_OF if sms <= device.partitionable_sms)], scale)
    with streams(driver, *(on(device, sms) for sms in counts)) as handles:
        yield Arena(driver, scale, dict(zip(counts, handles, strict=True)))


def until(seconds: float, scale: float, cases: Sequence[Case], rows: Callable[[Case], Iterator[Row]]) -> Iterator[Row]:
    """The rows of one case after another, the most telling first, until the time is up; a row tells what was left.

    At a small scale the first cases are all there are, however long they take.
    """
    began, cases = monotonic(), few(cases, scale)
    for at, case in enumerate(cases):
        if monotonic() - began > seconds and scale >= 1:
            left = "; ".join(map(str, cases[at:]))
            yield Row(f"left out after {seconds:.0f} s: {left}", "cases", Spread.of([len(cases) - at]))
            return
        yield from rows(case)


def few(items: Sequence[Case], scale: float) -> Sequence[Case]:
    """All of them; at a small scale the first two, or a few more."""
    return items[: max(2, round(len(items) * min(1.0, scale)))]
