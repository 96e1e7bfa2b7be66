"""The checkers that plans and pages rest on: their tests take at least 95 % of the branches of each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tree import ROOT

LEAST = 0.95
CHECKERS = {
    *(f"nanort/programs/{name}.py" for name in ("accesses", "clocks", "hazards", "memory")),
    *(f"nanort/serving/{name}.py" for name in ("host_tier", "kv_cache", "page_pool")),
    "nanort/scheduling/check.py",
}
TESTS = ("hazards", "kv_cache", "memory", "programs", "schedule_check")


def test_tests_take_the_branches_of_the_checkers(tmp_path: Path) -> None:
    coverage = [sys.executable, "-m", "coverage"]
    options = ["--rcfile=/dev/null", f"--data-file={tmp_path / 'data'}"]
    tests = [f"tests/test_{name}.py" for name in TESTS]
    included = f"--include={','.join(sorted(CHECKERS))}"
    run = [*coverage, "run", *options, "--branch", included, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    subprocess.run(run, cwd=ROOT, check=True)
    subprocess.run([*coverage, "json", *options, "-q", "-o", tmp_path / "found.json"], cwd=ROOT, check=True)
    found = {name: file["summary"] for name, file in json.loads((tmp_path / "found.json").read_text())["files"].items()}
    assert found.keys() == CHECKERS
    taken = {name: each["covered_branches"] / each["num_branches"] for name, each in found.items()}
    print("\n".join(f"{name:32}{share:8.1%}" for name, share in sorted(taken.items())))
    assert min(taken.values()) >= LEAST
