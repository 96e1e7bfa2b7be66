from __future__ import annotations

import importlib
from itertools import islice, pairwise, product
from types import ModuleType

import networkx
import numpy as np
import pytest

from nanort.errors import ProblemError
from nanort.scheduling.solving.arrays import Arrays
from nanort.scheduling.solving.bounds import longest
from tree import ROOT


@pytest.fixture
def progen(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT)  # benchmarks are run from there and are not installed
    return importlib.import_module("benchmarks.progen")


def peaks(arrays: Arrays) -> list[int]:
    """The most of each resource that is used if every task starts as early as precedence allows, in its first mode."""
    start = longest(arrays.duration[:, 0], arrays.order, arrays.pred_ptr, arrays.preds)
    end, usage = start + arrays.duration[:, 0], arrays.usage[:, 0]
    return np.max([usage[(start <= now) & (now < end)].sum(axis=0) for now in start], axis=0).tolist()


@pytest.mark.parametrize("name", ["j30", "j60", "m20"])
def test_problems_have_the_figures_of_their_cell(progen: ModuleType, name: str) -> None:
    jobs, modes, resources = int(name[1:]), 3 if name[0] == "m" else 1, 2 if name[0] == "m" else 4
    cells = list(progen.grid(name, 2))
    assert len(cells) == 2 * (48 if modes == 1 else 8)
    for cell, problem in cells[::5]:
        arrays = problem.arrays
        assert len(problem.tasks) == jobs + 2
        assert len(problem.precedence) == round(cell.complexity * (jobs + 2))
        graph = networkx.DiGraph(problem.precedence)
        assert networkx.transitive_reduction(graph).edges == graph.edges
        inner = graph.subgraph(str(at) for at in range(2, jobs + 2))
        assert max(degree for _, degree in (*graph.in_degree(inner), *graph.out_degree(inner))) <= 3
        assert min(graph.out_degree("1"), graph.in_degree(str(jobs + 2))) >= 1
        assert max(graph.out_degree("1"), graph.in_degree(str(jobs + 2))) <= 3
        used = arrays.usage[1:-1].max(axis=1) > 0
        assert used.any(axis=1).all()
        assert used.sum() == max(jobs, round(cell.resource_factor * jobs * resources))
        assert (arrays.modes[1:-1] == modes).all()
        assert set(arrays.duration[1:-1].ravel()) <= set(range(1, 11))
        assert arrays.usage.max() <= 10
        least = np.where(arrays.mode_index[..., None] >= 0, arrays.usage, 99).min(axis=1).max(axis=0)
        if modes == 1 or cell.resource_strength == 1:
            strength = cell.resource_strength
            assert arrays.capacity.tolist() == [
                low + round(strength * (high - low)) for low, high in zip(least, peaks(arrays), strict=True)
            ]


def test_a_longer_mode_uses_less(progen: ModuleType) -> None:
    for _, problem in progen.grid("m20", 1):
        for task in problem.tasks[1:-1]:
            assert [mode.duration for mode in task.modes] == sorted({mode.duration for mode in task.modes})
            usages = [[mode.usage.get(name, 0) for name in problem.capacities] for mode in task.modes]
            for short, long in pairwise(usages):
                assert all(b <= a for a, b in zip(short, long, strict=True))
                assert short != long


def test_the_same_arguments_give_the_same_problem_and_another_seed_another(progen: ModuleType) -> None:
    first, again, other = (progen.instance(30, 1.8, 0.5, 0.2, seed) for seed in (1, 1, 2))
    assert first == again
    assert (first.tasks, first.precedence) != (other.tasks, other.precedence)


def test_the_grid_of_120_jobs_is_tighter(progen: ModuleType) -> None:
    cells = [cell for cell, _ in islice(progen.grid("j120", 1), 6)]
    assert [cell.resource_strength for cell in cells] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.1]
    assert [cell.resource_factor for cell in cells] == [0.25] * 5 + [0.5]


def test_few_jobs_are_enough(progen: ModuleType) -> None:
    for jobs, seed in product((6, 8), range(5)):
        assert len(progen.instance(jobs, 1.4, 0.5, 0.5, seed).tasks) == jobs + 2


def test_a_network_that_cannot_be_is_refused(progen: ModuleType) -> None:
    with pytest.raises(ProblemError, match="no network of 96 precedences"):
        progen.instance(30, 3.0, 0.5, 0.5, 1)
