from __future__ import annotations

from dataclasses import replace

import pytest
import runs
import torch

import nanort as nr
from nanort import graphs
from nanort.driver import Driver
from nanort.scheduling.schedule import Schedule
from tolerances import TOLERANCES, assert_near

SIZES = {"decode": 3, "context": 20, "prefill": 7}
TINY = graphs.CONFIGS["tiny"]
SCALED = {"frequencies": tuple(0.5**k for k in range(8)), "rope_scale": 1.25}
MIXTURE = {"experts": 4, "experts_per_token": 2, "normalize": False, "shared_ffn": 96}
CONFIGS = {
    "llama": TINY,
    "qwen3": replace(TINY, model="qwen3", **SCALED),
    "qwen2_moe": replace(TINY, model="qwen2_moe", **MIXTURE, layers=1),
}
"""Between them they call every operator of a decoder in every way."""
PLANS = [
    ("llama", 1, True, torch.bfloat16),
    ("llama", 2, True, torch.bfloat16),
    ("llama", 3, False, torch.float32),
    *((name, 2, True, torch.float32) for name in CONFIGS),
]
"""The model, pieces of the batch, whether the step is captured, and what it is computed in."""


def tensors_of(
    schedule: Schedule, dtype: torch.dtype = torch.float32, config: graphs.DecoderConfig = TINY
) -> runs.Tensors:
    assert schedule.graph.layout is not None
    noise = torch.Generator().manual_seed(0)
    states = {
        root.name: torch.randn(root.shape, generator=noise).to(dtype)
        for root in schedule.graph.roots
        if root.kind == "state"
    }
    inputs = graphs.step_inputs(config, schedule.graph.layout, **SIZES)
    return inputs | graphs.random_weights(config, dtype) | states


@pytest.mark.parametrize(("model", "pieces", "capture", "dtype"), PLANS, ids=str)
def test_a_step_of_kernels_computes_what_eager_does(
    driver: Driver, device: nr.Device, model: str, pieces: int, capture: bool, dtype: torch.dtype
) -> None:
    if driver.device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter gets bfloat16 wrong")
    graph = graphs.decoder_step(CONFIGS[model], **SIZES, dtype=dtype)
    schedule = nr.co_schedule(graph, device, policy="list", nano_batches=(pieces,), guard=False)
    given = tensors_of(schedule, dtype, CONFIGS[model])
    reference = runs.placed(schedule.graph, given, driver.device)
    expected = schedule.graph.eager(**reference)
    expected |= {name: state for name, state in reference.items() if name.startswith("kv.")}
    times = 2 if driver.device == "cpu" else 5
    for outputs in runs.repeated(driver, schedule, given, capture=capture, runs=times, strict=True):
        for name, tensor in expected.items():
            found, right = outputs[name], tensor.cpu()
            if dtype == torch.float32 and right.is_floating_point():
                assert_near(found, right)
            elif dtype == torch.float32:
                assert torch.equal(found, right), name
            elif right.is_floating_point():  # rounded in every operator, it is near as a whole
                assert (found.double() - right.double()).norm() <= TOLERANCES[dtype] * right.double().norm(), name
