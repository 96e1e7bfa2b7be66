"""How near plans of whole models come to their bounds: twelve graphs, three saturation points, both mechanisms.

Isolated plans are held against the partitioned bound of their own cut; co-resident ones, for which slowdowns of pairs
are assumed, against the bound that counts these. The last gap is to the physical bound of the uncut graph: what
splitting and partitioning cost in all. Everything here is predicted; the seconds are those of one core.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from time import process_time

import numpy as np

import nanort as nr
from benchmarks.measure import Row, Spread, run
from benchmarks.workloads import STEPS, WORKLOADS, device
from nanort.costs.profile import Pair, Profile
from nanort.graphs import CONFIGS, decoder_step
from nanort.scheduling.bounds import ideal

POINTS = (43, 64, 85)
BESIDE = ("rope_kv_append", "silu_mul", "add_rms_norm", "prefill_attention", "rms_norm")
ASSUMED = Profile(
    "h200",
    132,
    "assumed: products slow by 10 % beside decode attention, by 5 % beside elementwise work",
    [],
    [
        Pair("linear", "decode_attention", 1.10, 1.0),
        Pair("expert_linear", "decode_attention", 1.10, 1.0),
        *(Pair("decode_attention", other, 1.0, 1.5) for other in BESIDE),
        *(Pair("linear", other, 1.05, 1.3) for other in BESIDE),
    ],
)
"""A guess until pairs are measured on a GPU: see docs/measured.md."""

WITHIN = {"isolated": 0.08, "co-resident": 0.15}
LIMITS = {32: 2.0, 80: 4.0}
"""Seconds in which so many layers are to be planned."""


GAINS = (1.315, 1.215, 1.135)
"""What an earlier prototype gained on the balanced step at each of POINTS: 1.32, 1.22 and 1.14, rounded."""

LONG = 1_000_000
"""Schedules judged to find as much: a minute and a half; a prototype's plans paid for no events, these do."""


def planned(
    name: str, layers: int | None, point: int, profile: Profile | None, policy: str, effort: int | None = None
) -> tuple[nr.Schedule, float]:
    """The checked schedule of a workload, and the seconds of one core that planning took."""
    graph = WORKLOADS[name](layers)
    began = process_time()
    schedule = nr.co_schedule(graph, device(point), profile=profile, policy=policy, effort=effort)
    seconds = process_time() - began
    schedule.check()
    return schedule, seconds


def rows(name: str, layers: int | None, policy: str, met: dict[str, list[bool]]) -> Iterator[Row]:
    """What is known of one workload's plans."""
    for profile in (None, ASSUMED):
        for point in POINTS if profile is None else POINTS[:1]:
            schedule, seconds = planned(name, layers, point, profile, policy)
            mechanism = schedule.mechanism.partition(" ")[0]
            gap = schedule.makespan / schedule.bounds.best - 1
            if mechanism in WITHIN:
                met.setdefault(mechanism, []).append(gap <= WITHIN[mechanism])
            cut = schedule.split.sizes if schedule.split else "uncut"
            what = f"{name}, {'pairs assumed' if profile else f'{point} SMs'}: {schedule.mechanism}, {cut}"
            unsplit = schedule.makespan / ideal(schedule.source, schedule.costs)[0] - 1
            yield Row(f"{what}: gain", "x", Spread.of([schedule.outlooks[0].gain]), goal=(">=", 1.0))
            yield Row(f"{what}: gap to its bound ({schedule.bounds.limit})", "%", Spread.of([100 * gap]))
            yield Row(f"{what}: gap to the unsplit physical bound", "%", Spread.of([100 * unsplit]))
            depth = len({node.scope for node in schedule.source.nodes if node.scope})
            goal = ("<=", LIMITS[depth]) if depth in LIMITS and policy == "auto" else None
            yield Row(f"{what}: planned in", "CPU s", Spread.of([seconds]), goal=goal)


def replanning(layers: int, times: int) -> Row:
    """Seconds in which a plan is carried over to other lengths, beside those of a search for such a graph."""
    config, h200 = replace(CONFIGS["llama-3-8b"], layers=layers), nr.device("h200")
    schedule = nr.co_schedule(decoder_step(config, **STEPS["balanced"]), h200)
    spent: dict[str, list[float]] = {"replan": [], "search": []}
    for context in range(1281, 1281 + 2 * times):
        graph, verb = (
            decoder_step(config, **{**STEPS["balanced"], "context": context}),
            ("replan", "search")[context % 2],
        )
        began = process_time()
        if verb == "replan":
            nr.replan(schedule, graph)
        else:
            nr.co_schedule(graph, h200)
        spent[verb].append(process_time() - began)
    carried, searched = map(np.array, spent.values())
    name = f"llama-3-8b/balanced, {layers} layers, {len(schedule.assignments)} nodes: replanned in"
    return Row(name, "CPU s", Spread.of(carried), "a search", Spread.of(searched / carried))


def measure(quick: bool) -> list[Row]:
    """All workloads at full depth, and how many are near enough to their bound."""
    met: dict[str, list[bool]] = {}
    names = list(WORKLOADS)[:2] if quick else list(WORKLOADS)
    planned(names[0], 2, POINTS[0], None, "auto")  # what is loaded once
    found = [row for name in names for row in rows(name, 2 if quick else None, "auto", met)]
    for mechanism, near in met.items():
        share = Spread.of([100 * sum(near) / len(near)])
        name = f"{len(near)} {mechanism} plans within {WITHIN[mechanism]:.0%} of their bound"
        found.append(Row(name, "%", share, goal=(">=", 75.0 if mechanism == "isolated" else 100.0)))
    found.append(replanning(2, 2) if quick else replanning(32, 15))
    if not quick:
        for point, gain in zip(POINTS, GAINS, strict=True):
            schedule, _ = planned("llama-3-8b/balanced", None, point, None, "search", LONG)
            name = f"llama-3-8b/balanced, {point} SMs, policy search, effort {LONG:,}: {schedule.mechanism}: gain"
            found.append(Row(name, "x", Spread.of([schedule.outlooks[0].gain]), goal=(">=", gain)))
    return found


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Prints the table; see benchmarks/__init__.py for the options."""
    return run("bench_plans", measure, argv)


if __name__ == "__main__":
    main()
