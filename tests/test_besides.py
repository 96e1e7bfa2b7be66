"""How many layers of a chunk a step takes: by what plans say, corrected by what steps take."""

from __future__ import annotations

import pytest

from nanort.serving.batching import Batch, Share
from nanort.serving.beside import Beside, Besides, cut
from nanort.serving.requests import Request
from nanort.serving.sampling import SamplingParams

LAYERS = 32
DECODE, LAYER = 10e-3, 1e-3
"""Seconds of a decode step, and of a layer of the chunk, each on its own SMs."""


def share(name: str, start: int, stop: int) -> Share:
    return Share(Request(name, (1,) * 64, SamplingParams()), start, stop, draws=True)


CHUNK = (share("a", 0, 40), share("b", 0, 8))
STEP = Batch((share("c", 63, 64),), CHUNK)


def alone(batch: Batch) -> float:
    """Seconds of the prefill rows without decode."""
    rows = sum(share.stop - share.start for share in batch.prefill)
    return (batch.beside.layers if batch.beside else LAYERS) * LAYER * rows / 48


def in_turn(batch: Batch) -> float:
    """Both parts one after the other."""
    return DECODE + alone(batch)


def side_by_side(batch: Batch) -> float:
    """The longer part of both; rows that pass all layers as in an ordinary step take the sum."""
    return max(DECODE, alone(batch)) if batch.beside else in_turn(batch)


def through(besides: Besides, batch: Batch = STEP) -> list[int]:
    """The layers of all steps that a chunk takes."""
    counts = list[int]()
    while True:
        made = besides.timed(batch)
        assert (made.decode, made.prefill) == (batch.decode, batch.prefill)
        counts.append(made.beside.layers if made.beside else LAYERS)
        assert made.beside is None or (made.beside.stop, made.beside.of) == (sum(counts), LAYERS)
        assert besides.chunk == (() if sum(counts) == LAYERS else CHUNK)
        if not besides.chunk:
            return counts


@pytest.mark.parametrize(
    ("slo", "counts"),
    [
        (5e-3, [1] * 32),  # cannot hold: one layer at a time, for prompts have to come to their end as well
        (10e-3, [8] * 4),
        (11.9e-3, [8] * 4),
        (12.1e-3, [12, 12, 8]),
        (41e-3, [12, 12, 8]),  # longer steps would make all wait longer, and compute no faster
    ],
)
def test_a_step_takes_as_many_layers_as_hold(slo: float, counts: list[int]) -> None:
    besides = Besides(side_by_side, LAYERS, slo)
    assert through(besides) == counts
    assert through(besides) == counts


def test_more_layers_are_not_worth_a_longer_step_that_gains_nothing() -> None:
    assert through(Besides(alone, LAYERS, 1.0)) == [1] * LAYERS
    assert through(Besides(in_turn, LAYERS, 1.0)) == [LAYERS]


@pytest.mark.parametrize("layers", [1, 2, 3, 22, 30, 32])
def test_a_chunk_passes_every_layer_once_whatever_is_chosen_on_the_way(layers: int) -> None:
    slo = 12e-3
    besides = Besides(side_by_side, layers, slo)
    for turn in range(6):
        done = 0
        while True:
            besides.slo_tpot = slo * (1 + (done + turn) % 3)
            made = besides.timed(STEP).beside
            done = layers if made is None else made.stop
            assert made is None or made.ends or made.first % made.layers == 0
            if done == layers:
                break
        assert besides.chunk == ()


@pytest.mark.parametrize(("slo", "rows"), [(10.7e-3, 1), (13e-3, 4), (26.1e-3, 24), (42e-3, 48)])
def test_where_nothing_runs_side_by_side_fewer_rows_pass_all_layers(slo: float, rows: int) -> None:
    def predict(batch: Batch) -> float:
        return in_turn(batch) + (1e-3 if batch.beside else 0.0)

    besides = Besides(predict, LAYERS, slo)
    made = besides.timed(STEP)
    assert made.beside is None
    assert made.decode == STEP.decode
    assert sum(share.stop - share.start for share in made.prefill) == rows
    assert [share.draws for share in made.prefill] == {1: [False], 4: [False], 24: [False], 48: [True, True]}[rows]
    assert besides.chunk == ()


@pytest.mark.parametrize("rows", [1, 39, 40, 41, 47, 48])
def test_a_batch_is_cut_after_so_many_rows(rows: int) -> None:
    shares = cut(STEP, rows).prefill
    assert [(share.request, share.start) for share in shares] == [(s.request, s.start) for s in CHUNK[: len(shares)]]
    assert sum(share.stop - share.start for share in shares) == rows
    assert [share.draws for share in shares] == [s.stop == c.stop for s, c in zip(shares, CHUNK, strict=False)]


def test_a_step_without_decode_rows_takes_all_that_is_left() -> None:
    besides = Besides(side_by_side, LAYERS, 10e-3)
    assert besides.timed(Batch((), CHUNK)).beside is None
    assert besides.chunk == ()
    assert besides.timed(STEP).beside == Beside(0, 8, LAYERS)
    assert besides.timed(Batch((), CHUNK)).beside == Beside(8, 24, LAYERS)
    assert besides.chunk == ()


def test_a_step_without_prompts_is_left_as_it_is() -> None:
    besides = Besides(side_by_side, LAYERS, 10e-3)
    batch = Batch(STEP.decode)
    assert besides.timed(batch) is batch


def test_a_chunk_is_forgotten_with_any_of_its_requests() -> None:
    besides = Besides(side_by_side, LAYERS, 10e-3)
    besides.timed(STEP)
    besides.drop(STEP.decode[0].request)
    assert besides.chunk == CHUNK
    besides.drop(CHUNK[1].request)
    assert besides.chunk == ()
    assert besides.timed(STEP).beside == Beside(0, 8, LAYERS)


def test_what_steps_take_corrects_what_plans_say() -> None:
    besides = Besides(side_by_side, LAYERS, 16e-3)
    assert through(besides) == [12, 12, 8]
    for _ in range(50):
        besides.observe(Batch(STEP.decode, CHUNK, beside=Beside(0, 8, LAYERS)), 1.5 * DECODE)
    assert through(besides) == [8] * 4
    besides.observe(Batch(STEP.decode), 1e9)  # tells nothing of two parts side by side
    assert through(besides) == [8] * 4


def test_few_plans_are_asked_for() -> None:
    asked = list[Beside | None]()

    def predict(batch: Batch) -> float:
        asked.append(batch.beside)
        return side_by_side(batch)

    besides = Besides(predict, LAYERS, 16e-3)
    through(besides)
    asked.clear()
    through(besides)
    assert len(asked) <= 3 * len((12, 12, 8))


def test_a_short_prompt_does_not_make_the_next_one_ask_for_many_plans() -> None:
    asked = list[Batch]()

    def predict(batch: Batch) -> float:
        asked.append(batch)
        return in_turn(batch)

    besides = Besides(predict, LAYERS, 1.0)
    through(besides)
    few = Batch(STEP.decode, (share("d", 0, 2),))
    assert besides.timed(few) == few
    asked.clear()
    assert through(besides) == [LAYERS]
    assert len(asked) <= 4


def test_layers_that_neither_begin_nor_end_the_model_are_alike() -> None:
    assert Beside(8, 8, 32).twin == Beside(16, 8, 32).twin
    assert Beside(0, 8, 32).twin == Beside(0, 8, 32)
    assert Beside(24, 8, 32).twin == Beside(24, 8, 32)


def test_one_slow_step_does_not_stop_prompts_for_long() -> None:
    """The first run of a plan compiles kernels, which says nothing of the next ones."""
    besides = Besides(lambda batch: 0.01, layers=4, slo_tpot=0.1)
    besides.observe(STEP, 5.0)
    assert besides._factor < 1.2
