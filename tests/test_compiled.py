"""There is one version of each compiled function: the one that its annotations describe."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from nanort.compiled import COMPILES, Floats, Floats2, Ints, compiled
from nanort.scheduling import heaps, machine
from nanort.scheduling.solving import breeding, generation

pytestmark = pytest.mark.skipif(not COMPILES, reason="numba is not installed: there is no machine code")

AXES = {"Floats": 1, "Floats2": 2, "Floats3": 3, "Ints": 1, "Ints2": 2}


@pytest.mark.parametrize("module", [heaps, machine, breeding, generation], ids=lambda module: module.__name__)
def test_every_function_has_the_version_of_its_annotations_and_takes_no_other(module: ModuleType) -> None:
    functions = {name: found for name, found in vars(module).items() if hasattr(found, "nopython_signatures")}
    assert functions
    for name, function in functions.items():
        (version,) = function.nopython_signatures
        *said, _ = function.py_func.__annotations__.values()
        assert [getattr(argument, "ndim", 0) for argument in version.args] == [AXES.get(kind, 0) for kind in said], name


@compiled
def largest_sum(rows: Floats2, counts: Ints, least: float) -> float:
    best = least
    for row in range(rows.shape[0]):
        total = 0.0
        for column in range(counts[row]):
            total += rows[row, column]
        best = max(best, total)
    return best


@compiled
def negated(values: Floats) -> Floats:
    return -values


def test_what_is_compiled_computes_the_same() -> None:
    rows, counts = np.arange(12.0).reshape(3, 4), np.array([4, 3, 2])
    assert largest_sum(rows, counts, 0.0) == largest_sum.py_func(rows, counts, 0.0) == 17.0
    assert largest_sum(rows, counts, 18) == 18.0
    assert negated(np.ones(2)).tolist() == [-1.0, -1.0]


@pytest.mark.parametrize(
    "rows", [np.ones((2, 2), np.float32), np.asfortranarray(np.ones((3, 2))), np.ones(4), np.ones((2, 2), np.int64)]
)
def test_other_arguments_are_refused_instead_of_compiled_for(rows: Floats2) -> None:
    with pytest.raises(TypeError, match="No matching definition"):
        largest_sum(rows, np.ones(2, np.int64), 0.0)
