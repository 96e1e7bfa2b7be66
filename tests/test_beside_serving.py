"""Prompts that pass the model layer by layer: the tokens are those of ordinary steps, and the time per token holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

import nanort as nr
from nanort.bench.arrivals import arrivals
from nanort.bench.report import Report
from nanort.bench.serve import bench_serve
from nanort.checkpoints.tokenizer import ByteTokenizer
from nanort.graphs import CONFIGS, DecoderConfig, random_weights
from nanort.serving.engine import StepRecord
from nanort.serving.generate import LLM, Completion
from nanort.serving.sampling import SamplingParams
from nanort.serving.simulated import Simulation

TINY = replace(CONFIGS["tiny"], layers=4)
MIXTURE = replace(TINY, model="qwen2_moe", experts=4, experts_per_token=2, shared_ffn=48)
NEVER = 1e-9
"""Seconds that no step holds: one layer of a chunk at a time."""
PROMPTS = [
    "One",
    "A prompt of several steps, even at two layers each",
    "Two",
    "Three, which arrives later",
    "4",
    "Five " * 9,
]


def generated(
    config: DecoderConfig, params: Sequence[SamplingParams], **options: Any
) -> tuple[list[Completion], list[StepRecord]]:
    """What is generated after all prompts, and every step; planned for an H200, which the cpu backend stands in for."""
    records = list[StepRecord]()
    weights = random_weights(config, torch.float32)
    with LLM(config, weights, ByteTokenizer(), device=nr.device("h200"), policy="serial", **options) as llm:
        llm.engine.observers.append(records.append)
        return llm.generate(PROMPTS, params), records


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (TINY, {"max_rows": 16}),
        (TINY, {"max_rows": 24, "seats": 3}),
        (TINY, {"max_rows": 12, "cache_tokens": 112}),
        (MIXTURE, {"max_rows": 12}),
    ],
    ids=["dense", "few-seats", "small-cache", "mixture"],
)
def test_tokens_are_those_of_ordinary_steps(config: DecoderConfig, sizes: dict[str, int]) -> None:
    params = [
        SamplingParams(max_new_tokens=10 + 6 * i, ignore_eos=True, temperature=float(i % 2), seed=i) for i in range(6)
    ]
    plain, records = generated(config, params, page_size=4, **sizes)
    assert not any(record.batch.beside for record in records)
    ours, records = generated(config, params, page_size=4, slo_tpot=NEVER, **sizes)
    assert [completion.tokens for completion in ours] == [completion.tokens for completion in plain]
    stretches = [record.batch.beside for record in records if record.batch.beside is not None]
    assert {stretch.layers for stretch in stretches if not stretch.ends} == {1}
    assert {stretch.first for stretch in stretches} == set(range(config.layers))
    assert ("cache_tokens" in sizes) == any(request.preemptions for r in records for request in r.batch.requests)


def simulated(slo_tpot: float | None, max_rows: int = 1024) -> tuple[Report, list[StepRecord]]:
    """Six layers of LLaMA-3-8B on an H200: prompts of 1024 tokens arrive while others decode."""
    records = list[StepRecord]()
    config = replace(CONFIGS["llama-3-8b"], layers=6)
    with Simulation(
        config, nr.device("h200"), max_rows=max_rows, policy="serial", cache_tokens=64_000, slo_tpot=slo_tpot
    ) as simulation:
        simulation.engine.observers.append(records.append)
        return bench_serve(simulation, arrivals("const:1024/64", 24, rate=150.0)), records


def test_the_time_per_token_holds_in_simulation_while_prompts_proceed() -> None:
    slo_tpot = 2.2e-3
    plain, plain_steps = simulated(None)
    chunked, chunked_steps = simulated(None, max_rows=256)
    ours, steps = simulated(slo_tpot)
    assert longest(plain_steps) > 2 * slo_tpot
    assert longest(chunked_steps) <= slo_tpot
    assert longest(steps) <= slo_tpot
    assert any(step.batch.beside for step in steps)
    assert ours.gap.most <= slo_tpot * (1 + 1e-9) < plain.gap.p99
    assert ours.output_tokens == chunked.output_tokens == plain.output_tokens
    assert plain.first_token.mean < ours.first_token.mean < chunked.first_token.mean


def longest(steps: Sequence[StepRecord]) -> float:
    """Seconds of the longest step that made someone wait for a token."""
    return max(step.result.seconds for step in steps if step.result and step.batch.decode)
