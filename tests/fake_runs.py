"""Schedules run on a FakeDriver as if it were this machine's GPU, and what such runs are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
import torch

import nanort as nr
import random_dags
from fake_driver import FakeDriver
from nanort import driver
from nanort.programs.program import Program
from nanort.runtime.partitions import partitions
from nanort.scheduling.schedule import Schedule

Tensors = dict[str, torch.Tensor]


@contextmanager
def gpu(fake: FakeDriver) -> Iterator[FakeDriver]:
    """``fake`` is the machine's GPU; afterwards nothing that was made on it is left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "current", lambda: fake)
        yield fake
    partitions(fake).close()
    assert not any(fake.live.values()), fake.live


def executor(schedule: Schedule | Program, tensors: Mapping[str, torch.Tensor], **options: object) -> nr.Executor:
    """An executor on that GPU with the constants and states among ``tensors``."""
    constants, states = (
        {root.name: tensors[root.name] for root in schedule.graph.roots if root.kind == kind and root.name in tensors}
        for kind in ("constant", "state")
    )
    return nr.Executor(schedule, constants=constants, states=states, **{"backend": "cuda", **options})


def inputs(graph: nr.Graph, tensors: Mapping[str, torch.Tensor], run: int) -> Tensors:
    """The inputs of a run, other ones for each."""
    given, *_ = random_dags.by_kind(graph, tensors)
    return {name: t.flatten().roll(run).view_as(t) if t.is_floating_point() else t for name, t in given.items()}


def compare_with_eager(
    schedule: Schedule, tensors: Tensors, fake: FakeDriver, runs: int = 5, **options: object
) -> None:
    """Runs a schedule with two runs at once under way, states going on from run to run, and asserts eager's bits."""
    graph = schedule.graph
    ours, reference = ({name: tensor.clone() for name, tensor in tensors.items()} for _ in range(2))
    pending: list[tuple[Tensors, Tensors]] = []
    with gpu(fake), executor(schedule, ours, **options) as run:
        for number in range(runs):
            given = inputs(graph, ours, number)
            answers = graph.eager(**{**reference, **{name: tensor.clone() for name, tensor in given.items()}})
            pending.append((run(**given), {name: answer.clone() for name, answer in answers.items()}))
            if len(pending) == 2:
                fake.settle(0)
                for outputs, expected in pending:
                    assert outputs.keys() == expected.keys()
                    for name, answer in expected.items():
                        assert torch.equal(outputs[name], answer), f"{graph.name}: {name} of run {number}"
                pending.clear()
    for name, tensor in ours.items():
        assert torch.equal(tensor, reference[name]), f"{graph.name}: {name} after {runs} runs"
