from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import nanort as nr
from nanort.errors import BatchFlowError, GraphError, InputDtypeError
from nanort.graphs import synthetic
from nanort.graphs.modular import PRIME

FAMILIES = [synthetic.layered, synthetic.fork_join, synthetic.series_parallel, synthetic.llm_like]
Family = Callable[..., nr.Graph]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n", [1, 2, 3, 10, 37, 200])
def test_a_family_makes_as_many_nodes_as_asked(family: Family, n: int) -> None:
    for seed in range(4):
        graph = family(n, seed, cuttable=bool(seed % 2))
        assert len(graph.nodes) == n
        assert graph.outputs or all(node.op.writes for node in graph.nodes)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_seed_decides_all_of_it(family: Family) -> None:
    digests = [family(50, seed).fingerprint for seed in (0, 0, 1, 2)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_no_result_goes_unused(family: Family) -> None:
    graph = family(60, 3)
    used = {part for node in graph.nodes for value in node.inputs for part in (value.root.parts or (value.root,))}
    made = {value for node in graph.nodes for value in node.outputs}
    assert made - used == set(graph.outputs.values())


def test_shapes_are_those_of_the_families() -> None:
    chain = synthetic.fork_join(30, width=1, depth=1, variety=0)
    assert [node.preds for node in chain.nodes] == [((k - 1, "data"),) if k else () for k in range(30)]
    wide = synthetic.layered(40, width=10, fan_in=1, variety=0)
    assert [len(node.preds) for node in wide.nodes] == [0] * 10 + [1] * 30
    assert all(node.index // 10 - pred // 10 == 1 for node in wide.nodes for pred, _ in node.preds)
    assert all(len(node.preds) <= 1 for node in synthetic.series_parallel(40, parallel=0, variety=0).nodes)
    forked = synthetic.fork_join(9, width=4, depth=2, variety=0).nodes[-1]
    assert len(forked.preds) == 4


def test_variety_is_of_every_kind() -> None:
    graph = synthetic.layered(300, variety=1.0, cuttable=False)
    reasons = {reason for node in graph.nodes for _, reason in node.preds}
    kinds = {node.static["kind"] for node in graph.nodes}
    assert {value.kind for node in graph.nodes for value in node.inputs} == {
        "input",
        "node",
        "join",
        "view",
        "constant",
    }
    assert {value.device for node in graph.nodes for value in node.outputs} == {"device", "host"}
    assert reasons == {"data", "state"}
    assert kinds == {"compute", "memory", "narrow", "upload", "download"}
    assert {node.op.name for node in synthetic.layered(300, variety=0.0).nodes} == {
        "affine",
        "matmul",
        "multiply",
        "combine",
    }


def test_spread_bounds_the_work_of_nodes() -> None:
    def flops(spread: float) -> set[float]:
        nodes = synthetic.layered(200, spread=spread, variety=0).nodes
        return {node.demand.flops for node in nodes if node.static["kind"] == "compute"}

    assert len(flops(1.0)) == 1
    assert max(flops(4.0)) == 16 * min(flops(4.0))


def run(graph: nr.Graph, tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Outputs and states after a run, rows in canonical order."""
    assert graph.layout is not None
    batched = {root.name for root in graph.roots if root.batch is not None}
    own = {name: graph.layout.pack(t) if name in batched else t.clone() for name, t in tensors.items()}
    out = graph.eager(**own)
    states = {root.name: own[root.name] for root in graph.roots if root.kind == "state"}
    return {name: graph.layout.unpack(t) if len(t) == graph.layout.rows else t for name, t in out.items()}, states


def test_results_are_exact_however_a_graph_is_cut() -> None:
    cut = 0
    for seed in range(80):
        graph = synthetic.random_dag(seed)
        tensors = synthetic.tensors(graph, seed)
        outputs, states = run(graph, tensors)
        for tensor in [*outputs.values(), *states.values()]:
            assert torch.equal(tensor, tensor.round() % PRIME)
        try:
            pieces = nr.nano_batch(graph, 2 + seed % 3)
        except BatchFlowError:  # it slices along the batch: see the next test
            continue
        cut += len(pieces.nodes) > len(graph.nodes)
        for ours, theirs in zip(run(pieces, tensors), (outputs, states), strict=True):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert cut > 50


def test_cuttable_graphs_can_be_cut_and_the_others_say_why_not() -> None:
    for family in FAMILIES:
        nr.nano_batch(family(60, variety=0.8), 3)
    with pytest.raises(BatchFlowError, match=r"takes rows \d+:\d+ of the batch"):
        nr.nano_batch(synthetic.layered(60, variety=1.0, cuttable=False), 3)


def test_every_result_matters() -> None:
    """A wrong number anywhere is a wrong output: what was read too early cannot go unnoticed."""
    graph = synthetic.series_parallel(40, 1, variety=0.0)
    tensors = synthetic.tensors(graph)
    before = graph.eager(**tensors)
    tensors["x0"] = (tensors["x0"] + torch.eye(16)) % PRIME
    after = graph.eager(**tensors)
    assert all(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("wrong", [{"n": 0}, {"n": 4, "spread": 0.5}, {"n": 4, "variety": 2.0}])
def test_parameters_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(GraphError, match="must be 1 or more"):
        synthetic.layered(**wrong)


def test_tensors_of_integers_are_not_guessed() -> None:
    graph = nr.Graph("g")
    graph.input("index", (4,), torch.int64)
    with pytest.raises(InputDtypeError, match=r"index: int64\[4\]"):
        synthetic.tensors(graph)
