from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import pytest
import torch

import nanort as nr
import random_dags
from nanort import partition
from nanort.costs.profile import Pair
from nanort.errors import (
    BackendError,
    InputDeviceError,
    InputDtypeError,
    InputError,
    InputShapeError,
    MissingInputError,
    UnknownInputError,
)
from random_dags import WORK

STREAMS = partition.streams(partition.split(nr.device("h200"), [64, 64]))


@nr.op(demand=WORK, writes=("total",))
def accumulate(total: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> None:
    total += weight * x


def running_total(lane: tuple[int, int] = (0, 1)) -> nr.Schedule:
    """total += weight * x, and a copy of it, on two streams."""
    graph = nr.Graph("total")
    x = graph.input("x", (2, 3), torch.float32)
    weight = graph.constant("weight", (2, 3), torch.float32)
    total = graph.state("total", (2, 3), torch.float32)
    accumulate(total, x, weight)
    graph.output(total=graph.call(torch.clone, total, demand=WORK))
    return random_dags.schedule(graph, STREAMS, lane)


def tensors() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Constants, states and inputs of :func:`running_total`."""
    return {"weight": torch.full((2, 3), 2.0)}, {"total": torch.zeros(2, 3)}, {"x": torch.ones(2, 3)}


@pytest.mark.parametrize("backend", ["auto", "cpu"])
@pytest.mark.parametrize("lane", [(0, 0), (0, 1)])
def test_states_go_on_from_run_to_run(backend: str, lane: tuple[int, int]) -> None:
    constants, states, inputs = tensors()
    with nr.Executor(running_total(lane), constants=constants, states=states, backend=backend) as run:
        seen = [run(**inputs)["total"][0, 0].item() for _ in range(3)]
    assert seen == [2.0, 4.0, 6.0]
    assert torch.equal(states["total"], torch.full((2, 3), 6.0))


def test_executors_of_one_schedule_share_nothing() -> None:
    schedule = running_total()
    first, second = tensors(), tensors()
    with (
        nr.Executor(schedule, constants=first[0], states=first[1]) as one,
        nr.Executor(schedule, constants=second[0], states=second[1]) as other,
    ):
        one(**first[2])
        other(**second[2])
        one(**first[2])
    assert (first[1]["total"][0, 0], second[1]["total"][0, 0]) == (4.0, 2.0)


def test_program_runs_as_its_schedule_does() -> None:
    constants, states, inputs = tensors()
    program = nr.lower(running_total())
    with nr.Executor(program, constants=constants, states=states) as run:
        assert run.program is program
        assert run(**inputs)["total"][0, 0] == 2.0


def test_constants_and_inputs_may_lie_anyhow() -> None:
    constants = {"weight": torch.tensor([[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]).t()}
    inputs = {"x": torch.arange(12.0).view(2, 6)[:, ::2]}
    with nr.Executor(running_total(), constants=constants, states={"total": torch.zeros(2, 3)}) as run:
        assert run(**inputs)["total"].tolist() == [[0.0, 4.0, 12.0], [24.0, 40.0, 60.0]]


def test_weights_of_a_module_need_no_detaching() -> None:
    """No gradients are kept, whatever the tensors ask for."""
    graph = nr.Graph("module")
    x = graph.input("x", (4, 3), torch.float32, batch=0)
    weight = graph.constant("weight", (3, 3), torch.float32)
    parts = [graph.call(torch.matmul, x, weight, demand=WORK, axes="rows") for _ in range(2)]
    graph.output(y=graph.call(torch.clone, graph.join(*parts), demand=WORK))
    given, parameter = torch.randn(4, 3, requires_grad=True), torch.nn.Linear(3, 3).weight
    expected = graph.eager(x=given, weight=parameter)["y"]
    with nr.Executor(random_dags.schedule(graph, STREAMS, [0, 1, 0]), constants={"weight": parameter}) as run:
        found = run(x=given)["y"]
    assert torch.equal(found, expected)
    assert not found.requires_grad
    assert not expected.requires_grad


# What is refused, before anything is held or done.


def changed(given: dict[str, torch.Tensor], change: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` with other tensors; None takes one out."""
    return {name: tensor for name, tensor in (given | dict(change)).items() if tensor is not None}


WRONG = [
    (None, MissingInputError, "was not given its {kind} ['{name}']; given were []"),
    (torch.zeros(3, 2), InputShapeError, "{kind} {name}: float32[2, 3] was given a tensor of shape [3, 2]"),
    (torch.zeros(2, 3).double(), InputDtypeError, "{kind} {name}: float32[2, 3] was given torch.float64: convert it"),
    ([[1.0]], InputDtypeError, "{kind} {name}: float32[2, 3] was given a list: give a torch.Tensor"),
    (
        torch.zeros(2, 3, device="meta"),
        InputDeviceError,
        "{kind} {name}: float32[2, 3] must be on cpu, its tensor is on meta",
    ),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG, ids=[error.__name__ for _, error, _ in WRONG])
@pytest.mark.parametrize(("kind", "name"), [("constant", "weight"), ("state", "total")])
def test_wrong_tensors_are_refused_when_they_are_bound(
    kind: str, name: str, wrong: Any, error: type[InputError], message: str
) -> None:
    constants, states, _ = tensors()
    given = {"constants": constants, "states": states}
    given[f"{kind}s"] = changed(given[f"{kind}s"], {name: wrong})
    threads = threading.enumerate()
    with pytest.raises(error) as caught:
        nr.Executor(running_total(), **given)  # wrong on purpose
    assert message.format(kind=kind, name=name) in str(caught.value)
    assert threading.enumerate() == threads


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG, ids=[error.__name__ for _, error, _ in WRONG])
def test_wrong_inputs_are_refused_and_change_nothing(wrong: Any, error: type[InputError], message: str) -> None:
    constants, states, inputs = tensors()
    with nr.Executor(running_total(), constants=constants, states=states) as run:
        run(**inputs)
        before = run.timeline
        with pytest.raises(error) as caught:
            run(**changed(inputs, {"x": wrong}))
        assert message.format(kind="input", name="x") in str(caught.value)
        assert states["total"][0, 0] == 2.0
        assert np.array_equal(run.timeline.start, before.start)
        assert run(**inputs)["total"][0, 0] == 4.0


def test_unknown_names_are_refused() -> None:
    constants, states, inputs = tensors()
    schedule = running_total()
    with pytest.raises(UnknownInputError, match=r"has no constant \['bias'\]: it has \['weight'\]"):
        nr.Executor(schedule, constants=constants | {"bias": torch.zeros(1)}, states=states)
    with pytest.raises(UnknownInputError, match=r"has no state \['weight'\]: it has \['total'\]"):
        nr.Executor(schedule, constants=constants, states=states | constants)
    with nr.Executor(schedule, constants=constants, states=states) as run:
        with pytest.raises(UnknownInputError, match=r"has no input \['y'\]: it has \['x'\]"):
            run(**inputs, y=torch.zeros(2, 3))
        assert states["total"][0, 0] == 0.0


def test_state_that_is_not_contiguous_is_refused() -> None:
    """Operators change it in place: a copy would leave the caller's as it was."""
    constants, _, _ = tensors()
    threads = threading.enumerate()
    with pytest.raises(InputShapeError, match=r"state total: float32\[2, 3\] must be contiguous"):
        nr.Executor(running_total(), constants=constants, states={"total": torch.zeros(3, 2).t()})
    assert threading.enumerate() == threads


def test_unknown_backend_is_refused() -> None:
    constants, states, _ = tensors()
    with pytest.raises(BackendError, match=r"there is no backend 'tpu': give one of auto, cpu"):
        nr.Executor(running_total(), constants=constants, states=states, backend="tpu")


# Closing.


@pytest.mark.parametrize("backend", ["cpu", "sim"])
def test_closed_executor_does_not_run(backend: str) -> None:
    constants, states, inputs = tensors()
    threads = threading.enumerate()
    run = nr.Executor(running_total(), constants=constants, states=states, backend=backend)
    run(**inputs)
    assert len(threading.enumerate()) == len(threads) + (2 if backend == "cpu" else 0)
    for _ in range(2):
        run.close()
        assert threading.enumerate() == threads
        with pytest.raises(BackendError, match="this executor is closed: make a new one"):
            run(**inputs)
    assert len(run.timeline) == 2  # what happened can still be read


def test_leaving_the_block_closes_whatever_happened() -> None:
    constants, states, _ = tensors()
    threads = threading.enumerate()
    with pytest.raises(MissingInputError), nr.Executor(running_total(), constants=constants, states=states) as run:
        run()
    assert threading.enumerate() == threads
    with pytest.raises(BackendError):
        run()


# The simulated backend.


@pytest.mark.parametrize("seed", range(10))
def test_simulated_run_needs_no_tensors_and_is_the_same_every_time(seed: int) -> None:
    rng = random.Random(seed)
    graph = random_dags.cut(random_dags.synthetic(seed)[0], rng)
    schedule = random_dags.placed(graph, rng)
    with nr.Executor(schedule, backend="sim") as run:
        before = run.timeline
        assert run() == {}
        timelines = [before, run.timeline]
    timelines.append(nr.Executor(schedule, backend="sim").timeline)
    first = timelines[0]
    assert (first.kind, first.device, first.foreign) == ("simulated", "h200", False)
    assert first.activities == schedule.timeline().activities
    for timeline in timelines:
        assert timeline.start.tobytes() == first.start.tobytes()
        assert timeline.end.tobytes() == first.end.tobytes()
    last: dict[str, float] = {}
    for event in first:
        assert event.start >= last.get(event.activity.stream, 0.0)
        last[event.activity.stream] = event.end
        assert all(first.end[on] <= event.start + 1e-12 for on, _ in event.activity.waits)


def pairs(graph: nr.Graph) -> nr.Profile:
    """A profile in which any two operators of ``graph`` were measured side by side."""
    names = sorted({node.op.name for node in graph.nodes} | {"copy"})
    slowdowns = [Pair(a, b, 1.1, 1.2) for a, b in combinations_with_replacement(names, 2)]
    return nr.Profile("h200", 132, "a machine", [], slowdowns)


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_simulated_run_is_what_was_planned(seed: int, measured: bool) -> None:
    graph, _ = (random_dags.ragged if seed % 2 else random_dags.synthetic)(seed)
    profile = pairs(graph) if measured else None
    schedule = nr.co_schedule(graph, nr.device("h200"), effort=64, profile=profile)
    plan = schedule.timeline()
    with nr.Executor(schedule, backend="sim") as run:
        assert np.allclose(run.timeline.start, plan.start, rtol=1e-9, atol=1e-9 * plan.makespan)
        assert np.allclose(run.timeline.end, plan.end, rtol=1e-9, atol=1e-9 * plan.makespan)


@pytest.mark.parametrize("policy", ["serial", "list", "auto"])
@pytest.mark.parametrize("make", [random_dags.ragged, random_dags.synthetic])
def test_planned_schedules_run_bit_for_bit_as_eager(make: Any, policy: str) -> None:
    graph, given = make(5)
    schedule = nr.co_schedule(graph, nr.device("h200"), policy=policy, effort=64)
    reference, packed = (random_dags.packed(schedule.graph, given) for _ in range(2))
    by_kind: dict[str, dict[str, torch.Tensor]] = {"input": {}, "constant": {}, "state": {}}
    for root in schedule.graph.roots:
        if root.kind in by_kind:
            by_kind[root.kind][root.name] = packed[root.name]
    expected = schedule.graph.eager(**reference)
    with nr.Executor(schedule, constants=by_kind["constant"], states=by_kind["state"]) as run:
        found = run(**by_kind["input"])
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(torch.equal(packed[name], reference[name]) for name in packed)
