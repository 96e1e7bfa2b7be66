from __future__ import annotations

import os
from pathlib import Path

import pytest

from nanort.timeline.events import Timeline
from referees.planted import COUNT, planted
from tree import ROOT

ENVIRONMENT = ROOT / ".venv-referees"


@pytest.fixture(scope="session")
def environment() -> Path:
    """The folder of what was installed for the referees."""
    if not (ENVIRONMENT / ".installed").exists():
        absent = pytest.fail if os.environ.get("CI") else pytest.skip
        absent(f"{ENVIRONMENT} is not there: make referees fills it where there is a registry of packages")
    return ENVIRONMENT


@pytest.fixture(scope="session")
def graphs() -> list[Timeline]:
    return [planted(seed) for seed in range(COUNT)]
