from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

import nanort as nr
from nanort.bench.arrivals import Arrival, arrivals
from nanort.bench.optimal import PRODUCTS, Optimal
from nanort.bench.report import WIDTH, Curve, Spread
from nanort.bench.serve import bench_serve
from nanort.checkpoints.tokenizer import ByteTokenizer
from nanort.costs.roofline import Costs
from nanort.errors import CacheFullError, ExecutionError, RequestError
from nanort.graphs import CONFIGS, decoder, random_weights
from nanort.serving.generate import LLM
from nanort.serving.requests import Request
from nanort.serving.runner import Result
from nanort.serving.simulated import Simulation

TINY = CONFIGS["tiny"]
H200 = nr.device("h200")


@pytest.fixture
def simulation() -> Iterator[Simulation]:
    options = {"cache_tokens": 4096, "max_rows": 64, "policy": "serial", "prefix_sharing": False}
    with Simulation(TINY, H200, **options) as made:
        yield made


def test_a_model_is_measured_on_this_machine() -> None:
    core = nr.device("cpu").with_(sms=1, hbm_saturation_sms=(1, 1))
    told = list[tuple[int, int]]()
    with LLM(TINY, random_weights(TINY, torch.float32), ByteTokenizer(), device=core, max_rows=32) as llm:
        coming = arrivals("azure", 6, rate=50.0, scale=1 / 64, most=200)
        report = bench_serve(llm, coming, progress=lambda done, of: told.append((done, of)))
        again = bench_serve(llm, coming)
        assert llm.engine.observers == []
    assert told[-1] == (6, 6)
    assert report.prompt_tokens == sum(one.prompt for one in coming)
    assert report.output_tokens == sum(one.output for one in coming)
    assert report.rows == sum(one.prompt + one.output - 1 for one in coming)
    assert report.seconds >= coming[-1].at
    assert report.first_token.count == report.latency.count == 6
    assert 0 < report.kv_mean <= report.kv_most <= 1
    assert report.plans > 0
    assert report.planning_seconds > 0
    assert again.requests == 6
    assert json.loads(json.dumps(report.data))["tokens_per_second"] == report.tokens_per_second


def test_a_report_says_what_it_rests_on(simulation: Simulation) -> None:
    report = bench_serve(simulation, arrivals("const:100/20", 30))
    text = str(report)
    assert "30 requests of llama" in text
    assert "the model of h200, not measured" in text
    assert f"{report.steady_tokens_per_second:,.0f} tokens/s" in text
    assert text.count("█") >= 3
    assert all(len(curve.means) == WIDTH for curve in report.curves)
    assert 0 < report.optimal < 1
    assert 0 < report.arithmetic < report.optimal


def test_measured_costs_are_named() -> None:
    profile = nr.Profile("h200", 132, "some machine", [])
    with Simulation(TINY, H200, profile=profile, cache_tokens=512, policy="serial") as measured:
        assert bench_serve(measured, [Arrival(0.0, 4, 2)]).costs.startswith("some machine, 0 measurements")


def test_the_steady_state_is_between_the_first_end_and_the_last_wait(simulation: Simulation) -> None:
    waiting = bench_serve(simulation, arrivals("const:100/20", 30))
    assert waiting.steady_seconds < waiting.seconds
    assert waiting.steady_rows / waiting.steady_seconds > waiting.rows / waiting.seconds
    alone = bench_serve(simulation, arrivals("const:100/20", 1))
    assert alone.steady_seconds == pytest.approx(alone.seconds)
    assert alone.steady_rows == alone.rows == 119


def test_a_request_that_comes_during_a_step_has_waited_since(simulation: Simulation) -> None:
    alone = bench_serve(simulation, [Arrival(0.0, 40, 2)])
    begun = alone.first_token.most / 2
    both = bench_serve(simulation, [Arrival(0.0, 40, 2), Arrival(begun, 4, 1)])
    assert both.first_token.p10 >= alone.first_token.most / 2
    late = bench_serve(simulation, [Arrival(0.0, 40, 2), Arrival(10.0, 40, 2)])
    assert late.first_token.most == pytest.approx(alone.first_token.most)
    assert late.seconds == pytest.approx(10.0 + alone.seconds)


def test_times_of_a_lone_request_add_up(simulation: Simulation) -> None:
    report = bench_serve(simulation, [Arrival(0.0, 10, 21)])
    assert report.per_token.count == 1
    assert report.gap.count == 20
    assert report.gap.mean == pytest.approx(report.per_token.mean)
    assert report.latency.mean == pytest.approx(report.first_token.mean + 20 * report.per_token.mean)
    assert report.latency.mean == pytest.approx(report.seconds)


@pytest.mark.parametrize("name", ["llama-3-8b", "mixtral-8x7b"])
def test_the_optimum_is_the_products_of_all_layers_one_after_another(name: str) -> None:
    config = replace(CONFIGS[name], layers=5)
    graph = decoder(
        config, nr.Layout(decode=100, prefill=156, kv_tokens=100), pages=8, requests=101, table_width=1,
        dtype=torch.bfloat16,
    )  # fmt: skip
    costs = Costs(H200)
    products = [node for node in graph.seal().nodes if node.op.name in PRODUCTS]
    assert len(products) == (7 if name == "llama-3-8b" else 4 + 3) * 5 + 1
    wanted = sum(costs.solo(node, H200.sms).seconds for node in products)
    assert Optimal(config, H200, torch.bfloat16, None).seconds(256, 101) == pytest.approx(wanted)


def test_arithmetic_counts_the_parameters_that_a_token_uses() -> None:
    dense, mixture = (Optimal(CONFIGS[name], H200, torch.bfloat16, None) for name in ("llama-3-8b", "mixtral-8x7b"))
    assert dense.active_parameters == CONFIGS["llama-3-8b"].parameters
    assert mixture.active_parameters == pytest.approx(12.88e9, rel=1e-3)
    assert dense.tokens_per_second == H200.rate(torch.bfloat16) / (2 * dense.active_parameters)


@pytest.mark.parametrize(
    ("coming", "error", "said"),
    [
        ([], RequestError, "at least one arrival"),
        ([Arrival(0.0, 4000, 10)], RequestError, "context is 2048"),
        ([Arrival(0.0, 100, 1000)], CacheFullError, "KV cache"),
    ],
)
def test_what_cannot_be_served_is_refused(coming: list[Arrival], error: type[Exception], said: str) -> None:
    with (
        Simulation(TINY, H200, cache_tokens=512, policy="serial") as small,
        pytest.raises(error, match=said),
    ):
        bench_serve(small, coming)


def test_a_step_that_fails_ends_the_benchmark(simulation: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> Result:
        raise ExecutionError("layer0.q_proj failed")

    monkeypatch.setattr(simulation.engine.runner, "collect", fails)
    with pytest.raises(ExecutionError, match=r"layer0\.q_proj failed"):
        bench_serve(simulation, [Arrival(0.0, 4, 2)])
    assert simulation.engine.observers == []


def test_prompts_are_drawn_by_the_seed(simulation: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = list[Request]()
    submit = simulation.engine.submit
    monkeypatch.setattr(
        simulation.engine, "submit", lambda *given, **more: drawn.append(submit(*given, **more)) or drawn[-1]
    )
    for seed in (0, 0, 1):
        bench_serve(simulation, arrivals("const:8/1", 2), seed=seed)
    prompts = [request.prompt for request in drawn]
    assert prompts[:2] == prompts[2:4] != prompts[4:]
    assert prompts[0] != prompts[1]


def test_spreads_are_percentiles() -> None:
    found = Spread.of([float(number) for number in range(101)])
    assert found == Spread(101, 50.0, 10.0, 50.0, 90.0, 99.0, 100.0)
    assert Spread.of([]) == Spread()


def test_curves_are_means_over_equal_stretches() -> None:
    ends = np.array([0.5, 32.0, 64.0])
    curve = Curve.of("a figure", ends, np.array([0.5, 31.5, 96.0]), 64.0)
    assert curve.means == pytest.approx((1.0,) * 32 + (3.0,) * 32)
    assert str(curve) == "▃" * 32 + "█" * 32 + "| 3"
    assert str(Curve("nothing", (0.0,) * WIDTH)) == " " * WIDTH + "| 0"


def test_shares_stay_shares_in_a_run_of_few_long_steps(simulation: Simulation) -> None:
    report = bench_serve(simulation, arrivals("const:60/2", 3))
    use = next(curve for curve in report.curves if curve.name == "cache use")
    assert 0 < max(use.means) <= report.kv_most + 1e-12
