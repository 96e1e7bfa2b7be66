"""A few seconds of fuzzing that is guided by coverage, for every format."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fuzz.targets import targets
from tree import ROOT

pytest.importorskip("atheris", reason="atheris has wheels for Python 3.11 to 3.13 on x86-64 Linux only")


@pytest.mark.parametrize("name", targets())
def test_guided_files_break_no_reader(name: str) -> None:
    command = [sys.executable, "-m", "fuzz", name, "--coverage", "--runs", "100000", "--seconds", "2"]
    ended = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, errors="replace")
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    print(found := ended.stdout.splitlines()[-1])
    assert found.startswith(f"{name}: ")
    assert not found.endswith("; 0 took new branches"), "nothing guides it"
