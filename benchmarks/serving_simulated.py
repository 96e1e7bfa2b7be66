"""LLaMA-3-8B on a simulated H200: NanoFlow's ablation, and an hour of arrivals in virtual time."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import Any

import nanort as nr
from benchmarks.bench_plans import ASSUMED
from benchmarks.measure import Row, Spread
from nanort.bench.arrivals import arrivals
from nanort.bench.report import Report
from nanort.bench.serve import bench_serve
from nanort.graphs import CONFIGS
from nanort.serving.simulated import Simulation

HOST_CACHE = 256 << 30
"""Bytes of host memory for pages of requests that have ended."""
SERIAL, NANO, OVERLAPPED, OFFLOAD = "serial", "nano-batches only", "overlapped", "overlapped, with offload"
PAIRS = "overlapped, pairs of operators assumed"
WAYS: dict[str, dict[str, Any]] = {
    SERIAL: {"policy": "serial", "nano_batches": (1,)},
    NANO: {"policy": "serial", "nano_batches": (2,)},
    OVERLAPPED: {"policy": "auto", "nano_batches": (1, 2)},
    OFFLOAD: {"policy": "auto", "nano_batches": (1, 2), "host_cache": HOST_CACHE},
    PAIRS: {"policy": "auto", "nano_batches": (1, 2), "profile": ASSUMED},
}
"""NanoFlow's ablation: one batch in order, two nano-batches in order, overlapped, and with the KV cache offloaded.

The last is what overlap would give on SMs that are shared, if operators slowed each other as bench_plans assumes.
"""

BASELINES: dict[str, tuple[str, tuple[str, float] | None]] = {
    NANO: (SERIAL, None),
    OVERLAPPED: (SERIAL, (">=", 1.0)),
    OFFLOAD: (OVERLAPPED, (">=", 1 / 1.03)),
    PAIRS: (SERIAL, (">=", 1.0)),
}
"""What each is held against, and what is aimed at."""

POINTS = (64, 43, 85)
"""SMs that may saturate the memory of an H200, the one for all ways first."""

ARRIVALS = ("azure", 19_366, 5.53)
"""Lengths, requests, and requests a second of Azure's trace of an hour, where its file is not given."""
LIMIT = 300.0
"""Seconds in which the hour is to be replayed."""


def ablation(quick: bool) -> Iterator[Row]:
    """Tokens a second and percent of optimal of each way, 1024 tokens in and 512 out, in as large a batch as fits."""
    model, lengths, count = ("tiny", "const:64/16", 20) if quick else ("llama-3-8b", "const:1024/512", 3072)
    for point in POINTS[:1] if quick else POINTS:
        found: dict[str, Report] = {}
        for way in WAYS if point == POINTS[0] else (SERIAL, OVERLAPPED):
            device = nr.device("h200").with_(hbm_saturation_sms=(point, point))
            memory = 1 << 26 if quick else int(0.97 * device.memory_bytes)
            with Simulation(CONFIGS[model], device, memory=memory, **WAYS[way]) as simulation:
                found[way] = bench_serve(simulation, arrivals(lengths, count))
            what = f"{model}, {lengths}, {found[way].costs}, {point} SMs saturate memory: {way}"
            yield from _throughput(what, found[way], *BASELINES.get(way, ("", None)), found)


def _throughput(
    what: str, report: Report, baseline: str, goal: tuple[str, float] | None, others: dict[str, Report]
) -> Iterator[Row]:
    rate = report.steady_tokens_per_second
    ratio = Spread.of([rate / others[baseline].steady_tokens_per_second]) if baseline else None
    yield Row(what, "tokens/s", Spread.of([rate]), baseline, ratio, goal)
    yield Row(f"{what}: of optimal", "%", Spread.of([100 * report.optimal]))
    yield Row(f"{what}: of 2 operations a parameter", "%", Spread.of([100 * report.arithmetic]))
    yield Row(f"{what}: rows a step", "rows", Spread.of([report.rows / report.steps]))
    yield Row(f"{what}: cache in use", "%", Spread.of([100 * report.kv_mean]))


def hour(quick: bool, trace: str | None) -> Iterator[Row]:
    """Azure's hour of requests in virtual time: how long that takes here, and how long requests wait there."""
    lengths, count, rate = ARRIVALS
    model, most = ("tiny", 64) if quick else ("llama-3-8b", 8192)
    if trace is None:
        coming = arrivals(lengths, 50 if quick else count, rate=rate, most=most)
    else:
        coming = arrivals(trace, 50 if quick else None, replay=True, most=most)
    began = perf_counter()
    device = nr.device("h200").with_(memory_bytes=1 << 26) if quick else nr.device("h200")
    with Simulation(CONFIGS[model], device, policy="serial", nano_batches=(1,)) as simulation:
        found = bench_serve(simulation, coming)
        cache = simulation.engine.cache
        cache.check()
        leaked = cache.pages - 1 - cache.free
    seconds = perf_counter() - began
    what = f"{model}, {len(coming):,} requests in {found.seconds:,.0f} s of {lengths if trace is None else 'a trace'}"
    yield Row(f"{what}: replayed in", "s", Spread.of([seconds]), goal=("<=", LIMIT))
    yield Row(f"{what}: of that, planning", "s", Spread.of([found.planning_seconds]))
    yield Row(f"{what}: steps", "steps", Spread.of([float(found.steps)]))
    yield Row(f"{what}: pages leaked", "pages", Spread.of([float(leaked)]), goal=("<=", 0.0))
    yield Row(
        f"{what}: requests not answered", "requests", Spread.of([float(len(coming) - found.requests)]), goal=("<=", 0.0)
    )
    for name, spread in (("to the first token", found.first_token), ("for each token after it", found.per_token)):
        yield Row(
            f"{what}: p10, p50, p90 {name}", "s", Spread(spread.p10, spread.p50, spread.p90, spread.p10, spread.count)
        )
        yield Row(f"{what}: p99 {name}", "s", Spread.of([spread.p99]))
