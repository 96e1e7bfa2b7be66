from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

import nanort as nr
from fake_driver import FakeDriver
from nanort.errors import BackendError, CapacityError
from nanort.runtime.partitions import partitions
from nanort.scheduling.coschedule import co_schedule
from nanort.scheduling.schedule import Schedule
from nanort.serving import plans as plans_module
from nanort.serving.planner import Planner
from nanort.serving.plans import Plan, PlanBank
from nanort.serving.shapes import Shape
from test_planner import doubling

CPU, H200 = nr.device("cpu"), nr.device("h200")


def bank(device: nr.Device = CPU, capacity: int = 8, budget: int | None = None) -> PlanBank:
    """Plans for steps that double their rows; they need none of the constants and states there are."""

    def search(shape: Shape, graph: nr.Graph) -> Schedule:
        return co_schedule(graph, device, policy="serial", nano_batches=1)

    given = {"w": torch.ones(1)}
    return PlanBank(Planner(doubling, search, device), given, given, capacity=capacity, budget=budget)


def prompts(bank: PlanBank, counts: Sequence[int]) -> list[Plan]:
    """The plans for prompts of so many rows, one after the other."""
    return [bank.find(Shape(nr.Layout(prefill=count), 1)) for count in counts]


def test_steps_of_one_plan_share_its_executor() -> None:
    kept = bank()
    first, same, larger = prompts(kept, [90, 96, 300])
    assert first is same is not larger
    assert first.bucket == nr.Layout(prefill=96)
    assert kept.plans == (first, larger)


def test_the_executor_that_was_used_least_lately_is_closed() -> None:
    kept = bank(capacity=2)
    small, large, again, huge = prompts(kept, [16, 256, 16, 4096])
    assert small is again
    assert kept.plans == (small, huge)
    with pytest.raises(BackendError, match="is closed"):
        large.run(x=torch.ones(256))
    assert small.run(x=torch.ones(16))["y"].sum() == 32
    assert prompts(kept, [256])[0] is not large
    with pytest.raises(CapacityError, match="capacity=0 and budget=None bytes holds nothing"):
        bank(capacity=0)


def test_executors_of_a_gpu_keep_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver()
    monkeypatch.setattr("nanort.driver.current", lambda: driver)
    monkeypatch.setattr(plans_module, "WORKSPACE", 512)
    free, counts = driver.memory, (16, 96, 300)
    kept = bank(H200)
    plans = prompts(kept, counts)
    sizes, taken = [plan.memory_bytes for plan in plans], [plan.run.memory_bytes for plan in plans]
    assert free - driver.memory == sum(taken)
    assert sizes == [own + 512 for own in taken], "of one stream"
    assert kept.memory_bytes == sum(sizes)
    kept.close()
    assert driver.memory == free

    kept = bank(H200, budget=sum(sizes) - 1)
    small, middle, large = prompts(kept, counts)
    assert kept.plans == (middle, large)
    assert free - driver.memory == middle.run.memory_bytes + large.run.memory_bytes
    with pytest.raises(BackendError, match="is closed"):
        small.run(x=torch.ones(16))
    with pytest.raises(CapacityError, match=r"the plan of .*8192.* for 1 request on h200 takes [0-9,]+ bytes"):
        prompts(kept, [8192])
    assert kept.plans == (middle, large)
    for _ in range(3):
        assert large.run(x=torch.ones(large.layout.rows))["y"].sum() == 2 * large.layout.rows
    assert len(driver.live["graph"]) == 2, "one for each slot of the outputs"
    kept.close()
    partitions(driver).close()
    assert not any(driver.live.values())


def test_a_closed_bank_holds_nothing() -> None:
    kept = bank()
    (plan,) = prompts(kept, [16])
    kept.close()
    assert kept.plans == ()
    with pytest.raises(BackendError, match="is closed"):
        plan.run(x=torch.ones(16))
