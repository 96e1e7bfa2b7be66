from __future__ import annotations

import doctest
import importlib

import pytest

from tree import MODULES


# Not `pytest --doctest-modules`: that would import ops/ and graphs/ a second time, under their folders' names.
@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_say_what_happens(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
