from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import nanort as nr
from fake_driver import FakeDriver
from nanort.costs.provenance import machine, versions
from nanort.costs.samples import Call, Place, Sample
from nanort.costs.store import APPLICATION, VERSION, Store
from nanort.errors import CostError, FileError, NewerVersionError, TruncatedFileError

PLACE = Place("h200", 132, "NVIDIA H200", "580.65", (("nanort", "0.1"), ("torch", "2.13")))
CALL = Call("linear(bias='no; DROP TABLE samples')", "reference", ((8, 4), (), (2, 4)), "bfloat16", 128.0, 1e18, 132)
OTHER = CALL._replace(operator="norm", sms=64)
SAMPLE = Sample(CALL, 0.1 + 0.2, 0.25, 1 / 3, 9, (("memory", 3201.0), ("sm", 1980.0)))
BESIDE = (Sample(CALL, 0.5, 0.5, 0.5, 1, beside=OTHER), Sample(OTHER, 0.7, 0.7, 0.7, 1, beside=CALL))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


def test_what_was_added_is_read_bit_for_bit_by_the_next_who_opens_it(path: Path) -> None:
    with Store(path, PLACE) as store:
        store.add(*BESIDE)
        store.add(SAMPLE)
    with Store(path, PLACE) as store:
        assert store.samples() == (SAMPLE, *BESIDE)
        assert (store.has(CALL), store.has(CALL, OTHER), store.has(OTHER, CALL)) == (True, True, True)
        assert (store.has(OTHER), store.has(OTHER, OTHER), store.has(CALL._replace(sms=8))) == (False, False, False)


@pytest.mark.parametrize(
    "change",
    [
        {"kernel": "triton"},
        {"shapes": ((8, 4), (2, 4))},
        {"dtype": "float16"},
        {"flops": 129.0},
        {"hbm_bytes": 1.0},
        {"tiles": 7},
    ],
)
def test_every_part_of_a_call_tells_it_from_others(change: dict[str, object], path: Path) -> None:
    with Store(path, PLACE) as store:
        store.add(SAMPLE)
        assert not store.has(CALL._replace(**change))


@pytest.mark.parametrize(
    "change",
    [
        {"gpu": "NVIDIA H200 NVL"},
        {"driver": "590.1"},
        {"sms": 128},
        {"versions": (("nanort", "0.1"), ("torch", "2.14"))},
    ],
)
def test_measurements_of_another_place_are_other_ones(change: dict[str, object], path: Path) -> None:
    there = PLACE._replace(**change)
    with Store(path, PLACE) as store:
        store.add(SAMPLE)
    with Store(path, there) as store:
        assert (store.samples(), store.has(CALL)) == ((), False)
        store.add(Sample(CALL, 9.0, 9.0, 9.0, 1))
    with Store(path, PLACE) as store:
        assert store.samples() == (SAMPLE,)


def test_a_measurement_again_replaces_the_one_before(path: Path) -> None:
    again = Sample(CALL, 2.0, 1.0, 3.0, 5)
    with Store(path, PLACE) as store:
        store.add(SAMPLE)
        store.add(again)
        assert store.samples() == (again,)


def test_of_several_samples_all_are_kept_or_none(path: Path) -> None:
    broken = Sample(OTHER, 1.0, 1.0, 1.0, 1)
    object.__setattr__(broken, "seconds", None)  # what the file refuses
    with Store(path, PLACE) as store:
        with pytest.raises(sqlite3.IntegrityError, match="NOT NULL"):
            store.add(SAMPLE, broken)
        assert store.samples() == ()
        store.add(SAMPLE)
        assert store.samples() == (SAMPLE,)


def test_two_may_measure_into_one_file(path: Path) -> None:
    with Store(path, PLACE) as one, Store(path, PLACE) as two:
        one.add(SAMPLE)
        assert two.has(CALL)
        two.add(*BESIDE)
        assert one.samples() == (SAMPLE, *BESIDE)


def test_places_are_those_of_the_machine() -> None:
    cpu = nr.device("cpu")
    assert Place.of(cpu) == ("cpu", cpu.sms, machine(), "", versions())
    assert Place.of(nr.device("h200"), FakeDriver()) == ("h200", 132, "fake GPU", "580.0", versions())


def test_equal_calls_of_graphs_are_one_call() -> None:
    def node(rows: int) -> nr.Node:
        g = nr.Graph("g")
        x = g.input("x", (rows, 4), torch.float32)
        g.output(y=g.call(torch.relu, x, demand=nr.Demand(flops=rows, hbm_bytes=32 * rows)))
        return g.seal().nodes[0]

    call = Call.of(node(8), "reference", 2)
    assert call == Call("relu", "reference", ((8, 4),), "float32", 8.0, 256.0, 2)
    assert call == Call.of(node(8), "reference", 2) != Call.of(node(9), "reference", 2)
    assert call.name == "relu"
    assert CALL.name == "linear"


def test_a_sample_is_the_median_between_percentiles() -> None:
    sample = Sample.of(CALL, [5.0, 1.0, 2.0, 3.0, 100.0, 4.0])
    assert (sample.low, sample.seconds, sample.high, sample.runs) == (2.0, 3.5, 5.0, 6)
    assert sample.spread == pytest.approx(3.0 / 3.5)
    assert Sample.of(CALL, [2.0]) == Sample(CALL, 2.0, 2.0, 2.0, 1)


@pytest.mark.parametrize(
    "figures", [(0.0, 0.0, 1.0, 1), (2.0, 3.0, 4.0, 1), (1.0, 1.0, float("inf"), 1), (1.0, 1.0, 1.0, 0)]
)
def test_a_sample_that_cannot_be_is_refused(figures: tuple[float, float, float, int]) -> None:
    with pytest.raises(CostError, match="one run or more, and seconds above zero"):
        Sample(CALL, *figures)


def sql(path: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement, values)
    connection.close()


def test_a_store_of_the_first_version_knew_no_tiles(path: Path) -> None:
    """Its measurements are kept; a call whose tiles are known now is measured again, in place of the old one."""
    with Store(path, PLACE) as store:
        store.add(SAMPLE)
    sql(path, "ALTER TABLE calls DROP COLUMN tiles")
    sql(path, "PRAGMA user_version = 1")
    tiled = CALL._replace(tiles=5)
    with Store(path, PLACE) as store:
        assert (store.samples(), store.has(CALL), store.has(tiled)) == ((SAMPLE,), True, False)
        store.add(Sample(tiled, 1.0, 1.0, 1.0, 1))
        assert [sample.call for sample in store.samples()] == [tiled]


def test_a_store_of_a_newer_version_is_refused(path: Path) -> None:
    Store(path, PLACE).close()
    sql(path, "PRAGMA user_version = 1000")
    with pytest.raises(NewerVersionError, match=r"store\.sqlite has version 1000, this nanort reads up to 2: update"):
        Store(path, PLACE)


def test_the_file_says_what_it_is(path: Path) -> None:
    Store(path, PLACE).close()
    connection = sqlite3.connect(path)
    found = [connection.execute(asked).fetchone() for asked in ("PRAGMA application_id", "PRAGMA user_version")]
    connection.close()
    assert found == [(APPLICATION,), (VERSION,)]


def test_what_is_no_store_is_refused_and_left_as_it_is(path: Path) -> None:
    path.write_text("operator,seconds\n" * 100)
    with pytest.raises(TruncatedFileError, match=r"store\.sqlite is no SQLite file, or is damaged"):
        Store(path, PLACE)
    assert path.read_text() == "operator,seconds\n" * 100


def test_a_database_of_something_else_is_refused_and_left_as_it_is(path: Path) -> None:
    sql(path, "CREATE TABLE samples (mine INTEGER)")
    before = path.read_bytes()
    with pytest.raises(TruncatedFileError, match="is a database of something else: name another file"):
        Store(path, PLACE)
    assert path.read_bytes() == before


def test_a_file_that_is_cut_short_is_refused(path: Path) -> None:
    with Store(path, PLACE) as store:
        store.add(*(Sample(CALL._replace(sms=n), 1.0, 1.0, 1.0, 1) for n in range(1, 400)))
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(TruncatedFileError, match="is no SQLite file, or is damaged"), Store(path, PLACE) as store:
        store.samples()


def test_a_locked_file_is_refused_after_a_while(path: Path) -> None:
    with Store(path, PLACE, patience=0.01) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        for use in (lambda: Store(path, PLACE, patience=0.01), lambda: store.add(SAMPLE), store.samples):
            with pytest.raises(FileError, match="database is locked: if another process is measuring into it, wait"):
                use()
        other.execute("ROLLBACK")
        other.close()
        store.add(SAMPLE)
        assert store.has(CALL)


@pytest.mark.parametrize("name", ["nowhere/store.sqlite", "."])
def test_a_path_that_cannot_be_opened_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"unable to open database file: .* name a file in a folder"):
        Store(tmp_path / name, PLACE)


@pytest.mark.parametrize("name", ["", ":memory:"])
def test_a_store_that_would_not_last_is_refused(name: str) -> None:
    with pytest.raises(FileError, match="would be gone once it is closed: name a file"):
        Store(name, PLACE)


@pytest.mark.parametrize(
    ("statement", "values", "says"),
    [
        ("UPDATE samples SET seconds = ?", ("soon",), "a measurement is .*'soon'"),
        ("UPDATE samples SET seconds = ?", (-1.0,), "cannot be: .*seconds above zero"),
        ("UPDATE samples SET clocks = ?", ("[1, 2]",), "a measurement of linear.* cannot be"),
        ("UPDATE samples SET clocks = ?", ("{",), "a measurement of linear.* cannot be"),
        ("UPDATE samples SET call = ?", (77,), "is of a call that is not there"),
        ("UPDATE samples SET beside = ?", (77,), "is of a call that is not there"),
        ("UPDATE calls SET shapes = ?", ("[8, 4]",), r"'\[8, 4\]' is not a list of shapes"),
        ("UPDATE calls SET shapes = ?", ("8x4",), "'8x4' is not a list of shapes"),
        ("UPDATE calls SET flops = ?", ("many",), "a call is .*'many'"),
    ],
)
def test_figures_that_cannot_be_are_refused_with_the_file(
    statement: str, values: tuple[object, ...], says: str, path: Path
) -> None:
    with Store(path, PLACE) as store:
        store.add(SAMPLE)
    sql(path, statement, *values)
    with Store(path, PLACE) as store, pytest.raises(FileError, match=rf"store\.sqlite: .*{says}|{says}"):
        store.samples()


def test_a_closed_store_is_no_longer_used(path: Path) -> None:
    store = Store(path, PLACE)
    store.close()
    uses: list[Callable[[], object]] = [store.samples, lambda: store.add(SAMPLE), lambda: store.has(CALL)]
    for use in uses:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            use()
