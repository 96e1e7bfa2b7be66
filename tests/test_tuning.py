from __future__ import annotations

import random

import pytest

import nanort as nr
from nanort import graphs
from nanort.graphs import CONFIGS, decoder_step
from nanort.scheduling import structures, tuning
from nanort.scheduling.flat import Flat
from nanort.scheduling.list_schedule import ListPolicy
from nanort.scheduling.players import Player
from nanort.scheduling.tuning import Tuning, part
from nanort.scheduling.workload import Workload

H200 = nr.device("h200")


@pytest.mark.parametrize("seed", range(4))
def test_tuning_never_ends_with_less_than_it_began_with(seed: int) -> None:
    work = Workload(Flat(graphs.synthetic.random_dag(seed, 40).seal(), H200), 64)
    rng = random.Random(seed)
    structure = rng.choice(list(structures.overlapping(H200, work.engines)))
    found = Tuning(work, structure, ListPolicy(), seed)
    for step in range(150):
        found.step(1 - step / 150)
    player = Player(work, structure)
    before, after = player.seconds(ListPolicy()), player.seconds(found.policy)
    assert after <= before
    assert found.gain == pytest.approx(before / after, rel=1e-12)


def test_a_long_model_is_tuned_on_its_first_layers_and_judged_as_a_whole() -> None:
    graph = nr.nano_batch(decoder_step(CONFIGS["llama-3-8b"], decode=64, context=64, prefill=960), 2)
    work = Workload(Flat(graph, H200.with_(memory_bytes=1 << 40)), 64)
    first = part(work.flat)
    assert tuning.PREFIX <= first < len(graph.nodes) // 2
    assert graph.nodes[first - 1].scope != graph.nodes[first].scope
    structure = structures.isolated(H200, (40, 88))
    found = Tuning(work, structure, ListPolicy(borrow=True), 0)
    for step in range(400):
        found.step(1 - step / 400)
    whole = Player(work, structure)
    assert found.gain > 1.0
    assert whole.seconds(found.policy) < whole.seconds(ListPolicy(borrow=True)), "what helps some layers helps all"


def test_a_long_graph_without_scopes_is_tuned_as_a_whole() -> None:
    graph = graphs.synthetic.layered(600, seed=1).seal()
    assert part(Flat(graph, H200)) == 600


def test_nodes_of_a_class_are_called_the_same_in_every_scope() -> None:
    graph = decoder_step(CONFIGS["tiny"], decode=2, context=8, prefill=6)
    flat = Flat(graph.seal(), H200)
    names = {flat.class_names[which] for which in flat.classes}
    assert "gate_proj" in names
    assert not any(name.startswith("layer") for name in names)
    assert len(names) < len(graph.nodes)
