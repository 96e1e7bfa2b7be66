"""How near buffer plans come to the least that is in use at once, and how long planning them takes.

One step of each model in two nano-batches, at its full depth, and random DAGs. The bytes are exact; the seconds are
those of one core.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import process_time

import nanort as nr
from benchmarks.measure import Row, Spread, run
from benchmarks.workloads import WORKLOADS, device, synthetic
from nanort.programs.memory import MemoryPlan, plan_memory

POINT = 64
ABOVE = "above the bound"
LIMITS = {32: 0.3}
"""Seconds in which the plan of so many layers is to be made."""


def lowered(graph: nr.Graph, pieces: int, policy: str) -> tuple[str, nr.Program]:
    """How a graph runs in so many nano-batches, and the program that does it."""
    schedule = nr.co_schedule(graph, device(POINT), nano_batches=pieces, policy=policy, guard=False)
    return schedule.mechanism, nr.lower(schedule)


def planned(program: nr.Program, rounds: int) -> tuple[MemoryPlan, list[float]]:
    """The buffer plan, outputs among the rest, and the seconds of one core that it took in each round."""
    seconds = []
    for _ in range(rounds):
        began = process_time()
        plan = plan_memory(program)
        seconds.append(process_time() - began)
    return plan, seconds


def excess(plan: MemoryPlan) -> float:
    """Percent of bytes above the bound."""
    return 100 * (plan.device_bytes / plan.lower_bound - 1)


def rows(name: str, layers: int | None, rounds: int) -> Iterator[Row]:
    """What is known of one step's plan."""
    graph = WORKLOADS[name](layers)
    mechanism, program = lowered(graph, 2, "auto")
    plan, seconds = planned(program, rounds)
    depth = len({node.scope for node in graph.nodes if node.scope})
    what = f"{name}, {mechanism}, {len(plan.lives.buffers):,} buffers"
    yield Row(f"{what}: device memory", "MB", Spread.of([plan.device_bytes / 1e6]))
    yield Row(f"{what}: saved by reuse", "%", Spread.of([100 * (1 - plan.device_bytes / plan.separate_bytes)]))
    yield Row(f"{what}: {ABOVE}", "%", Spread.of([excess(plan)]))
    goal = ("<=", LIMITS[depth]) if depth in LIMITS else None
    yield Row(f"{what}: planned in", "CPU s", Spread.of(seconds), goal=goal)


def measure(quick: bool) -> list[Row]:
    """Every step, and how far above their bounds the plans of random graphs are."""
    names = list(WORKLOADS)[:1] if quick else list(WORKLOADS)
    found = [row for name in names for row in rows(name, 2 if quick else None, 1 if quick else 5)]
    steps = [row.found.p50 for row in found if row.name.endswith(ABOVE)]
    graphs = synthetic(4 if quick else 200)
    random = [excess(plan_memory(lowered(graph, 1 + number % 2, "list")[1])) for number, graph in enumerate(graphs)]
    for what, above in ((f"{len(steps)} steps", steps), (f"{len(random)} random graphs", random)):
        mean = Spread.of([sum(above) / len(above)])
        found.append(Row(f"{what}: mean {ABOVE}", "%", mean, goal=("<=", 10.0)))
        found.append(Row(f"{what}: worst {ABOVE}", "%", Spread.of([max(above)])))
    return found


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Prints the table; see benchmarks/__init__.py for the options."""
    return run("bench_memory", measure, argv)


if __name__ == "__main__":
    main()
