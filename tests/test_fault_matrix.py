from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

import fault_table
from failing import Broken
from fault_matrix import try_all
from fault_samples import SAMPLES
from fault_table import Matrix
from nanort.driver import Driver
from nanort.errors import NanortError
from nanort.runtime import faults, queues
from nanort.runtime.cuda import CudaBackend
from nanort.runtime.faults import Watch
from nanort.runtime.partitions import Partitions


@pytest.mark.parametrize("name", ["synthetic-15", "ragged-6"])
def test_every_fault_is_named_leaves_nothing_and_the_next_run_is_right(name: str) -> None:
    """And the document says so of each of them; tests/verify has all graphs. The first graph has every row."""
    matrix = Matrix()
    try_all(matrix, SAMPLES[name]())
    said = fault_table.words(fault_table.document())
    for cell, found in fault_table.words(fault_table.text(matrix.rows)).items():
        for here, there in zip(found, said[cell], strict=True):
            assert here <= there, cell
    assert name != "synthetic-15" or matrix.rows.keys() == said.keys()


# What the matrix must not let pass.

Patch = Callable[[pytest.MonkeyPatch], None]


def replaced(where: Any, name: str, make: Callable[[Any], Any]) -> Patch:
    """A patch that puts ``make(the original)`` in place of an attribute."""
    return lambda patch: patch.setattr(where, name, make(getattr(where, name)))


def leaking(original: Callable[..., tuple[int, ...]]) -> Callable[..., tuple[int, ...]]:
    """Events, one more of which nobody destroys."""

    def events(driver: Driver, held: Any, count: int, **timed: Any) -> tuple[int, ...]:
        driver.create_event()
        return original(driver, held, count, **timed)

    return events


def nameless(original: Any) -> Callable[..., Any]:
    """Errors without the node."""

    def failure(program: Any, step: Any, error: Exception) -> Exception:
        made: Exception = original(program, step, error)
        made.node = ""  # type: ignore[attr-defined]
        return made

    return failure


def idle(_: Any) -> Callable[..., None]:
    """Nothing is done."""
    return lambda *arguments, **given: None


def first(original: Callable[..., Any]) -> Callable[..., Any]:
    """The first node is suspected, whatever has ended."""
    return lambda watch: [watch.program.activities[0]]


MUTANTS: dict[str, Patch] = {
    "events leak": replaced(queues, "events", leaking),
    "errors name no node": replaced(queues, "failure", nameless),
    "failed runs are not waited for": replaced(CudaBackend, "_settle", idle),
    "closed executors keep their memory": replaced(CudaBackend, "_let_go", idle),
    "streams are not given back": replaced(Partitions, "release", idle),
    "any node is suspected of hanging": replaced(Watch, "_suspects", first),
    "poisoned devices are used again": replaced(faults, "refuse_poisoned", idle),
    "rules of kernels are not named": replaced(queues, "naming", lambda _: lambda *_: nullcontext()),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_executor_that_is_broken_does_not_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = SAMPLES["ragged-10"]()
    MUTANTS[name](monkeypatch)
    with pytest.raises((AssertionError, NanortError, Broken, pytest.fail.Exception)):
        try_all(Matrix(), here)
