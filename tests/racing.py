"""Programs to be judged for races, each sound, with its memory planned."""

from __future__ import annotations

import random

import torch

import nanort as nr
import random_dags
from nanort import ops
from nanort.graphs import synthetic
from nanort.programs.memory import MemoryPlan, plan_memory
from nanort.programs.program import Program

WORK = random_dags.WORK
SMALL = 30  # nodes of a program of which every mutant is judged


@nr.op(demand=WORK, axes="whole")
def _both(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x + y, x - y


@nr.op(demand=WORK, axes="whole")
def _sum(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x + y.sum(0)


@nr.op(demand=WORK, writes=("x",), axes="whole")
def _change(x: torch.Tensor, y: torch.Tensor) -> None:
    x += y


@nr.op(demand=WORK, writes=("x",), axes="whole")
def _change_and_tell(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x += y
    return x - y


@nr.op(demand=WORK, writes=("s",), axes="whole", cells={"s": lambda layout, low, **_: ((low, low + 2),)})
def _store(s: torch.Tensor, x: torch.Tensor, *, low: int, layout: nr.Layout | None = None) -> None:
    s[low : low + 2] = x[:2]


@nr.op(demand=WORK, axes="whole", cells={"s": lambda layout, low, **_: ((low, low + 2),)})
def _fetch(s: torch.Tensor, x: torch.Tensor, *, low: int, layout: nr.Layout | None = None) -> torch.Tensor:
    return x + s[low]


def tangled(seed: int) -> tuple[nr.Graph, dict[str, torch.Tensor]]:
    """Nodes with two results, values changed in place, rows and columns of them, states by boxes and cells, copies."""
    rng = random.Random(seed)
    graph = nr.Graph(f"tangled-{seed}", layout=nr.Layout(decode=6))
    x = graph.input("x", (4, 3), torch.float32)
    made, joined = [graph.call(torch.relu, x, demand=WORK)], list[nr.Value]()
    states = [graph.state(name, (6, 3), torch.float32) for name in ("boxes", "cells", "mixed")]
    for _ in range(rng.randint(2, 12)):
        x, y, low, state = rng.choice(made), rng.choice(made + joined), rng.randint(0, 2), rng.choice(states[1:])
        boxed = rng.choice((states[0], states[2]))[2 * low : 2 * low + 2]
        match rng.randrange(10):
            case 0:
                made += _both(x, y)
            case 1:
                _change(x, y)
            case 2:
                dim = rng.randint(0, 1)
                _change(x.narrow(dim, low, low + 1), y.narrow(dim, 0, 1))
            case 3:
                made.append(_change_and_tell(x, y))
            case 4:
                _change(boxed, y[:2])
            case 5:
                made.append(_sum(y, boxed))
            case 6:
                _store(state, y, low=low)
            case 7:
                made.append(_fetch(state, y, low=low))
            case 8:
                parts = (graph.call(torch.exp, y[rows], demand=WORK) for rows in (slice(low + 1), slice(low + 1, 4)))
                joined.append(graph.join(*parts))
            case 9:
                made.append(ops.to_device(ops.to_host(y)))
    graph.output(o=made[-1], p=rng.choice(made))
    return graph, {}


FAMILIES = (*random_dags.FAMILIES, tangled)


def sound(seed: int, family: random_dags.Family) -> tuple[Program, MemoryPlan]:
    """A random graph on 1 to 8 streams, whole or cut, with its memory planned."""
    rng = random.Random(f"mutants {seed}")
    graph, _ = family(seed)
    if family is not tangled and rng.random() < 0.5:
        graph = random_dags.cut(graph, rng)
    program = nr.lower(random_dags.placed(graph, rng, most=8))
    return program, plan_memory(program)


def larger(seed: int, rng: random.Random) -> tuple[Program, MemoryPlan]:
    """A program of 31 to 200 nodes or so."""
    family = rng.choice((synthetic.layered, synthetic.fork_join, synthetic.series_parallel, synthetic.llm_like))
    graph = family(rng.randint(SMALL + 1, 2 * SMALL), seed, variety=rng.choice((0.3, 0.8)))
    program = nr.lower(random_dags.placed(random_dags.cut(graph, rng) if rng.random() < 0.5 else graph, rng, most=8))
    return program, plan_memory(program)
