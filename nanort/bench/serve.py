"""bench_serve: a workload served by a model or by a simulation of one, and what that came to."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch

from nanort.bench.arrivals import Arrival
from nanort.bench.optimal import Optimal
from nanort.bench.report import Curve, Report, Spread
from nanort.costs.profile import Profile
from nanort.devices import Device
from nanort.errors import RequestError
from nanort.graphs import DecoderConfig
from nanort.serving.engine import Engine, StepRecord
from nanort.serving.requests import LENGTH, Request
from nanort.serving.sampling import SamplingParams

Progress = Callable[[int, int], None]


class Served(Protocol):
    """What can be benchmarked: an LLM, or a Simulation of one."""

    @property
    def engine(self) -> Engine:
        """Takes the requests."""

    @property
    def config(self) -> DecoderConfig:
        """The model's sizes."""

    @property
    def device(self) -> Device:
        """What its plans are for."""

    @property
    def profile(self) -> Profile | None:
        """What they rest on."""

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, cache and arithmetic."""

    @property
    def plans_made(self) -> int:
        """Schedules made so far."""

    @property
    def planning_seconds(self) -> float:
        """What that took."""


def bench_serve(
    served: Served, arrivals: Sequence[Arrival], *, seed: int = 0, progress: Progress | None = None
) -> Report:
    """What serving the arrivals comes to: prompts of random tokens, each answered greedily to the length asked for.

    ``progress`` is told requests that have ended, and all of them.

    Raises:
        RequestError: there are no arrivals, or one is longer than the model's context.
        CacheFullError: one is larger than the whole cache.
        ExecutionError: a step failed.
    """
    if not arrivals:
        raise RequestError("there are no requests to serve: give at least one arrival")
    engine, steps = served.engine, _Steps(served.engine.cache.pages - 1)
    plans, planning, start = served.plans_made, served.planning_seconds, engine.clock.now()
    engine.observers.append(steps)
    try:
        requests, gaps = _drive(engine, arrivals, served.config.vocab, seed, progress)
    finally:
        engine.observers.remove(steps)
    lives = [_Life.of(request, start + coming.at) for request, coming in zip(requests, arrivals, strict=True)]
    report = _report(served, start, requests, lives, steps, Spread.of(gaps))
    return replace(report, plans=served.plans_made - plans, planning_seconds=served.planning_seconds - planning)


def _report(
    served: Served, start: float, requests: Sequence[Request], lives: Sequence[_Life], steps: _Steps, gap: Spread
) -> Report:
    """All but what planning took."""
    optimal = Optimal(served.config, served.device, served.dtype, served.profile)
    began, steady = steps.steady(start, min(life.ended for life in lives))
    rows, draws, ended, used = (np.array(column) for column in (steps.rows, steps.draws, steps.ended, steps.used))
    steady_seconds, seconds = float(ended[steady][-1]) - began, float(ended[-1]) - start
    least = sum(map(optimal.seconds, rows[steady].tolist(), draws[steady].tolist()))
    each = np.diff(ended, prepend=start)
    return Report(
        model=f"{served.config.model} of {served.config.parameters / 1e9:.3g} B parameters",
        device=served.device.name,
        costs=str(served.profile) if served.profile else f"the model of {served.device.name}, not measured",
        requests=sum(request.finish == LENGTH for request in requests),
        seconds=seconds,
        prompt_tokens=sum(len(request.prompt) for request in requests),
        output_tokens=sum(len(request.generated) for request in requests),
        steps=len(rows),
        rows=int(rows.sum()),
        steady_seconds=steady_seconds,
        steady_rows=int(rows[steady].sum()),
        optimal=least / steady_seconds,
        arithmetic=float(rows[steady].sum()) / steady_seconds / optimal.tokens_per_second,
        first_token=Spread.of([life.first_token for life in lives]),
        per_token=Spread.of([life.per_token for life in lives if life.per_token]),
        gap=gap,
        latency=Spread.of([life.seconds for life in lives]),
        kv_mean=float((used * each).sum()) / seconds,
        kv_most=float(used.max()),
        plans=0,
        planning_seconds=0.0,
        preemptions=sum(request.preemptions for request in requests),
        prefix_hits=sum(request.prefix_hits for request in requests),
        curves=(
            Curve.of("tokens/s", ended - start, rows, seconds),
            Curve.of("cache use", ended - start, used * each, seconds),
            Curve.of("draws a step", ended - start, draws * each, seconds),
        ),
    )


def drawn_prompt(seed: int, number: int, tokens: int, vocab: int) -> list[int]:
    """So many random tokens, which are the prompt of the request with that number."""
    drawn: list[int] = np.random.default_rng((seed, number)).integers(vocab, size=tokens).tolist()
    return drawn


@dataclass(slots=True)
class _Steps:
    """What a report needs of every step, as an observer of the engine; rows that pass some layers count in part."""

    pages: int
    ended: array[float] = field(default_factory=lambda: array("d"))
    rows: array[int] = field(default_factory=lambda: array("q"))
    draws: array[int] = field(default_factory=lambda: array("q"))
    used: array[float] = field(default_factory=lambda: array("d"))
    waiting: array[int] = field(default_factory=lambda: array("q"))

    def __call__(self, record: StepRecord) -> None:
        batch = record.batch
        part = batch.beside.layers / batch.beside.of if batch.beside else 1.0
        self.ended.append(record.ended)
        self.rows.append(len(batch.decode) + round(part * sum(share.stop - share.start for share in batch.prefill)))
        self.draws.append(sum(batch.draws))
        self.used.append(record.used / self.pages)
        self.waiting.append(record.waiting)

    def steady(self, start: float, first: float) -> tuple[float, slice]:
        """When it began, and the steps after ``first`` while requests waited; all steps, where none did."""
        begin = next(at for at, ended in enumerate(self.ended) if ended >= first) + 1
        end = max((at + 1 for at, waiting in enumerate(self.waiting) if waiting), default=0)
        return (self.ended[begin - 1], slice(begin, end)) if begin < end else (start, slice(0, len(self.ended)))


@dataclass(frozen=True, slots=True)
class _Life:
    """Of one request: seconds from its arrival to the first token, for each token after that, and in all."""

    first_token: float
    per_token: float
    seconds: float
    ended: float

    @classmethod
    def of(cls, request: Request, arrived: float) -> _Life:
        assert request.first_token is not None
        assert request.finished is not None
        more = len(request.generated) - 1
        per_token = (request.finished - request.first_token) / more if more else 0.0
        return cls(request.first_token - arrived, per_token, request.finished - arrived, request.finished)


def _drive(
    engine: Engine, arrivals: Sequence[Arrival], vocab: int, seed: int, progress: Progress | None
) -> tuple[list[Request], array[float]]:
    """The requests when all have ended, and the seconds between two outputs of each."""
    clock, start = engine.clock, engine.clock.now()
    requests, gaps, last, ended = list[Request](), array("d"), dict[Request, float](), 0
    while len(requests) < len(arrivals) or engine.busy:
        while len(requests) < len(arrivals) and start + arrivals[len(requests)].at <= clock.now():
            coming = arrivals[len(requests)]
            params = SamplingParams(max_new_tokens=coming.output, ignore_eos=True)
            requests.append(engine.submit(drawn_prompt(seed, len(requests), coming.prompt, vocab), params))
        if not engine.busy:
            clock.wait(start + arrivals[len(requests)].at)
            continue
        outputs, now = engine.step(), clock.now()
        for output in outputs:
            if output.request.error is not None:
                raise output.request.error
            if (before := last.get(output.request)) is not None:
                gaps.append(now - before)
            last[output.request] = now
            if output.finish is not None:
                del last[output.request]
                ended += 1
                if progress is not None:
                    progress(ended, len(arrivals))
    return requests, gaps
