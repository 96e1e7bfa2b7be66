"""Machine code checks no index by itself: the tests of all that is compiled, once with every index checked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMPILED = ("test_machine", "test_tuning", "test_solve")


def test_nothing_compiled_leaves_its_arrays(tmp_path: Path) -> None:
    tests = [str(ROOT / "tests" / f"{name}.py") for name in COMPILED]
    told = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        env=told,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:]
