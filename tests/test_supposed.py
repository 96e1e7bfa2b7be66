"""What is supposed of kernels that share SMs, and what plans make of it: only a measurement may rely on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

import nanort as nr
from nanort import graphs
from nanort.costs import supposed
from nanort.costs.footprint import Footprint
from nanort.costs.profile import Measurement, Pair, Profile
from nanort.costs.supposed import supposed_pairs
from nanort.scheduling.schedule import Schedule

H200 = nr.device("h200")
SMALL, LARGE = Footprint(128, 64 << 10, 128), Footprint(168, 200 << 10, 256)


def graph() -> nr.Graph:
    """Two pieces, each of a product that feeds an attention, as in a layer."""
    made = nr.Graph("layers")
    x = made.input("x", (4096, 8), torch.bfloat16, batch=0)
    for _ in range(8):
        x = product(x)
        x = attention(x)
    made.output(x=x)
    return made


@nr.op(
    demand=lambda x, out: nr.Demand(flops=1e8 * len(x), hbm_bytes=1e3 * len(x)),
    axes="rows",
    kernels={"cublas": "nowhere:a", "coresident": "nowhere:b"},
)
def product(x: torch.Tensor) -> torch.Tensor:
    return x + 1


@nr.op(
    demand=lambda x, out: nr.Demand(flops=1e4 * len(x), hbm_bytes=5e5 * len(x)),
    axes="rows",
    kernels={"triton": "nowhere:c"},
)
def attention(x: torch.Tensor) -> torch.Tensor:
    return x + 1


@pytest.fixture
def occupy(monkeypatch: pytest.MonkeyPatch) -> Callable[[Footprint, Footprint], None]:
    """Says what the two kernels occupy, as though compiled for Hopper."""

    def say(product: Footprint, attention: Footprint) -> None:
        told = {("product", "coresident", 90): product, ("attention", "triton", 90): attention}
        monkeypatch.setattr(supposed, "footprint", lambda *key: told.get(key))

    return say


def test_kernels_that_fit_on_one_sm_are_supposed_to_overlap(occupy: Callable[[Footprint, Footprint], None]) -> None:
    occupy(SMALL, SMALL)
    found = supposed_pairs(graph(), H200)
    assert found is not None
    assert found.pairs == (Pair("product", "attention", 1.15, 1.0),)
    assert found.measurements == ()
    assert str(found) == "supposed, not measured, 0 measurements, 1 pair"


def test_nothing_is_supposed_where_they_do_not_fit_or_nobody_knows(
    occupy: Callable[[Footprint, Footprint], None],
) -> None:
    occupy(LARGE, SMALL)
    assert supposed_pairs(graph(), H200) is None
    occupy(SMALL, SMALL)
    assert supposed_pairs(graph(), nr.device("a100-80g")) is None, "compiled for Hopper alone"
    assert supposed_pairs(graph(), nr.device("cpu")) is None


def test_two_that_the_same_unit_binds_gain_nothing(occupy: Callable[[Footprint, Footprint], None]) -> None:
    occupy(SMALL, SMALL)
    slow = H200.with_(hbm_bandwidth=1e9)  # now memory binds both
    assert supposed_pairs(graph(), slow) is None


def test_measured_seconds_are_kept_and_measured_pairs_are_better(
    occupy: Callable[[Footprint, Footprint], None],
) -> None:
    occupy(SMALL, SMALL)
    made = graph()
    alone = Profile("h200", 132, "a test", [Measurement.of(made.seal().nodes[0], "cublas", 132, 1e-3)])
    found = supposed_pairs(made, H200, alone)
    assert found is not None
    assert found.measurements == alone.measurements
    assert supposed_pairs(made, H200, alone.with_pairs([Pair("product", "attention", 1.9, 1.9)])) is None


def test_a_plan_does_not_rely_on_it_but_a_measurement_tries_it(
    occupy: Callable[[Footprint, Footprint], None],
) -> None:
    """On a device where kernels do overlap, the co-resident plan is found; on one where they do not, it is not kept."""
    occupy(SMALL, SMALL)
    plain = nr.co_schedule(graph(), H200)
    assert not plain.mechanism.startswith("co-resident")
    assert plain.profile is None

    def device(overlaps: bool) -> Callable[[Sequence[Schedule]], list[list[float]]]:
        def measure(asked: Sequence[Schedule]) -> list[list[float]]:
            slow = [1.0 if s.profile is None or overlaps else 2.0 for s in asked]
            return [[s.makespan * times] * 6 for s, times in zip(asked, slow, strict=True)]

        return measure

    kept = nr.co_schedule(graph(), H200, measure=device(overlaps=True))
    assert kept.mechanism.startswith("co-resident")
    assert kept.makespan < plain.makespan
    assert {a.kernel for a in kept.assignments} == {"coresident", "triton"}, "kernels that leave room for each other"
    assert "supposed, not measured" in str(kept.explain())
    kept.check()
    other = nr.co_schedule(graph(), H200, measure=device(overlaps=False))
    assert (other.mechanism, other.makespan) == (plain.mechanism, plain.makespan)
    assert {a.kernel for a in other.assignments} == {"cublas", "triton"}


def test_it_is_tried_where_nothing_else_was_predicted_to_gain() -> None:
    config = replace(graphs.CONFIGS["llama-3-8b"], layers=2)
    step, asked = graphs.decoder_step(config, decode=256, context=1280, prefill=2048), list[Schedule]()

    def measure(schedules: Sequence[Schedule]) -> list[list[float]]:
        asked.extend(schedules)
        return [[2.0 if schedule.mechanism == "serial" else 1.0] * 7 for schedule in schedules]

    assert nr.co_schedule(step, H200, policy="list").mechanism == "serial"
    kept = nr.co_schedule(step, H200, policy="list", measure=measure)
    assert [schedule.mechanism for schedule in asked] == ["co-resident", "serial"]
    assert kept.mechanism == "co-resident"
    assert kept.why[0].startswith("measured, 7 interleaved runs each")


def test_pairs_that_are_supposed_are_called_so(occupy: Callable[[Footprint, Footprint], None]) -> None:
    occupy(SMALL, SMALL)
    found = supposed_pairs(graph(), H200, Profile("h200", 132, "NVIDIA H200", (), about={"by": "a test"}))
    assert str(found).endswith("by a test; slowdowns supposed, not measured")


def test_a_decoder_step_is_tried_with_the_kernels_that_are_shipped() -> None:
    step = graphs.decoder_step(graphs.CONFIGS["llama-3-8b"], decode=384, context=1024, prefill=640)
    found = supposed_pairs(step, H200)
    assert found is not None
    assert ("linear", "decode_attention") in found.slowdowns
