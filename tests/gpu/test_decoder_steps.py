from __future__ import annotations

from dataclasses import replace

import pytest
import runs
import torch

import nanort as nr
from nanort import graphs
from nanort.driver import Driver
from nanort.scheduling.schedule import Schedule
from tolerances import assert_near

SIZES = {"decode": 5, "context": 40, "prefill": 19}
CONFIG = replace(graphs.CONFIGS["tiny"], layers=2)


def tensors_of(schedule: Schedule) -> runs.Tensors:
    assert schedule.graph.layout is not None
    noise = torch.Generator().manual_seed(0)
    states = {
        root.name: torch.randn(root.shape, generator=noise) for root in schedule.graph.roots if root.kind == "state"
    }
    inputs = graphs.step_inputs(CONFIG, schedule.graph.layout, **SIZES)
    return inputs | graphs.random_weights(CONFIG, torch.float32) | states


@pytest.mark.parametrize("pieces", [2, 3])
def test_a_nano_batched_step_computes_what_eager_does(driver: Driver, device: nr.Device, pieces: int) -> None:
    graph = graphs.decoder_step(CONFIG, **SIZES, dtype=torch.float32)
    schedule = nr.co_schedule(graph, device, policy="list", nano_batches=(pieces,), guard=False)
    given = tensors_of(schedule)
    reference = runs.placed(schedule.graph, given, driver.device)
    expected = schedule.graph.eager(**reference)
    for outputs in runs.repeated(driver, schedule, given, capture=False, runs=3):
        for name, tensor in expected.items():
            if tensor.is_floating_point():
                assert_near(outputs[name], tensor.cpu())
            else:
                assert torch.equal(outputs[name], tensor.cpu()), name
        for name, state in reference.items():
            if name.startswith("kv."):
                assert_near(outputs[name], state.cpu())
