"""The graphs of the fault matrix, with what they give."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

import nanort as nr
import random_dags
from nanort import graphs
from nanort.programs.program import Program
from nanort.scheduling.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Sample:
    """A schedule, tensors for it, and what a run gives and leaves in its states."""

    schedule: Schedule
    program: Program
    tensors: dict[str, torch.Tensor]
    answers: dict[str, torch.Tensor]
    states: dict[str, torch.Tensor]


def sample(schedule: Schedule, tensors: dict[str, torch.Tensor]) -> Sample:
    """``schedule`` with the answers of its graph run in order."""
    given = {name: tensor.clone() for name, tensor in tensors.items()}
    answers = {name: answer.clone() for name, answer in schedule.graph.eager(**given).items()}
    states = {root.name: given[root.name] for root in schedule.graph.roots if root.kind == "state"}
    return Sample(schedule, nr.lower(schedule), tensors, answers, states)


def random_sample(make: random_dags.Family, seed: int) -> Sample:
    """A random graph of a family, cut and placed at random."""
    rng = random.Random(seed)
    graph, tensors = make(seed)
    schedule = random_dags.placed(random_dags.cut(graph, rng), rng)
    return sample(schedule, random_dags.packed(schedule.graph, tensors))


def decoder_sample(swap: float) -> Sample:
    """A tiny decoder's step, on streams of its own for copies; with ``swap``, pages go to the host and come back."""
    config = replace(graphs.CONFIGS["tiny"], layers=1)
    sizes = {"decode": 2, "context": 5, "prefill": 3}
    graph = graphs.decoder_step(config, **sizes, swap=swap, dtype=torch.float32)
    assert graph.layout is not None
    generator = torch.Generator().manual_seed(0)
    fresh = {
        root.name: torch.randn(root.shape, generator=generator)
        for root in graph.roots
        if root.kind in ("input", "constant", "state") and root.dtype == torch.float32
    }
    count = next((root.shape[0] for root in graph.roots if root.name == "swap_out"), 0)
    pages = next(root.shape[0] for root in graph.roots if root.name == "kv.0")
    moved = {name: torch.arange(pages - count, pages) for name in ("swap_out", "swap_in") if count}
    tensors = fresh | graphs.step_inputs(config, graph.layout, **sizes) | moved
    whole, *engines = random_dags.partition.streams(
        (random_dags.partition.whole(nr.device("h200"), lanes=1),), random_dags.partition.ENGINES
    )
    available = (whole, *engines)
    lane = [next((k for k, s in enumerate(available) if s.engine == node.demand.engine), 0) for node in graph.nodes]
    return sample(random_dags.schedule(graph, available, lane), tensors)


SAMPLES: dict[str, Callable[[], Sample]] = {
    **{f"synthetic-{n}": partial(random_sample, random_dags.synthetic, n) for n in (3, 8, 13, 14, 15, 28)},
    **{f"ragged-{n}": partial(random_sample, random_dags.ragged, n) for n in (1, 4, 6, 7, 8, 10)},
    **{f"floats-{n}": partial(random_sample, random_dags.floats, n) for n in (10, 12, 18, 34, 37, 43)},
    "decoder": partial(decoder_sample, 0.0),
    "offload": partial(decoder_sample, 0.2),
}
"""20 graphs: 18 at random on up to 6 streams, a step of a tiny decoder, and one that swaps pages over PCIe."""
