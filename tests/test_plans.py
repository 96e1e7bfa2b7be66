from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

import nanort as nr
from fake_driver import FakeDriver
from nanort.costs.profile import Profile
from nanort.errors import BackendError, CapacityError
from nanort.graphs import CONFIGS, decoder_step, random_weights
from nanort.runtime.partitions import partitions
from nanort.scheduling.coschedule import co_schedule
from nanort.scheduling.schedule import Schedule
from nanort.serving.generate import LLM
from nanort.serving.plans import Plan, PlanBank, carried, octaves
from nanort.serving.sampling import SamplingParams
from nanort.serving.tokenizer import ByteTokenizer

CPU, H200 = nr.device("cpu"), nr.device("h200")
double = nr.op(demand=nr.Demand(flops=1e6), name="double", axes="rows")(lambda x: 2 * x)


class Bank(PlanBank):
    """Plans for steps that double their rows; it notes what it was asked to plan from."""

    def __init__(self, capacity: int = 8, budget: int | None = None) -> None:
        super().__init__(self.graph, self.schedule, {}, {}, capacity, budget)
        self.starts: list[nr.Layout | None] = []

    def graph(self, bucket: nr.Layout, requests: int) -> nr.Graph:
        graph = nr.Graph("double", bucket)
        graph.output(y=double(graph.input("x", (bucket.rows,), torch.float32, batch=0)))
        return graph

    def schedule(self, graph: nr.Graph, device: nr.Device, profile: Profile | None, near: Schedule | None) -> Schedule:
        self.starts.append(near.source.layout if near else None)
        return co_schedule(graph, device, profile=profile, policy="serial", nano_batches=1)

    def rows(self, counts: Sequence[int], device: nr.Device = CPU) -> list[Plan]:
        """The plans for prompts of so many rows, one after the other."""
        return [self.find(nr.Layout(prefill=count), 1, device) for count in counts]


def test_steps_of_one_bucket_share_a_plan_and_others_do_not() -> None:
    bank = Bank()
    first, same, larger = bank.rows([90, 96, 300])
    assert first is same is not larger
    assert first.bucket == nr.Layout(prefill=96)
    assert bank.plans == (first, larger)
    assert bank.find(nr.Layout(prefill=96), 40, CPU) is not first  # it has no room for so many requests


def test_devices_and_profiles_have_plans_of_their_own() -> None:
    bank, step = Bank(), nr.Layout(prefill=96)
    profiles = [None, Profile("h200", 132, "a", []), Profile("h200", 132, "b", [])]
    plans = [bank.find(step, 1, H200, profile) for profile in profiles] + [bank.find(step, 1, CPU)]
    assert len({id(plan) for plan in plans}) == 4
    assert [plan.schedule.profile for plan in plans[:3]] == profiles
    assert [bank.find(step, 1, H200, profile) for profile in profiles] == plans[:3]
    assert bank.find(step, 1, H200, Profile("h200", 132, "b", [])) is plans[2]  # measured the same
    assert bank.starts == [None] * 4  # nor does one of them start another


def test_the_plan_that_was_used_least_lately_is_closed() -> None:
    bank = Bank(capacity=2)
    small, large, again, huge = bank.rows([16, 256, 16, 4096])
    assert small is again
    assert bank.plans == (small, huge)
    with pytest.raises(BackendError, match="is closed"):
        large.run(x=torch.ones(256))
    assert small.run(x=torch.ones(16))["y"].sum() == 32
    assert bank.rows([256])[0] is not large
    with pytest.raises(CapacityError, match="capacity=0 and budget=None bytes holds nothing"):
        Bank(capacity=0)


def test_plans_of_a_gpu_keep_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver()
    monkeypatch.setattr("nanort.driver.current", lambda: driver)
    free, prompts = driver.memory, (16, 96, 300)
    bank = Bank()
    sizes = [plan.memory_bytes for plan in bank.rows(prompts, H200)]
    assert free - driver.memory == sum(sizes)
    bank.close()
    assert driver.memory == free

    bank = Bank(budget=sum(sizes) - 1)
    small, middle, large = bank.rows(prompts, H200)
    assert bank.plans == (middle, large)
    assert free - driver.memory == middle.memory_bytes + large.memory_bytes
    with pytest.raises(BackendError, match="is closed"):
        small.run(x=torch.ones(16))
    with pytest.raises(CapacityError, match=r"the plan of .*8192.* for 1 request on h200 takes [0-9,]+ bytes"):
        bank.rows([8192], H200)
    assert bank.plans == (middle, large)
    for _ in range(3):
        assert large.run(x=torch.ones(large.layout.rows))["y"].sum() == 2 * large.layout.rows
    assert len(driver.live["graph"]) == 2, "one for each slot of the outputs"
    bank.close()
    partitions(driver).close()
    assert not any(driver.live.values())


def test_a_closed_bank_holds_nothing() -> None:
    bank = Bank()
    (plan,) = bank.rows([16])
    bank.close()
    assert bank.plans == ()
    with pytest.raises(BackendError, match="is closed"):
        plan.run(x=torch.ones(16))


def test_a_new_bucket_starts_from_the_nearest_plan_if_one_is_near() -> None:
    bank = Bank()
    bank.rows([16, 4096, 24, 512])
    assert bank.starts == [None, None, nr.Layout(prefill=16), None]
    bank.rows([24, 3072])  # there is one for the first
    assert bank.starts[4:] == [nr.Layout(prefill=4096)]


def test_octaves_tell_how_far_buckets_are_apart() -> None:
    one, other = nr.Layout(decode=3, kv_tokens=127), nr.Layout(decode=7, kv_tokens=63)
    assert octaves(one, one) == 0
    assert octaves(one, other) == octaves(other, one) == 2
    assert octaves(nr.Layout(prefill=7), nr.Layout(prefill=(nr.Segment(7, 8),))) == 1


def test_only_plans_that_gain_about_as_much_are_carried_over() -> None:
    config = replace(CONFIGS["llama-3-8b"], layers=6)

    def step(prefill: int) -> nr.Graph:
        return decoder_step(config, decode=670, context=1280, prefill=prefill)

    plan = co_schedule(step(1340), H200, nano_batches=2, effort=24)
    near = carried(plan, step(1300), guard=True)
    assert near is not None
    assert near.mechanism == plan.mechanism != "serial"
    assert carried(plan, step(64), guard=False) is None  # gains less by far
    assert carried(plan, decoder_step(CONFIGS["tiny"], decode=4, context=8, prefill=4), guard=True) is None
    serial = co_schedule(step(1340), H200, policy="serial")
    assert carried(serial, step(1300), guard=True) is None  # a search may find better


def test_a_model_carries_plans_from_bucket_to_bucket_and_says_the_same() -> None:
    config = CONFIGS["tiny"]
    weights, params = random_weights(config, torch.float32), SamplingParams(max_new_tokens=4, ignore_eos=True)

    def said(**options: object) -> tuple[list[tuple[int, ...]], list[tuple[str, ...]]]:
        with LLM(config, weights, ByteTokenizer(), policy="list", **options) as llm:
            batches = [llm.generate([[1, 2, 3] * 15] * requests, params) for requests in (2, 3)]
            tokens = [completion.tokens for batch in batches for completion in batch]
            return tokens, [plan.schedule.why for plan in llm.plans]

    tokens, why = said(device=H200, nano_batches=(2,), guard=False)
    first, later = (f"replanned from a plan for Layout(decode={decode}" for decode in (0, 2))
    assert [line[0][: len(first)] for line in why[2:]] == [first, later]
    assert not any(line.startswith("replanned") for lines in why[:2] for line in lines)
    assert tokens == said(nano_batches=(1,))[0]
