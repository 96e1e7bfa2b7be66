"""A little fuzzing that is guided by coverage, for every format; the same files on every run.

`make fuzz` looks further: what it finds is mended, and kept as a test of the reader that it broke.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fuzz.targets import targets
from tree import ROOT

pytest.importorskip("atheris", reason="atheris has wheels for Python 3.11 to 3.13 on x86-64 Linux only")


@pytest.mark.parametrize("name", targets())
def test_guided_files_break_no_reader(name: str) -> None:
    command = [sys.executable, "-m", "fuzz", name, "--coverage", "--runs", "2000"]
    fixed = os.environ | {"PYTHONHASHSEED": "0"}
    ended = subprocess.run(command, cwd=ROOT / "tests", env=fixed, capture_output=True, text=True, errors="replace")
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    print(found := ended.stdout.splitlines()[-1])
    assert found.startswith(f"{name}: ")
    assert not found.endswith("; 0 took new branches"), "nothing guides it"
