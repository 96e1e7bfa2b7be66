from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import dags
import nanort as nr
from nanort import compare as comparing
from nanort.compare import LETTERS, NAMES, RULES, Comparison, Row, Sweep, compare, sweep_sms
from nanort.errors import CapacityError
from nanort.graphs import CONFIGS, decoder_step
from nanort.scheduling import coschedule
from nanort.scheduling.flat import Flat
from nanort.scheduling.list_schedule import ListPolicy
from nanort.scheduling.policy import plan
from nanort.scheduling.schedule import Split
from nanort.scheduling.workload import Workload

H200 = nr.device("h200")
TWO_CORES = nr.device("cpu").with_(sms=2, hbm_saturation_sms=(2, 2))


def step() -> nr.Graph:
    config = replace(CONFIGS["llama-3-8b"], layers=2)
    graph: nr.Graph = decoder_step(config, decode=384, context=1024, prefill=640, dtype=torch.bfloat16)
    return graph


@pytest.fixture(scope="module")
def compared() -> Comparison:
    return compare(step(), H200, effort=128)


@pytest.fixture(scope="module")
def swept() -> Sweep:
    return sweep_sms(step(), H200)


def test_every_policy_and_every_mechanism_of_use_has_a_row(compared: Comparison) -> None:
    policies = [row["policy"] for row in compared.data]
    assert policies == ["serial", "list", "search", "auto (brief)", "co-resident", "isolated"]
    serial, listed, searched, auto, *forced = compared.rows
    assert (serial.judged, searched.judged, auto.judged) == (0, 128, 128)
    assert auto.schedule == nr.co_schedule(auto.schedule.source, H200, effort=128)
    assert searched.schedule.makespan <= listed.schedule.makespan <= serial.schedule.makespan
    for row in forced:
        assert row.schedule.mechanism.startswith(row.policy)
        row.schedule.check()


def test_figures_are_those_of_the_schedules(compared: Comparison) -> None:
    for row, data in zip(compared.rows, compared.data, strict=True):
        assert data["seconds"] == row.schedule.makespan
        assert data["gain"] == pytest.approx(row.schedule.serial_makespan / data["seconds"])
        assert data["seconds"] == pytest.approx(data["bound_seconds"] * (1 + data["gap"]))
        assert data["gap"] >= 0
        family = row.schedule.bounds.families[data["bound"]]
        assert row.schedule.bounds.largest(family)[1] == data["bound_seconds"]


def test_table_says_the_figures_in_80_columns(compared: Comparison) -> None:
    head, *lines = str(compared).splitlines()
    assert max(map(len, [head, *lines])) <= 80
    for line, data in zip(lines, compared.data, strict=False):
        assert line.startswith(data["policy"])
        assert f"{data['gain']:.2f}x" in line
        at = head.index("family")
        assert line[at:].startswith(data["bound"])


def test_a_mechanism_has_its_row_where_the_guard_chose_serial() -> None:
    graph = decoder_step(CONFIGS["tiny"], decode=8, context=64, prefill=56, dtype=torch.bfloat16)
    rows = {row["policy"]: row for row in compare(graph, TWO_CORES, effort=32).data}
    assert {rows[name]["mechanism"] for name in ("serial", "list", "search")} == {"serial"}
    assert rows["isolated"]["mechanism"] == "isolated 1+1 SMs"
    assert rows["isolated"]["gain"] < 1


def test_copies_have_a_row_where_something_is_copied() -> None:
    graph = dags.beside(dags.demand("compute", 1.0), dags.demand("upload", 1.0))
    rows = {row["policy"]: row for row in compare(graph, H200, effort=32).data}
    assert rows["copies"]["gain"] == pytest.approx(2, rel=0.1)


def test_auto_is_called_list_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coschedule, "LARGE", 1)
    monkeypatch.setattr(comparing, "LARGE", 1)
    found = compare(dags.dag(3), H200, effort=64)
    rows = {row.policy: row for row in found.rows}
    assert rows["auto"].schedule == rows["list"].schedule
    assert [row["policy"] for row in found.data][3] == "auto (list)"


def test_known_rows_are_not_made_again() -> None:
    graph = dags.dag(3)
    known = Row.of(graph, H200, "search", effort=64)
    rows = dict(zip(NAMES, compare(graph, H200, known=[known], effort=64).rows, strict=False))
    assert rows["search"] is known


def test_a_schedule_that_was_stopped_is_marked() -> None:
    graph = dags.dag(3)

    def stop(judged: int, *_: float) -> None:
        if judged == 5:
            raise KeyboardInterrupt

    row = Row.of(graph, H200, "search", effort=64, progress=stop)
    shown = str(Comparison((row,)))
    assert f"{row.judged}!" in shown
    assert "stopped before its effort was spent" in shown


def test_sweep_has_the_least_list_schedule_of_every_split(swept: Sweep) -> None:
    assert swept.memory_sms == tuple(range(8, 121, 8))
    flat = Flat(step().seal(), H200)
    for point, at in ((43, 0), (85, 5)):
        work, sms = Workload(flat, point), swept.memory_sms[at]
        plans = [plan(ListPolicy(*rule), work, work.isolated(sms, 128 - sms)).makespan for rule in RULES]
        assert swept.seconds[point][at] == pytest.approx(min(plans))


def test_sweep_gains_are_the_worst_over_saturation_points(swept: Sweep) -> None:
    outlooks = {o.saturation: o.serial_seconds for o in nr.co_schedule(step(), H200, policy="serial").outlooks}
    assert swept.serial_seconds == outlooks
    for at, gain in enumerate(swept.gains):
        assert gain == min(outlooks[point] / seconds[at] for point, seconds in swept.seconds.items())


def test_sweep_table_marks_the_best_split(swept: Sweep) -> None:
    lines = str(swept).splitlines()
    assert max(map(len, lines)) <= 80
    (best,) = (line for line in lines if line.endswith("best"))
    assert int(best.split()[0]) == swept.memory_sms[swept.gains.index(max(swept.gains))]
    assert len(lines) == 1 + 1 + len(swept.memory_sms) + 1


def test_sweep_plans_the_cut_that_is_asked_for(swept: Sweep) -> None:
    told: list[tuple[int, int]] = []
    cut = sweep_sms(step(), H200, Split.of(2), progress=lambda done, of: told.append((done, of)))
    assert "2 nano-batches" in cut.title
    assert "uncut" in swept.title
    assert cut.serial_seconds == swept.serial_seconds
    assert cut.seconds != swept.seconds
    assert told == [(done, 45) for done in range(1, 46)]


def test_a_device_of_one_group_cannot_be_swept() -> None:
    with pytest.raises(CapacityError, match="cannot be split"):
        sweep_sms(dags.dag(1), TWO_CORES.with_(sms=1, hbm_saturation_sms=(1, 1)))


@pytest.mark.parametrize("width", [60, 80, 140])
def test_plot_fits_and_has_every_point(swept: Sweep, width: int) -> None:
    lines = swept.plot(width).splitlines()
    assert max(map(len, lines)) <= width
    drawn = "".join(line.partition("|")[2] for line in lines)
    assert any(letter in drawn for letter in LETTERS.upper())
    assert sum(drawn.count(mark) for mark in LETTERS + LETTERS.upper() + "^") >= len(swept.memory_sms)


def test_plot_is_to_scale() -> None:
    sweep = Sweep("", (8, 16, 24), {43: (9.0, 1.0, 1.5)}, {43: 2.0})
    lines = sweep.plot(60).splitlines()
    rows = [line.partition("|")[2] for line in lines if "|" in line]
    column = {mark: next(row.index(mark) for row in rows if mark in row) for mark in "^Aa"}
    height = {mark: next(at for at, row in enumerate(rows) if mark in row) for mark in "^Aa-"}
    assert column["^"] < column["A"] < column["a"]
    assert column["A"] - column["^"] == pytest.approx(column["a"] - column["A"], abs=1)
    assert (height["^"], height["A"]) == (0, len(rows) - 1)
    top = 2.4  # the serial line and what is a fifth above it are shown, 9 seconds are not
    assert height["a"] == round((top - 1.5) / (top - 1.0) * (len(rows) - 1))
    assert height["-"] == round((top - 2.0) / (top - 1.0) * (len(rows) - 1))
    assert lines[height["-"]].startswith("serial 2 s |")
    ticks = lines[len(rows) + 1]
    assert ticks.split() == ["8", "16", "24"]
    assert ticks.index("16") == pytest.approx(lines[height["A"]].index("A"), abs=1)


def test_plot_of_makespans_that_are_all_the_same_is_a_line() -> None:
    rows = Sweep("", (1, 2), {2: (1.0, 1.0)}, {2: 1.0}).plot(60).splitlines()
    assert sum("A" in row and "-" in row for row in rows) == 1
