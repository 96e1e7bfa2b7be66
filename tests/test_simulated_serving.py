from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import nanort as nr
from nanort.bench.arrivals import Arrival, arrivals
from nanort.bench.serve import bench_serve
from nanort.clock import VirtualClock, WallClock
from nanort.errors import CapacityError, RequestError
from nanort.graphs import CONFIGS
from nanort.serving.batching import Batch
from nanort.serving.engine import StepRecord
from nanort.serving.sampling import SamplingParams
from nanort.serving.simulated import Simulation

TINY = CONFIGS["tiny"]
H200 = nr.device("h200")


def simulation(cache_tokens: int = 4096, **options: object) -> Simulation:
    return Simulation(TINY, H200, **{"cache_tokens": cache_tokens, "policy": "serial", "max_rows": 64, **options})


def served(simulation: Simulation, count: int, prompt: int = 20, output: int = 100) -> list[tuple[int, ...]]:
    """The tokens of every request, once the engine has nothing left to do, its accounts checked at every step."""
    params = SamplingParams(max_new_tokens=output, ignore_eos=True)
    requests = [simulation.engine.submit([number] * prompt, params) for number in range(count)]
    cache = simulation.engine.cache
    while simulation.engine.busy:
        simulation.engine.step()
        cache.check()
        assert cache.free + cache.used == cache.pages - 1
    assert cache.used == 0
    assert {request.finish for request in requests} == {"length"}
    return [tuple(request.generated) for request in requests]


def test_virtual_time_passes_when_it_is_waited_for() -> None:
    clock = VirtualClock()
    clock.wait(2.0)
    clock.advance(0.5)
    clock.wait(1.0)  # which is past
    assert clock.now() == 2.5


def test_wall_time_passes_by_itself() -> None:
    clock = WallClock()
    before = clock.now()
    clock.wait(before + 1e-3)
    assert clock.now() >= before + 1e-3
    clock.wait(before)


def test_steps_follow_each_other_while_the_host_takes_no_time() -> None:
    records = list[StepRecord]()
    with simulation() as here:
        here.engine.observers.append(records.append)
        served(here, 5)
        assert records[-1].ended == here.engine.clock.now()
    ends = [0.0, *(record.ended for record in records)]
    assert [record.began for record in records] == pytest.approx(ends[:-1])


def test_longer_steps_take_longer() -> None:
    with simulation() as short, simulation(max_rows=4096) as long:
        served(short, 1, prompt=8, output=1)
        served(long, 1, prompt=2000, output=1)
        assert long.engine.clock.now() > short.engine.clock.now() > 0


def test_tokens_do_not_depend_on_what_else_runs() -> None:
    with simulation() as roomy, simulation(cache_tokens=320) as crowded, simulation(max_rows=7) as narrow:
        found = [served(here, 6) for here in (roomy, crowded, narrow)]
    assert found[0] == found[1] == found[2]
    assert all(0 <= token < TINY.vocab for tokens in found[0] for token in tokens)


@pytest.mark.parametrize("preempt", ["recompute", "swap"])
def test_requests_that_make_room_all_end(preempt: str) -> None:
    page = 2 * 2 * 16 * TINY.kv_heads * TINY.head_dim * 2
    with simulation(cache_tokens=320, host_cache=64 * page, preempt=preempt) as here:
        report = bench_serve(here, arrivals("const:20/100", 12))
        assert report.preemptions > 0
        assert (report.requests, report.output_tokens) == (12, 12 * 100)
        here.engine.cache.check()
        assert here.engine.cache.used == 0


def test_pages_that_move_without_rows_take_what_pcie_gives() -> None:
    slow = H200.with_(h2d_bandwidth=1e6, d2h_bandwidth=1e6)
    page = 2 * 2 * 16 * TINY.kv_heads * TINY.head_dim * 2
    with Simulation(TINY, slow, cache_tokens=256) as here:
        assert here.engine.runner.predict(Batch(saves=((1, 0), (2, 1)))) == pytest.approx(2 * page / 1e6)
        assert here.engine.runner.predict(Batch(loads=((0, 1),), saves=((2, 1),))) == pytest.approx(page / 1e6)


def test_equal_simulations_give_equal_reports() -> None:
    found = []
    for _ in range(2):
        with simulation() as here:
            report = bench_serve(here, arrivals("azure", 40, rate=2000.0, scale=1 / 16, most=512))
            found.append(replace(report, planning_seconds=0.0))
    assert found[0] == found[1]


def test_steps_take_what_their_plans_say(tmp_path: Path) -> None:
    records = list[StepRecord]()
    with simulation(trace=tmp_path) as here:
        here.engine.observers.append(records.append)
        served(here, 1)
    for record in records:
        assert record.result is not None
        assert record.result.timeline is not None
        assert record.result.timeline.makespan == pytest.approx(record.result.seconds)
    assert len(list(tmp_path.glob("step-*.json"))) == len(records)


def test_the_cache_takes_what_the_weights_leave_of_the_memory() -> None:
    config = CONFIGS["llama-3-8b"]
    with Simulation(config, H200) as all_of_it, Simulation(config, H200, memory=40 << 30) as some:
        assert 500_000 < all_of_it.engine.cache.pages * 16 < 1_000_000
        assert 100_000 < some.engine.cache.pages * 16 < 200_000
    with pytest.raises(CapacityError, match="memory="):
        Simulation(config, H200, memory=1 << 30)


def test_chunks_beside_decode_rows_count_in_part() -> None:
    with simulation(slo_tpot=1e-6, max_rows=256) as here:
        coming = [Arrival(0.0, 20, 60), Arrival(1e-3, 200, 4)]
        report = bench_serve(here, coming)
    assert report.output_tokens == 64
    assert report.rows == pytest.approx(20 + 200 + 60 + 4, rel=0.1)


@pytest.mark.parametrize("options", [{"page_size": 0}, {"max_rows": 0}, {"seats": 0}, {"cache_tokens": 0}])
def test_sizes_that_cannot_be_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(RequestError, match="at least 1"):
        Simulation(TINY, H200, **options)
