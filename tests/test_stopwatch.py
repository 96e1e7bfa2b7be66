from __future__ import annotations

from collections.abc import Iterator
from itertools import count, repeat
from types import TracebackType
from typing import Any

import pytest
import torch

import nanort as nr
from fake_driver import FakeDriver
from nanort.errors import CostError, ExecutionError, InputShapeError, MissingInputError, UnknownInputError
from nanort.runtime import stopwatch
from nanort.runtime.partitions import partitions
from nanort.scheduling.schedule import Schedule
from nanort.timeline.events import Timeline
from random_dags import WORK

CORES = nr.device("cpu").with_(sms=2, hbm_saturation_sms=(2, 2))


@nr.op(demand=WORK, writes=("total",))
def count_up(total: torch.Tensor) -> None:
    total += 1


def layer(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return x @ weight.float() + bias


def pair(device: nr.Device = CORES) -> list[Schedule]:
    """A plan in two pieces and the serial one of a graph with every kind of tensor; a run counts itself."""
    graph = nr.Graph("pair")
    x = graph.input("x", (8, 4), torch.float32, batch=0)
    weight, bias = graph.constant("weight", (4, 4), torch.bfloat16), graph.constant("bias", (4,), torch.float32)
    count_up(graph.state("total", (2,), torch.float64))
    graph.output(y=graph.call(layer, x, weight, bias, demand=WORK, axes="rows"))
    plan = nr.co_schedule(graph, device, nano_batches=2, policy="list", guard=False)
    serial = nr.co_schedule(graph, device, policy="serial")
    assert plan.mechanism != serial.mechanism
    return [plan, serial]


class Scripted:
    """In place of Executor: every run takes the seconds that come next; what is done is noted.

    Args:
        schedule: what it would run; the clock and the log are found by its mechanism.
    """

    seconds: dict[str, Iterator[float]]
    log: list[tuple[str, str]]
    bound: list[dict[str, Any]]

    def __init__(self, schedule: Schedule, **bound: Any) -> None:
        self.name = schedule.mechanism
        self.bound.append(bound)
        self._note("open")

    def __call__(self, **inputs: torch.Tensor) -> None:
        self._note("run")
        makespan = next(self.seconds[self.name])
        self.timeline = Timeline([], [], [], kind="measured", device="cpu")
        self.timeline.makespan = makespan

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._note("close")

    def _note(self, what: str) -> None:
        self.log.append((what, self.name))


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> type[Scripted]:
    Scripted.seconds, Scripted.log, Scripted.bound = {}, [], []
    monkeypatch.setattr(stopwatch, "Executor", Scripted)
    return Scripted


def test_schedules_run_in_turn_and_back_while_all_are_open(scripted: type[Scripted]) -> None:
    schedules = pair()
    plan, serial = (schedule.mechanism for schedule in schedules)
    scripted.seconds = {plan: (0.001 * k for k in count(1)), serial: (0.002 * k for k in count(1))}
    samples = nr.Stopwatch(repeats=3)(schedules)
    assert samples == [[0.002, 0.003, 0.004], [0.004, 0.006, 0.008]], "the first run is not timed"
    assert scripted.log == [
        *[("open", plan), ("open", serial)],
        *[("run", plan), ("run", serial), ("run", serial), ("run", plan)] * 2,
        *[("close", serial), ("close", plan)],
    ]


def test_runs_end_when_the_time_is_spent(scripted: type[Scripted]) -> None:
    schedules = pair()
    scripted.seconds = {schedule.mechanism: repeat(0.3) for schedule in schedules}
    assert nr.Stopwatch(budget=2.0)(schedules) == [[0.3] * 3] * 2, "2.4 seconds with the first round"
    assert nr.Stopwatch(budget=0.5)(schedules) == [[0.3]] * 2, "the first round took it all, and counts"


def test_what_fails_leaves_no_executor_open(scripted: type[Scripted]) -> None:
    def failing() -> Iterator[float]:
        yield 0.1
        raise ExecutionError("node layer failed", node="layer")

    schedules = pair()
    plan, serial = (schedule.mechanism for schedule in schedules)
    scripted.seconds = {plan: repeat(0.1), serial: failing()}
    with pytest.raises(ExecutionError, match="node layer failed"):
        nr.Stopwatch()(schedules)
    assert scripted.log[-3:] == [("run", serial), ("close", serial), ("close", plan)]


def test_what_is_not_given_is_random_by_the_seed_and_shared(scripted: type[Scripted]) -> None:
    schedules, weight = pair(), torch.ones(4, 4, dtype=torch.bfloat16)
    scripted.seconds = {schedule.mechanism: repeat(1.0) for schedule in schedules}
    for seed in (0, 0, 1):
        nr.Stopwatch(constants={"weight": weight}, seed=seed)(schedules)
    first, beside, again, _, other, _ = scripted.bound
    assert first["constants"]["weight"] is weight
    bias, total = first["constants"]["bias"], first["states"]["total"]
    assert (bias.dtype, bias.shape, total.dtype, total.shape) == (torch.float32, (4,), torch.float64, (2,))
    assert bias.count_nonzero() == 4
    assert bias is beside["constants"]["bias"]
    assert total is beside["states"]["total"]
    assert torch.equal(bias, again["constants"]["bias"])
    assert not torch.equal(bias, other["constants"]["bias"])


def test_schedules_are_timed_on_the_cpu() -> None:
    schedules, total = pair(), torch.zeros(2, dtype=torch.float64)
    samples = nr.Stopwatch(states={"total": total}, repeats=4)(schedules)
    assert [len(sample) for sample in samples] == [4, 4]
    assert all(seconds > 0 for sample in samples for seconds in sample)
    assert total.tolist() == [10.0, 10.0], "two schedules, five rounds"


@pytest.mark.parametrize(("capture", "rounds", "replays"), [(False, 7, 0), (True, 9, 16)])
def test_schedules_are_timed_on_a_gpu(
    capture: bool, rounds: int, replays: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first run of each is not timed, nor are those of the two graphs that are captured then."""
    driver = FakeDriver(seed=1)
    driver.cost = lambda stream, call: 0.001
    monkeypatch.setattr("nanort.driver.current", lambda: driver)
    total = torch.zeros(2, dtype=torch.float64)
    samples = nr.Stopwatch(states={"total": total}, capture=capture, repeats=6)(pair(nr.device("h200")))
    assert samples == [[pytest.approx(0.002)] * 6] * 2
    assert total.tolist() == [2 * rounds] * 2
    assert [call[0] for call in driver.calls].count("launch_graph") == replays
    partitions(driver).close()
    assert not any(driver.live.values())


def test_the_simulator_can_be_asked_as_well() -> None:
    schedules = pair()
    samples = nr.Stopwatch(backend="sim", repeats=2)(schedules)
    assert samples == [[pytest.approx(schedule.makespan)] * 2 for schedule in schedules]


def test_times_of_a_plan_for_another_device_are_refused() -> None:
    with pytest.raises(CostError, match=r"a plan for h200 would run on cpu, .* or plan for nr.device\('cpu'\)"):
        nr.Stopwatch(backend="cpu")(pair(nr.device("h200")))


def test_what_does_not_fit_is_refused() -> None:
    schedules = pair()
    with pytest.raises(InputShapeError, match="bias"):
        nr.Stopwatch(constants={"bias": torch.zeros(3)})(schedules)
    with pytest.raises(UnknownInputError, match="has no input \\['y'\\]"):
        nr.Stopwatch(inputs={"y": torch.zeros(3)})(schedules)
    with pytest.raises(CostError, match="at least one run"):
        nr.Stopwatch(repeats=0)
    with pytest.raises(CostError, match="more than zero seconds"):
        nr.Stopwatch(budget=0.0)


def test_integers_have_to_be_given() -> None:
    graph = nr.Graph("lookup")
    table, rows = graph.constant("table", (8, 2), torch.float32), graph.input("rows", (4,), torch.int64)
    graph.output(y=graph.call(lambda table, rows: table[rows], table, rows, demand=WORK, name="lookup"))
    schedule = nr.co_schedule(graph, CORES, policy="serial")
    with pytest.raises(MissingInputError, match=r"'lookup' asks for integers, .*: give them, .*inputs={'rows': \.\.\."):
        nr.Stopwatch()([schedule])
    assert len(nr.Stopwatch(inputs={"rows": torch.zeros(4, dtype=torch.int64)}, repeats=2)([schedule])[0]) == 2


def test_a_cut_plan_is_given_rows_as_its_layout_packs_them() -> None:
    seen: list[list[int]] = []

    def look(rows: torch.Tensor) -> torch.Tensor:
        if not rows.is_meta:
            seen.append(rows.tolist())
        return rows + 0

    graph = nr.Graph("mixed", layout=nr.Layout(decode=4, prefill=(nr.Segment(4),), kv_tokens=400))
    decode, prefill = graph.split(graph.input("positions", (8,), torch.int64, batch=0))
    graph.output(
        y=graph.join(
            nr.op(demand=WORK, name="look", axes="rows")(look)(decode),
            graph.call(lambda rows: rows + 0, prefill, demand=WORK, axes="rows", name="other"),
        )
    )
    plan = nr.co_schedule(graph, CORES, nano_batches=2, policy="list", guard=False)
    serial = nr.co_schedule(graph, CORES, policy="serial", nano_batches=1)
    seen.clear()
    nr.Stopwatch(inputs={"positions": torch.tensor([100, 101, 102, 103, 0, 1, 2, 3])}, repeats=1)([plan, serial])
    assert sorted(seen) == [[100, 101]] * 2 + [[100, 101, 102, 103]] * 2 + [[102, 103]] * 2
