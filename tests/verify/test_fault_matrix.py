"""Every fault, in every phase, at every node of 20 graphs; what is found is what docs/reliability.md says."""

from __future__ import annotations

import pytest

import fault_table
from fault_matrix import try_all
from fault_samples import SAMPLES
from fault_table import Matrix


def test_every_fault_on_all_graphs_is_what_the_document_says(pytestconfig: pytest.Config) -> None:
    matrix = Matrix()
    assert len(SAMPLES) == 20
    for make in SAMPLES.values():
        try_all(matrix, make())
    table = fault_table.text(matrix.rows)
    if pytestconfig.getoption("update_examples"):
        fault_table.write(table)
    assert table == fault_table.document()
