from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tree import ROOT

NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("bench_*.py") if path.stem != "bench_kernels")


@pytest.fixture(autouse=True)
def _root_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)  # benchmarks are run from there and are not installed


@pytest.fixture
def measure() -> ModuleType:
    return importlib.import_module("benchmarks.measure")


@pytest.mark.parametrize("name", NAMES)
def test_benchmark_yields_its_rows_at_toy_size(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "found.json"
    rows = importlib.import_module(f"benchmarks.{name}").main(["--quick", "--save", str(saved)])
    printed = capsys.readouterr().out
    assert rows
    assert any(row.goal for row in rows)
    for row in rows:
        assert row.name in printed
        assert all(map(math.isfinite, (row.found.p20, row.found.p50, row.found.p80)))
        assert (row.ratio is None) == (not row.baseline)
    found = json.loads(saved.read_text(encoding="utf-8"))
    assert found["command"] == f"python -m benchmarks.{name} --quick"
    assert [row["name"] for row in found["rows"]] == [row.name for row in rows]
    assert found["machine"]["torch"] in printed


def test_interleave_runs_every_variant_once_a_round_after_the_warmup(measure: ModuleType) -> None:
    ran: list[str] = []
    rounds = measure.interleave({name: lambda name=name: ran.append(name) for name in "abc"}, rounds=4, warmup=2)
    assert [sorted(ran[at : at + 3]) for at in range(0, len(ran), 3)] == [["a", "b", "c"]] * 6
    assert {name: samples.shape for name, samples in rounds.seconds.items()} == dict.fromkeys("abc", (4,))


def test_interleave_keeps_the_quietest_rounds(measure: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = iter([0.9, 0.3, 0.0, 0.5, 0.1, 0.2, 0.04, 0.7])
    monkeypatch.setattr(measure, "_others", lambda before: next(shares))
    rounds = measure.interleave({"a": lambda: None}, rounds=2, tries=4)
    assert rounds.others.tolist() == [0.0, 0.04]
    assert list(shares) == [0.7]  # it stopped as soon as two were quiet


def test_ratios_are_taken_pair_by_pair(measure: ModuleType) -> None:
    ours, theirs = np.array([1.0, 2.0, 4.0]), np.array([2.0, 4.0, 8.0])  # twice as fast in each round
    row = measure.compared("ours", ours, "theirs", theirs, unit="s", goal=(">=", 2.0))
    assert (row.ratio.p20, row.ratio.p50, row.ratio.p80) == (2.0, 2.0, 2.0)
    assert (row.found.p50, row.found.least, row.found.count) == (2.0, 1.0, 3)
    assert row.met is True


@pytest.mark.parametrize(("how", "figure", "met"), [("<=", 2.0, True), ("<=", 1.9, False), (">=", 2.1, False)])
def test_goal_is_judged_by_the_median(measure: ModuleType, how: str, figure: float, met: bool) -> None:
    row = measure.Row("this", "s", measure.Spread.of([1.0, 2.0, 9.0]), goal=(how, figure))
    assert row.met is met
    assert ("met" if met else "MISSED") in measure.table([row])
