from __future__ import annotations

import random

import pytest
import runs
import torch

import nanort as nr
import random_dags
from nanort.driver import Driver
from tolerances import assert_near

RUNS = 10


@pytest.mark.parametrize("capture", [False, True], ids=["eager", "captured"])
def test_outputs_are_those_of_eager_and_the_same_bits_in_every_run(
    driver: Driver, device: nr.Device, seed: int, capture: bool
) -> None:
    make = random_dags.FAMILIES[seed % len(random_dags.FAMILIES)]
    rng = random.Random(seed)
    graph, tensors = make(seed)
    schedule = random_dags.placed(random_dags.cut(graph, rng), rng, device)
    given = random_dags.packed(schedule.graph, tensors)
    # Whole numbers are exact anywhere; what is rounded is compared with what the same GPU computes.
    home = driver.device if make is random_dags.floats else "cpu"
    reference = runs.placed(schedule.graph, given, home)
    expected = schedule.graph.eager(**reference)
    expected |= random_dags.by_kind(schedule.graph, reference)[2]
    found = runs.repeated(driver, schedule, given, capture=capture, runs=RUNS)
    assert len(found) == RUNS
    for outputs in found:
        assert outputs.keys() == expected.keys()
        for name, tensor in outputs.items():
            assert_near(tensor, expected[name].cpu())
            assert torch.equal(tensor, found[0][name]), name
