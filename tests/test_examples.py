from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tree import ROOT


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_example_prints_its_out_file(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pytestconfig: pytest.Config,
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path))["main"]()
    printed = capsys.readouterr().out
    if pytestconfig.getoption("update_examples"):
        path.with_suffix(".out").write_text(printed, encoding="utf-8")
    assert printed == path.with_suffix(".out").read_text(encoding="utf-8")
