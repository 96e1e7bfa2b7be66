from __future__ import annotations

import pytest
import torch

import nanort as nr
from nanort.graphs import CONFIGS, random_weights
from nanort.layout import Layout, Segment
from nanort.serving.beside import Beside
from nanort.serving.shapes import SWAPPED, Shape
from nanort.serving.steps import Steps
from nanort.serving.trials import measured_search

TINY = CONFIGS["tiny"]
CORE = nr.device("cpu").with_(sms=1, hbm_saturation_sms=(1, 1))
STEPS = Steps(TINY, torch.float32, pages=9, page_size=4, seats=4, max_rows=16)
MOVED = SWAPPED[1] * STEPS.page_bytes
SHAPES = {
    "mixed": Shape(Layout(2, (Segment(6, 3),), 20), 4, sampling=True),
    "moving": Shape(Layout(2, (), 20, MOVED, MOVED), 3),
    "beside": Shape(Layout(2, (Segment(6, 0),), 20), 4, beside=Beside(0, 1, TINY.layers)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_trial_writes_nothing_but_scratch(name: str) -> None:
    weights, states = random_weights(TINY, torch.float32), STEPS.states("cpu")
    for state in states.values():
        state.fill_(7)
    search = measured_search(STEPS, CORE, "cpu", weights, states, policy="serial", nano_batches=(1,))
    search(SHAPES[name], STEPS.graph(SHAPES[name]))
    assert bool((states["chunk"] == 7).all())
    assert bool((states["drawn"][:-1] == 7).all())
    assert all(bool((states[f"kv.{i}"][1:] == 7).all()) for i in range(TINY.layers))
