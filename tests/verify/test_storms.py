"""Storms of requests over the symbolic device, many more than in tests/test_engine_storms.py."""

from __future__ import annotations

from collections import Counter

import pytest

from storms import drawn

CI, SOAK, EACH = 100, 20_000, 50


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("first", range(0, SOAK if metafunc.config.getoption("soak") else CI, EACH))


def test_replies_in_storms(first: int) -> None:
    happened = Counter[str]()
    for seed in range(first, first + EACH):
        happened.update(drawn(1000 + seed, 300, fails=0.05 * (seed % 2)).run())
    print(dict(happened))
    assert min(happened.values()) > 0
