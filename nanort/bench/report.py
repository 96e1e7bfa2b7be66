"""Report: what serving a workload came to, in figures and as text with a plot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nanort.timeline.units import counted, duration, percent, plain

BARS = " ▁▂▃▄▅▆▇█"
WIDTH = 64
"""Columns of a plot."""
HEAD = ("mean", "p10", "p50", "p90", "p99", "most")


@dataclass(frozen=True, slots=True)
class Spread:
    """How seconds are distributed over requests or tokens; all zero where there are none."""

    count: int = 0
    mean: float = 0.0
    p10: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    most: float = 0.0

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """That of the samples."""
        if not len(samples):
            return cls()
        found = np.asarray(samples, np.float64)
        p10, p50, p90, p99 = np.percentile(found, (10, 50, 90, 99)).tolist()
        return cls(found.size, float(found.mean()), p10, p50, p90, p99, float(found.max()))

    def __str__(self) -> str:
        return "".join(f"{duration(getattr(self, name)):>9}" for name in HEAD)


@dataclass(frozen=True, slots=True)
class Curve:
    """A figure over the run: its mean in each of ``WIDTH`` equal stretches."""

    name: str
    means: tuple[float, ...]

    @classmethod
    def of(cls, name: str, ends: npt.NDArray[np.float64], amounts: npt.NDArray[np.float64], seconds: float) -> Curve:
        """Of the ``amounts`` of stretches that end at ``ends``, each evenly from the end before, a second."""
        edges = np.linspace(0.0, seconds, WIDTH + 1)
        sums = np.interp(edges, [0.0, *ends], [0.0, *np.cumsum(amounts)])
        return cls(name, tuple((np.diff(sums) * (WIDTH / seconds)).tolist()))

    def __str__(self) -> str:
        most = max(self.means)
        bars = "".join(BARS[round(mean / most * (len(BARS) - 1)) if most else 0] for mean in self.means)
        return f"{bars}| {most:,.4g}"


@dataclass(frozen=True, slots=True)
class Report:
    """What serving a workload came to; prints, and ``data`` has the figures.

    Attributes:
        model, device, costs: what was served on what, and by which measurements plans and optimum are made.
        requests, seconds: how many were answered in full, from the first arrival to the last token.
        prompt_tokens, output_tokens: of all requests.
        steps, rows: steps, and rows that they processed; padding is none.
        steady_seconds, steady_rows: of the steps after the first request had ended while others waited, in which the
            batch is as it stays; of all steps, where none waited then.
        optimal: the share of the steady time that the steps' unsplit matrix products would take one after another.
        arithmetic: tokens in the steady time, as a share of what 2 operations a parameter allow.
        first_token, per_token, gap, latency: seconds from arrival to the first token; for each token after it, by
            request; between two outputs of a request; and from arrival to the end.
        kv_mean, kv_most: shares of the cache's pages that were in use.
        plans, planning_seconds: schedules that were made, and what that took.
        preemptions, prefix_hits: requests that lost their pages, and tokens that were found in the cache.
        curves: rows a second, the use of the cache, and tokens that a step draws, over the run.
    """

    model: str
    device: str
    costs: str
    requests: int
    seconds: float
    prompt_tokens: int
    output_tokens: int
    steps: int
    rows: int
    steady_seconds: float
    steady_rows: int
    optimal: float
    arithmetic: float
    first_token: Spread
    per_token: Spread
    gap: Spread
    latency: Spread
    kv_mean: float
    kv_most: float
    plans: int
    planning_seconds: float
    preemptions: int
    prefix_hits: int
    curves: tuple[Curve, ...]

    @property
    def tokens_per_second(self) -> float:
        """Tokens of prompts and outputs, over the whole run."""
        return (self.prompt_tokens + self.output_tokens) / self.seconds

    @property
    def steady_tokens_per_second(self) -> float:
        """The same in the steady time."""
        return self.steady_rows / self.steady_seconds

    @property
    def data(self) -> dict[str, Any]:
        """Its figures, for JSON."""
        rates = {name: getattr(self, name) for name in ("tokens_per_second", "steady_tokens_per_second")}
        return asdict(self) | rates | {"output_tokens_per_second": self.output_tokens / self.seconds}

    def __str__(self) -> str:
        return "\n".join(f"{label:<12}{text}".rstrip() for label, text in (*self._figures(), *self._plot()))

    def _figures(self) -> Iterator[tuple[str, str]]:
        each = f"{counted(self.prompt_tokens, 'token')} of prompts, {self.output_tokens:,} of outputs"
        yield "served", f"{counted(self.requests, 'request')} of {self.model} on {self.device}: {each}"
        yield "costs", plain(self.costs)
        outputs = f"{self.output_tokens / self.seconds:,.0f} of outputs"
        yield "throughput", f"{self.tokens_per_second:,.0f} tokens/s in {duration(self.seconds)}, {outputs}"
        shares = f"{percent(self.optimal)} of optimal, {percent(self.arithmetic)} of 2 operations a parameter"
        steady = f"{self.steady_tokens_per_second:,.0f} tokens/s over {duration(self.steady_seconds)}"
        yield "steady", f"{steady}: {shares}"
        yield (
            "steps",
            f"{self.steps:,} of {self.rows / self.steps:,.0f} rows, {duration(self.seconds / self.steps)} each",
        )
        yield "plans", f"{self.plans:,} made in {duration(self.planning_seconds)}"
        yield (
            "cache",
            (
                f"{percent(self.kv_mean)} in use in the mean, {percent(self.kv_most)} at most; "
                f"{counted(self.preemptions, 'preemption')}, {counted(self.prefix_hits, 'token')} found there"
            ),
        )
        yield "", "".join(f"{name:>9}" for name in HEAD)
        yield "first token", str(self.first_token)
        yield "per token", str(self.per_token)
        yield "gap", str(self.gap)
        yield "latency", str(self.latency)

    def _plot(self) -> Iterator[tuple[str, str]]:
        for curve in self.curves:
            yield curve.name, f"|{curve}"
        yield "", f"0 s{duration(self.seconds):>{WIDTH - 1}}"
