from __future__ import annotations

import pytest

import dags
import nanort as nr
from nanort.errors import SplitError
from nanort.graphs import CONFIGS, decoder_step
from nanort.scheduling.cuts import cut, worth_trying
from nanort.scheduling.flat import Flat


def step(rows: int) -> nr.Graph:
    return decoder_step(CONFIGS["tiny"], decode=8, context=16, prefill=rows - 8)


def test_cuts_that_are_worth_trying() -> None:
    assert worth_trying(dags.dag(0), thorough=True) == (1,), "it has no batch"
    assert worth_trying(step(2010), thorough=False) == (1, 2)
    assert worth_trying(step(2010), thorough=True) == (1, 2, (1024, 986), (1152, 858), (768, 1242), 3)
    assert worth_trying(step(2048), thorough=True) == (1, 2, (1152, 896), (768, 1280), 3), (
        "equal pieces are whole tiles"
    )
    assert worth_trying(step(511), thorough=True) == (1, 2), "too few rows for tiles to matter"


def test_a_thorough_search_tries_them_and_says_what_became_of_each() -> None:
    schedule = nr.co_schedule(step(2010), nr.device("h200"), policy="search", effort=200)
    schedule.check()
    for cut_into in ("uncut", "cut into 2:", "cut into (1024, 986):", "cut into (1152, 858):", "cut into 3:"):
        assert any(cut_into in line for line in schedule.why), cut_into


def test_a_cut_that_cannot_be_is_left_out_and_told() -> None:
    source = Flat(step(64).seal(), nr.device("h200"))
    cuts, refused = cut(source, (1, 2, (60, 60)), None)
    assert [split and split.sizes for split in cuts] == [None, 2]
    assert len(refused) == 1
    assert refused[0].startswith("not cut into (60, 60): ")
    with pytest.raises(SplitError):
        cut(source, ((60, 60),), None)
