"""Equal inputs give equal bytes: schedules, simulated timelines and reports of chaos, on every Python.

Where they are meant to change, ``python tests/same_bytes.py > tests/same_bytes.json`` writes the digests anew.
"""

from __future__ import annotations

import json
from pathlib import Path

from same_bytes import digests

KEPT = Path(__file__).with_name("same_bytes.json")


def test_the_bytes_are_those_of_every_other_python_and_machine() -> None:
    assert dict(digests()) == json.loads(KEPT.read_text(encoding="ascii"))
