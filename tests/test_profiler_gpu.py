from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import nanort as nr
from fake_driver import FakeDriver
from nanort import cli
from nanort.costs.profile import Profile
from nanort.costs.roofline import Costs
from nanort.costs.samples import Place, Sample
from nanort.costs.store import Store
from nanort.errors import (
    BackendError,
    CostError,
    DeviceMemoryError,
    DriverError,
    ExecutionError,
    InputShapeError,
    MissingInputError,
    RequestError,
)
from nanort.runtime.meter import GpuMeter
from nanort.runtime.operands import NOISE, Operands
from nanort.runtime.partitions import partitions
from nanort.runtime.profiler import CpuMeter
from nanort.runtime.report import default_store, measure
from nanort.runtime.sweeps import Part, Point, points, seconds_of, sweep

GUESS = nr.device("h200").with_(l2_bytes=3000)
TRUE = GUESS.with_(
    hbm_bandwidth=3.9e12, hbm_saturation_sms=(56, 56), launch_seconds=2.5e-6, flops={**GUESS.flops, "float32": 3.3e14}
)
"""What the fake GPU does, which the profiler must find out."""
PRODUCT = nr.Demand(flops=3.3e11, hbm_bytes=1e7)  # 1 ms on all SMs
STREAMED = nr.Demand(flops=1e6, hbm_bytes=1.95e9)  # 0.5 ms
SMALL = nr.Demand(flops=1e6, hbm_bytes=3.9e7)  # 12.5 us
TINY = nr.Demand(flops=10, hbm_bytes=1e6)  # 2.8 us


def product(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def streamed(x: torch.Tensor) -> torch.Tensor:
    return x + 1


def small(x: torch.Tensor) -> torch.Tensor:
    return x - 1


def tiny(x: torch.Tensor) -> torch.Tensor:
    return -x


def failing(x: torch.Tensor) -> torch.Tensor:
    if x.device.type != "meta":
        raise RuntimeError("this kernel has a bug")
    return x.clone()


CHAIN = (product, streamed, small, tiny)
DEMANDS = {product: PRODUCT, streamed: STREAMED, small: SMALL, tiny: TINY, failing: TINY}


def graph(*functions: Callable[[torch.Tensor], torch.Tensor]) -> nr.Graph:
    g = nr.Graph("chain")
    x = g.input("x", (16, 16), torch.float32)
    for function in functions:
        x = g.call(function, x, demand=DEMANDS[function])
    g.output(y=x)
    return g


def called(call: Callable[[], object]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The reference that a launch calls."""
    assert isinstance(call, partial)
    reference = call.args[0]
    return reference.func  # type: ignore[no-any-return]  # of a partial


class Gpu:
    """A fake GPU on which calls take what TRUE's model says; streamed ones beside others take 1.5 times that."""

    def __init__(self, **options: object) -> None:
        self.driver = FakeDriver(**options)  # type: ignore[arg-type]  # a test names what it changes
        self.driver.cost = self.cost
        self.costs = Costs(TRUE)
        self.nodes = {function: graph(function).seal().nodes[0] for function in DEMANDS}

    def cost(self, stream: int, call: Callable[[], object]) -> float:
        function = called(call)
        ordered = next(entry[0] for entry in reversed(self.driver.calls) if entry[0] in ("wait", "synchronize"))
        slower = 1.5 if function is streamed and ordered == "wait" else 1.0  # alone, each time is waited for
        return slower * self.costs.solo(self.nodes[function], len(self.driver.sms(stream))).seconds


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    made = Gpu()
    yield made
    partitions(made.driver).close()
    assert not any(made.driver.live.values())


def part(function: Callable[[torch.Tensor], torch.Tensor], sms: int, device: nr.Device = GUESS) -> Part:
    operands = Operands(graph(function), device, {})
    return Part(operands, operands.launches[0], "reference", sms)


def test_a_call_is_measured_on_a_partition_of_each_size(gpu: Gpu) -> None:
    meter = GpuMeter(gpu.driver, GUESS, repeats=3)
    assert meter.counts == (*range(8, 129, 8), 132)
    for function in CHAIN:
        for sms in (8, 64, 128, 132):
            one = part(function, sms)
            (sample,) = meter((one,))
            assert sample.seconds == pytest.approx(gpu.costs.solo(one.node, sms).seconds, rel=1e-6)
            assert (sample.call, sample.runs, sample.beside) == (one.call, 3, None)
            assert sample.clocks == (("memory", 3201.0), ("sm", 1980.0))
    on = {len(gpu.driver.sms(entry[1])) for entry in gpu.driver.calls if entry[0] == "launch"}
    assert on == {8, 64, 128, 132}


@pytest.mark.parametrize(("function", "captured"), [(product, False), (streamed, False), (small, True), (tiny, True)])
def test_only_short_calls_are_captured_many_in_a_graph_that_is_replayed(
    function: Callable[[torch.Tensor], torch.Tensor], captured: bool, gpu: Gpu
) -> None:
    GpuMeter(gpu.driver, GUESS, repeats=4)((part(function, 132),))
    names = [entry[0] for entry in gpu.driver.calls]
    assert names.count("begin_capture") == captured
    assert names.count("launch_graph") == 5 * captured
    if captured:
        inside = names[names.index("begin_capture") : names.index("end_capture")].count("launch")
        assert inside * gpu.costs.solo(part(function, 132).node, 132).seconds >= 1e-3
        assert "launch" not in names[names.index("end_capture") :]


def test_launches_take_turns_with_copies_that_exceed_l2_and_hold_random_numbers(gpu: Gpu) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def cost(stream: int, call: Callable[[], object]) -> float:
        reference, out = call.args  # type: ignore[attr-defined]  # a partial
        seen.append((reference.args[0], out))
        return gpu.cost(stream, call)

    gpu.driver.cost = cost
    GpuMeter(gpu.driver, GUESS, repeats=2)((part(product, 132),))
    turns = len({x.data_ptr() for x, _ in seen})
    assert (turns - 1) * 2 * 16 * 16 * 4 >= GUESS.l2_bytes
    for k in range(turns):
        assert seen[k][0].data_ptr() == seen[k + turns][0].data_ptr() != seen[(k + 1) % len(seen)][0].data_ptr()
    for x, out in seen:
        assert 0.8 < x.std() < 1.2
        assert torch.equal(out, product(x))


def test_memory_and_handles_are_given_back(gpu: Gpu) -> None:
    meter, free = GpuMeter(gpu.driver, GUESS, repeats=1), gpu.driver.memory
    meter((part(small, 64),))
    meter((part(small, 64), part(tiny, 64)))
    gc.collect()
    assert gpu.driver.memory == free
    assert (gpu.driver.live["event"], gpu.driver.live["graph"]) == (set(), set())
    assert len(gpu.driver.live["stream"]) == 2, "streams are pooled: the first is used again"


def test_side_by_side_each_call_is_measured_while_the_other_runs(gpu: Gpu) -> None:
    meter = GpuMeter(gpu.driver, GUESS, repeats=3)
    for ours, theirs in ((40, 88), (88, 40), (132, 132)):
        one, other = part(product, ours), part(streamed, theirs)
        first, second = meter((one, other))
        assert (first.call, first.beside, second.call, second.beside) == (one.call, other.call, other.call, one.call)
        assert first.seconds == pytest.approx(gpu.costs.solo(one.node, ours).seconds, rel=0.03)
        assert second.seconds == pytest.approx(1.5 * gpu.costs.solo(other.node, theirs).seconds, rel=0.06)


def test_two_parts_run_on_disjoint_sms_or_both_on_all(gpu: Gpu) -> None:
    meter = GpuMeter(gpu.driver, GUESS, repeats=1)
    for sizes, shared in (((40, 88), 0), ((132, 132), 132)):
        before = len(gpu.driver.calls)
        meter((part(product, sizes[0]), part(streamed, sizes[1])))
        used = {entry[1] for entry in gpu.driver.calls[before:] if entry[0] == "launch"}
        one, other = (set(gpu.driver.sms(stream)) for stream in sorted(used))  # type: ignore[arg-type]  # handles
        assert (len(one & other), {len(one), len(other)}) == (shared, set(sizes))


def test_work_that_is_carried_out_late_is_waited_for() -> None:
    """The fake refuses the seconds of events that have not happened, and to destroy a graph that is running."""
    for seed in range(5):
        gpu = Gpu(seed=seed)
        meter = GpuMeter(gpu.driver, GUESS, repeats=2)
        one, other = part(small, 40), part(tiny, 88)
        assert meter((one,))[0].seconds == pytest.approx(gpu.costs.solo(one.node, 40).seconds, rel=1e-6)
        assert len(meter((one, other))) == 2
        partitions(gpu.driver).close()
        assert not any(gpu.driver.live.values())


def test_a_call_that_cannot_be_captured_is_measured_as_it_would_run(gpu: Gpu) -> None:
    gpu.driver.fail_at("end_capture", 1)
    (sample,) = GpuMeter(gpu.driver, GUESS, repeats=2)((part(small, 132),))
    assert sample.seconds == pytest.approx(gpu.costs.solo(part(small, 132).node, 132).seconds, rel=1e-6)
    assert gpu.driver.count("launch_graph") == 0


def test_without_green_contexts_only_the_whole_device_is_measured() -> None:
    gpu = Gpu(green=False)
    meter = GpuMeter(gpu.driver, GUESS, repeats=1)
    asked = points([Operands(graph(*CHAIN), GUESS, {})], meter)
    assert {one.sms for point in asked for one in point} == {132}
    assert [len(meter(point)) for point in asked] == [1, 1, 1, 1, 2, 2]
    partitions(gpu.driver).close()


def test_a_device_that_is_not_the_gpu_is_refused() -> None:
    with pytest.raises(BackendError, match="planned for h200, 132 SMs in groups of 8, but this GPU has 108"):
        GpuMeter(FakeDriver(sms=108, minimum=2, alignment=2), GUESS)


def test_a_launch_that_fails_is_named_and_leaves_nothing_behind(gpu: Gpu) -> None:
    named = r"node failing \(tests/test_profiler_gpu\.py:\d+\) failed: this kernel has a bug"
    with pytest.raises(ExecutionError, match=named):
        GpuMeter(gpu.driver, GUESS)((part(failing, 132),))
    assert (gpu.driver.live["event"], gpu.driver.live["graph"]) == (set(), set())


@pytest.mark.parametrize("error", [None, DeviceMemoryError("no memory is left"), "sticky"])
def test_whichever_call_fails_nothing_is_left_behind(error: Exception | str | None) -> None:
    """Every driver call that measuring a pair makes, one a run, fails; on the same meter the next pair is measured."""
    device, point, ends = GUESS.with_(l2_bytes=1), (part(small, 40), part(streamed, 88)), set()

    def fresh() -> tuple[FakeDriver, GpuMeter]:
        driver = Gpu().driver
        return driver, GpuMeter(driver, device, repeats=1)

    driver, meter = fresh()
    before = driver.count()
    meter(point)
    calls = driver.count() - before
    assert 50 < calls < 400
    for nth in range(1, calls + 1, 1 if error is None else 3):
        driver, meter = fresh()
        failure = DriverError("an illegal address", call="launch", sticky=True) if error == "sticky" else error
        driver.fail_at("", before + nth, failure)  # type: ignore[arg-type]  # no str is left
        named = None
        try:
            assert len(meter(point)) == 2
            ends.add("measured")
        except ExecutionError as raised:
            ends.add(type(raised).__name__)
            named = getattr(raised, "call", None)
        if error is None and named is not None:
            assert named == driver.calls[before + nth - 1][0]
        assert (driver.live["event"], driver.live["graph"]) == (set(), set()), nth
        if error != "sticky":
            assert len(meter(point)) == 2
            assert len(driver.live["stream"]) == 2, "streams that were given back are used again"
        with suppress(DriverError):
            partitions(driver).close()
        assert not any(driver.live.values())
    assert ends & {"DriverError", "DeviceMemoryError"}


class Still:
    """A meter that measures nothing: every call takes what the model says, and a second of the clock."""

    def __init__(self, device: nr.Device = GUESS, *, pairs: bool = True) -> None:
        self.device, self.pairs, self.now = device, pairs, 0.0
        self.place = Place(device.name, device.sms, "a GPU", "1", ())
        self.counts = (8, 64, 128, 132)
        self.seen: list[Point] = []
        self.fail: dict[int, BaseException] = {}

    def __call__(self, point: Point) -> tuple[Sample, ...]:
        self.seen.append(point)
        self.now += 1.0
        if error := self.fail.get(len(self.seen)):
            raise error
        others = (*point[1:], *point[:1]) if len(point) > 1 else (None,)
        return tuple(
            Sample.of(one.call, [1.0], (), other.call if other else None)
            for one, other in zip(point, others, strict=True)
        )


def asked(meter: Still) -> list[Point]:
    return points([Operands(graph(*CHAIN), meter.device, {})], meter)


def test_points_are_ordered_so_that_every_beginning_tells_much() -> None:
    found = [tuple((one.node.op.name, one.sms) for one in point) for point in asked(Still())]
    names = ["product", "streamed", "small", "tiny"]
    alone = [((name, sms),) for sms in (132, 8, 64, 128) for name in names]
    assert found[:16] == alone
    pairs = found[16:]
    assert pairs[:2] == [(("product", 132), ("streamed", 132)), (("product", 132), ("small", 132))]
    assert {(one[1], other[1]) for one, other in pairs} == {(132, 132), (8, 120), (64, 64)}
    assert all(one[0] == "product" and other[0] != "product" for one, other in pairs)
    assert len(asked(Still(pairs=False))) == 16


def test_equal_calls_are_one_point_and_every_kernel_its_own() -> None:
    @nr.op(demand=TINY, kernels={"fast": "nowhere:fast"})
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    g = nr.Graph("g")
    x = g.input("x", (16, 16), torch.float32)
    g.output(y=twice(twice(x)))
    meter = Still(pairs=False)
    benches = [Operands(g, GUESS, {}), Operands(graph(tiny), GUESS, {}), Operands(graph(tiny, tiny), GUESS, {})]
    found = [(point[0].node.op.name, point[0].kernel) for point in points(benches, meter) if point[0].sms == 132]
    assert sorted(found) == [("tiny", "reference"), ("twice", "fast"), ("twice", "reference")]


def test_calls_of_few_tiles_are_measured_on_the_sms_that_they_use_alone_and_beside_others() -> None:
    g = nr.Graph("g")
    x = g.input("x", (16, 16), torch.float32)
    y = g.call(torch.relu, x, demand=nr.Demand(hbm_bytes=1e9, tiles=5), name="few", example=(x,))
    g.output(z=g.call(torch.neg, y, demand=nr.Demand(flops=1e12), name="busy", example=(x,)))
    meter = Still()
    found = [[(part.node.op.name, part.sms) for part in point] for point in points([Operands(g, GUESS, {})], meter)]
    assert [sms for (name, sms), *beside in found if name == "relu" and not beside] == [5]
    assert [("neg", 132), ("relu", 5)] in found
    assert not [point for point in found if ("relu", 5) in point and ("neg", 64) in point]


def test_spans_are_kept_and_rigid_nodes_and_what_uses_the_host_left_out() -> None:
    g = nr.Graph("g")
    x = g.input("x", (16, 16), torch.float32)
    there = g.input("there", (16, 16), torch.float32, device="host")
    y = g.call(torch.relu, x, demand=nr.Demand(flops=8, sms=(16, 64)))
    z = g.call(torch.neg, y, demand=nr.Demand.rigid(seconds=1e-3, sms=8))
    g.output(z=z, h=g.call(torch.abs, there, demand=nr.Demand(flops=8)))
    found = [(point[0].node.op.name, point[0].sms) for point in points([Operands(g, GUESS, {})], Still())]
    assert found == [("relu", 64)]


def test_what_is_in_the_store_is_not_measured_again(tmp_path: Path) -> None:
    meter = Still()
    with Store(tmp_path / "s", meter.place) as store:
        first = sweep(asked(meter), store, meter, budget=5.5, clock=lambda: meter.now)
        count = len(asked(meter))
        assert (first.measured, first.known, first.left, first.refused) == (6, 0, count - 6, ())
        told: list[tuple[int, int]] = []
        second = sweep(
            asked(meter), store, meter, budget=1e9, clock=lambda: meter.now, progress=lambda *done: told.append(done)
        )
        assert (second.measured, second.known, second.left) == (count - 6, 6, 0)
        assert told == [(at, count) for at in range(count)]
        assert len(meter.seen) == count == len({tuple(one.call for one in point) for point in meter.seen})
        assert sweep(asked(meter), store, meter, budget=1.0).known == count
        assert len(store.samples()) == sum(map(len, asked(meter)))


def test_a_point_that_fails_is_left_out_with_the_reason_and_an_interruption_keeps_the_rest(tmp_path: Path) -> None:
    meter = Still()
    meter.fail = {2: DeviceMemoryError("there is no memory left"), 5: KeyboardInterrupt()}
    with Store(tmp_path / "s", meter.place) as store:
        swept = sweep(asked(meter), store, meter, budget=1e9)
        assert (swept.measured, swept.left) == (3, len(asked(meter)) - 4)
        assert swept.refused == ("streamed on 132: there is no memory left",)
        assert len(store.samples()) == 3


def test_an_interruption_between_two_points_keeps_the_rest_too(tmp_path: Path) -> None:
    def progress(at: int, _: int) -> None:
        if at == 3:
            raise KeyboardInterrupt

    meter = Still()
    with Store(tmp_path / "s", meter.place) as store:
        swept = sweep(asked(meter), store, meter, budget=1e9, progress=progress)
        assert (swept.measured, swept.left) == (3, len(asked(meter)) - 3)
        swept = sweep(asked(meter), store, meter, budget=1e9, progress=lambda at, _: progress(at + 3, 0))
        assert (swept.measured, swept.known, swept.left) == (0, 3, len(asked(meter)) - 3), "what is known is not left"


def test_operands_that_no_memory_is_left_for_are_refused_by_name() -> None:
    cpu, one = nr.device("cpu"), part(tiny, 1, nr.device("cpu"))
    one.operands.tensors = lambda *_: torch.empty(1 << 60)  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(ExecutionError, match=r"node tiny .* failed: "):
        CpuMeter(cpu)((one,))


def test_the_command_does_not_write_the_profile_over_the_store(tmp_path: Path) -> None:
    store = tmp_path / "s"
    with pytest.raises(RequestError, match="is the store itself"):
        CliRunner().invoke(cli.app, [*STEP, f"--store={store}", f"--out={store}"], catch_exceptions=False)


def test_a_device_that_is_lost_ends_the_sweep(tmp_path: Path) -> None:
    meter = Still()
    meter.fail = {3: DriverError("an illegal address", sticky=True)}
    with Store(tmp_path / "s", meter.place) as store:
        with pytest.raises(DriverError, match="an illegal address"):
            sweep(asked(meter), store, meter, budget=1e9)
        assert len(store.samples()) == 2


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_that_is_none_is_refused(budget: float, tmp_path: Path) -> None:
    meter = Still()
    with Store(tmp_path / "s", meter.place) as store, pytest.raises(CostError, match="give more than zero"):
        sweep(asked(meter), store, meter, budget=budget)
    assert meter.seen == []


@pytest.mark.parametrize("text", ["", "0", "0m", "-5m", "5 parsecs", "m", "nan", "inf", "1e999h", "5mm"])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(CostError, match=f"a budget of '{text}': give a time above zero .* such as 90s or 5m"):
        seconds_of(text)


def rows(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return x[index]


def last(index: torch.Tensor) -> torch.Tensor:
    return index - 1


def indexed() -> nr.Graph:
    g = nr.Graph("indexed")
    x, index = g.constant("x", (8, 4), torch.bfloat16), g.input("index", (6,), torch.int64)
    before = g.call(last, index, demand=TINY)
    g.output(y=g.call(rows, x, before[2:], demand=TINY))
    return g


def allocate(nbytes: int) -> torch.Tensor:
    return torch.full((nbytes,), 0xFF, dtype=torch.uint8)


def test_operands_are_random_and_integers_follow_from_the_inputs() -> None:
    index = torch.tensor([3, 1, 8, 7, 2, 1])
    operands = Operands(indexed(), GUESS, {"index": index})
    step = next(step for step in operands.launches if step.name == "rows")
    first, again = operands.tensors(step, allocate), operands.tensors(step, allocate)
    x, before = (first[view.buffer] for view in step.args)
    assert torch.equal(before, index - 1)
    assert x.dtype == torch.bfloat16
    assert len(x.unique()) > 24
    assert all(torch.equal(first[view.buffer], again[view.buffer]) for view in step.args)
    assert all(first[buffer].data_ptr() != again[buffer].data_ptr() for buffer in first)


def test_large_operands_repeat_their_random_numbers() -> None:
    g = nr.Graph("large")
    x = g.input("x", (2 * NOISE + 7,), torch.float16)
    g.output(y=g.call(torch.neg, x, demand=TINY))
    operands = Operands(g, GUESS, {})
    (step,) = operands.launches
    found = operands.tensors(step, allocate)[step.args[0].buffer]
    assert torch.equal(found[:NOISE], found[NOISE : 2 * NOISE])
    assert torch.equal(found[-7:], found[:7])
    assert 0.99 < found[:NOISE].float().std() < 1.01


def test_integers_that_are_not_given_or_of_another_shape_are_refused() -> None:
    without = Operands(indexed(), GUESS, {})
    with pytest.raises(
        MissingInputError, match=r"input 'index' of graph 'indexed' holds torch\.int64, which cannot be"
    ):
        without.tensors(without.launches[1], allocate)
    wrong = Operands(indexed(), GUESS, {"index": torch.zeros(5, dtype=torch.int64)})
    with pytest.raises(InputShapeError, match=r"takes 'index' of shape \[6\], and was given \[5\]"):
        wrong.tensors(wrong.launches[0], allocate)


def test_the_model_is_fitted_to_a_gpu_and_plans_can_use_it(gpu: Gpu, tmp_path: Path) -> None:
    path = tmp_path / "s"
    report = measure([(graph(*CHAIN), {})], GUESS, path, 1e9, driver=gpu.driver)
    fit = report.calibration
    assert fit is not None
    assert fit.error < 0.01
    assert fit.device.hbm_bandwidth == pytest.approx(TRUE.hbm_bandwidth, rel=0.01)
    assert fit.device.hbm_saturation_sms == TRUE.hbm_saturation_sms
    assert fit.device.flops["float32"] == pytest.approx(TRUE.flops["float32"], rel=0.01)
    assert fit.device.launch_seconds == pytest.approx(TRUE.launch_seconds, rel=0.01)
    assert fit.profile.slowdowns["product", "streamed"] == (pytest.approx(1.0, abs=0.03), pytest.approx(1.5, rel=0.06))
    assert list(fit.profile.exchange) == ["streamed"]
    assert len(report.rows) == 4 * 17
    assert all(abs(row.error) < 0.01 for row in report.rows)
    schedule = nr.co_schedule(graph(*CHAIN), fit.device, profile=fit.profile, policy="serial")
    took = sum(gpu.costs.solo(node, 132).seconds for node in graph(*CHAIN).seal().nodes)
    assert schedule.makespan == pytest.approx(took, rel=0.01)
    lines = str(report).splitlines()
    assert lines[0].split() == ["operator", "shapes", "SMs", "median", "spread", "model", "error"]
    assert lines[1].split()[:-1] == ["product", "16x16", "8", "16.5", "ms", "0%", "16.5", "ms"]
    assert lines[-4].startswith("fitted: memory 3900 GB/s from 56 of 132 SMs on, float32 330 TFLOP/s, a launch 2.5 us")
    assert lines[-1] == f"stored in {path}"
    launches = gpu.driver.count("launch")
    again = measure([(graph(*CHAIN), {})], GUESS, path, 1e9, driver=gpu.driver)
    assert (again.swept.measured, again.swept.left, gpu.driver.count("launch")) == (0, 0, launches)
    assert (again.rows, again.profile.identity) == (report.rows, report.profile.identity)


def test_too_little_to_fit_is_said_with_the_table(gpu: Gpu, tmp_path: Path) -> None:
    report = measure([(graph(tiny), {})], GUESS, tmp_path / "s", 1e9, driver=gpu.driver)
    assert (report.calibration, report.device, len(report.rows)) == (None, GUESS, 17)
    assert "not fitted: 17 calls" not in report.why
    assert "not fitted: 14 calls measured on h200 do not tell its figures" in str(report)
    assert report.data["calibration"] is None


def test_refusals_are_told_with_the_table(gpu: Gpu, tmp_path: Path) -> None:
    gpu.driver.fail_at("create_stream", 0)
    report = measure([(graph(tiny), {})], GUESS, tmp_path / "s", 1e9, driver=gpu.driver)
    assert (report.rows, len(report.swept.refused)) == ((), 17)
    assert "not measured: tiny on 132: create_stream failed" in str(report)
    assert "not measured either: 14 more" in str(report)


def test_the_cpu_is_measured_by_the_same_sweep(tmp_path: Path) -> None:
    cpu = nr.device("cpu").with_(sms=2, hbm_saturation_sms=(1, 2))
    report = measure([(indexed(), {"index": torch.tensor([3, 1, 8, 7, 2, 1])})], cpu, tmp_path / "s", 1e9)
    assert [(row.sample.call.operator, row.sample.call.sms) for row in report.rows] == [
        ("last", 1), ("last", 2), ("rows", 1), ("rows", 2),
    ]  # fmt: skip
    assert all(row.sample.seconds > 0 for row in report.rows)
    assert str(report).splitlines()[0].split()[2] == "cores"
    assert torch.get_num_threads() == 1


def test_a_reference_that_fails_on_the_cpu_is_named() -> None:
    cpu = nr.device("cpu")
    with pytest.raises(ExecutionError, match=r"node failing \(tests/test_profiler_gpu\.py:\d+\) failed: this kernel"):
        CpuMeter(cpu)((part(failing, 1, cpu),))


STEP = ("profile", "--model=tiny", "--decode=4", "--context=16", "--prefill=8", "--budget=1m")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call timed once: what it took does not matter here."""
    monkeypatch.setattr("nanort.runtime.profiler.BUDGET", 1e-9)


@pytest.mark.usefixtures("quick")
def test_the_command_measures_stores_and_goes_on(tmp_path: Path) -> None:
    store, out = tmp_path / "store.sqlite", tmp_path / "profile.json"
    options = [*STEP, f"--store={store}", f"--out={out}"]
    text = CliRunner().invoke(cli.app, options, catch_exceptions=False).output
    cores = nr.device("cpu").sms
    head, *lines = text.splitlines()
    assert head.split() == ["operator", "shapes", "cores", "median", "spread", "model", "error"]
    table = lines[: lines.index("")]
    assert {line.split()[0].partition("(")[0] for line in table} >= {"linear", "decode_attention", "prefill_attention"}
    assert f"measured {len(table)} points, 0 were known" in text
    assert f"stored in {store}" in text
    saved = Profile.load(out)
    assert len(saved.measurements) == len(table)
    assert len(table) % cores == 0
    data = json.loads(CliRunner().invoke(cli.app, [*options, "--json"], catch_exceptions=False).output)
    assert (data["measured"], data["known"], data["left"], len(data["rows"])) == (0, len(table), 0, len(table))
    assert Profile.load(out).identity == saved.identity


@pytest.mark.usefixtures("quick")
def test_the_commands_store_is_a_cache_unless_another_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_store() == tmp_path / "nanort" / "measurements.sqlite"
    text = CliRunner().invoke(cli.app, [*STEP, "--nano-batches=1"], catch_exceptions=False).output
    assert f"stored in {default_store()}" in text
    assert default_store().exists()


@pytest.mark.parametrize("budget", ["0", "5 parsecs"])
def test_the_command_refuses_a_budget_that_is_none_before_it_does_anything(budget: str, tmp_path: Path) -> None:
    store = tmp_path / "s"
    with pytest.raises(CostError, match=f"a budget of '{budget}'"):
        CliRunner().invoke(cli.app, [*STEP[:-1], f"--budget={budget}", f"--store={store}"], catch_exceptions=False)
    assert not store.exists()
