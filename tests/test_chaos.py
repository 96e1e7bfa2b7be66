"""The deterministic world: sixty seeds hold, and a seed says it all. More in tests/verify and by ``make soak``."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nanort.chaos.faults import KINDS
from nanort.chaos.run import Sum, chaos
from nanort.chaos.turns import Turns
from nanort.cli import app
from nanort.errors import RequestError

SEEDS = 60


def test_worlds_hold_whatever_goes_wrong_in_them() -> None:
    total = Sum()
    for report in chaos(range(SEEDS), requests=8):
        assert not report.breach, str(report)
        assert sum(report.ends.values()) == 8
        total.add(report)
    print(total)
    assert min(total.faults[kind]["struck"] for kind in KINDS) > 0
    assert min(total.ends[end] for end in ("stop", "length", "cancelled", "error")) > 0
    for name, kind in KINDS.items():
        counts = total.faults.get(name, Counter())
        assert (counts["restarts"] > 0) == kind.fatal
        assert kind.errors or not counts["requests failed"]


def test_without_faults_nothing_fails() -> None:
    for report in chaos(range(6), requests=8, kinds=()):
        assert not report.breach, str(report)
        assert (report.faults, report.ends["error"]) == ({}, 0)


def test_the_same_seed_gives_the_same_bytes_whatever_ran_before() -> None:
    first = [str(report) for report in chaos((3, 17))]
    again = [str(report) for report in chaos((17, 5, 3))]
    assert first == [again[2], again[0]]
    assert first[0] != first[1]


def test_one_kind_of_fault_may_be_asked_for() -> None:
    found = [report for report in chaos(range(8), kinds=("grant",)) if report.faults.get("grant", Counter())["struck"]]
    assert found, "no group of SMs was asked for"
    assert {kind for report in found for kind in report.faults} == {"grant"}
    assert not any(report.breach for report in found)


@pytest.mark.parametrize(("options", "said"), [({"kinds": ("flood",)}, "no fault 'flood'"), ({"requests": 0}, "1 or")])
def test_what_cannot_be_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        next(chaos([0], **options))  # type: ignore[arg-type]  # wrong on purpose


def test_the_command_prints_a_report_and_keeps_it(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["chaos", "--seed", "3", "--requests", "5", "--out", str(tmp_path)])
    assert told.exit_code == 0
    assert told.stdout == (tmp_path / "seed-3.txt").read_text(encoding="utf-8")
    several = CliRunner().invoke(app, ["chaos", "--seed", "3", "--seeds", "2", "--requests", "5", "--faults", "slow"])
    assert several.exit_code == 0
    assert "2 worlds" in several.stdout
    assert "all held" in several.stdout


def test_turns_are_taken_in_order_when_they_are_waited_for() -> None:
    for seed in range(20):
        said = list[int]()
        turns = Turns(random.Random(seed))
        calls = [turns.submit(said.append, number) for number in range(5)]
        calls[2].result()
        assert said[:3] == [0, 1, 2]
        turns.shutdown()
        assert said == [0, 1, 2, 3, 4]


def test_a_turn_that_fails_tells_whoever_asks() -> None:
    with Turns(random.Random(1)) as turns:
        with pytest.raises(ZeroDivisionError):
            turns.submit(divmod, 1, 0).result()
        assert turns.submit(divmod, 7, 2).result() == (3, 1)
