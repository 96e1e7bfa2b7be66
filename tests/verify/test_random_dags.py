"""Random graphs, cuts and placements: cut graphs equal the whole, executors equal eager bit for bit.

With --soak ten thousand of them run on real threads, which take turns every microsecond, while operators sleep for
random times.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator

import pytest
import torch

import nanort as nr
import random_dags
from nanort import graphs

SEEDS = pytest.mark.parametrize("first", range(0, 300, 100))
SOAKED = 1_113  # seeds of each third of them, of three families: 10,017 graphs


@pytest.fixture(autouse=True)
def _switching() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@SEEDS
@pytest.mark.parametrize("make", random_dags.FAMILIES)
def test_random_placements_are_bit_for_bit_eager(
    make: random_dags.Family, first: int, pytestconfig: pytest.Config
) -> None:
    seeds = range(first, first + 100)
    if pytestconfig.getoption("soak"):
        seeds = range(first // 100 * SOAKED, (first // 100 + 1) * SOAKED)
    for seed in seeds:
        rng = random.Random(seed)
        graph, tensors = make(seed)
        schedule = random_dags.placed(random_dags.cut(graph, rng), rng)
        random_dags.compare_with_eager(schedule, random_dags.packed(schedule.graph, tensors), rng)


@SEEDS
@pytest.mark.parametrize("make", [random_dags.ragged, random_dags.synthetic])
def test_random_cuts_equal_the_whole(make: random_dags.Family, first: int) -> None:
    for seed in range(first, first + 100):
        graph, tensors = make(seed)
        expected = graph.eager(**{name: tensor.clone() for name, tensor in tensors.items()})
        for again in range(3):
            cut = random_dags.cut(graph, random.Random(f"{seed} {again}"))
            found = cut.eager(**random_dags.packed(cut, tensors))
            for name, answer in expected.items():
                assert torch.equal(random_dags.unpacked(cut, name, found[name]), answer), (seed, again, name)


@pytest.mark.parametrize("first", range(0, 100, 20))
def test_random_placements_of_a_decoder_are_bit_for_bit_eager(first: int) -> None:
    config = graphs.CONFIGS["tiny"]
    weights = graphs.random_weights(config, torch.float32, 0)
    for seed in range(first, first + 20):
        rng = random.Random(seed)
        sizes = {"decode": rng.randint(0, 5), "context": rng.randint(1, 40), "prefill": rng.randint(1, 20)}
        schedule = random_dags.placed(
            random_dags.cut(graphs.decoder_step(config, **sizes, dtype=torch.float32), rng), rng
        )
        assert schedule.graph.layout is not None
        inputs = graphs.step_inputs(config, schedule.graph.layout, **sizes, seed=seed)
        states = {root.name: torch.randn(root.shape) for root in schedule.graph.roots if root.kind == "state"}
        constants = {root.name: weights[root.name] for root in schedule.graph.roots if root.kind == "constant"}
        random_dags.compare_with_eager(schedule, inputs | states | constants, rng)


def test_large_graph_on_four_streams() -> None:
    graph = graphs.synthetic.layered(5000, seed=1, width=12, fan_in=4)
    cut = nr.nano_batch(graph, 2)
    rng = random.Random(1)
    tensors = graphs.synthetic.tensors(graph)
    random_dags.compare_with_eager(random_dags.placed(cut, rng), random_dags.packed(cut, tensors), rng)
