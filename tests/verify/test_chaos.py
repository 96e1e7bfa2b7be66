"""Many more worlds than in tests/test_chaos.py."""

from __future__ import annotations

import pytest

from nanort.chaos.faults import KINDS
from nanort.chaos.run import Sum, chaos

CI, SOAK, EACH = 50, 100_000, 50


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("first", range(1000, 1000 + (SOAK if metafunc.config.getoption("soak") else CI), EACH))


def test_worlds_hold(first: int) -> None:
    total = Sum()
    for report in chaos(range(first, first + EACH)):
        assert not report.breach, str(report)
        total.add(report)
    print(total)
    assert min(total.faults[kind]["struck"] for kind in KINDS) > 0
