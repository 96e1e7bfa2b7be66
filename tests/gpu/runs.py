"""Schedules run several times from the same states, eagerly or captured."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch

import nanort as nr
import random_dags
from nanort.driver import Driver
from nanort.scheduling.schedule import Schedule

Tensors = dict[str, torch.Tensor]


def placed(graph: nr.Graph, tensors: Mapping[str, torch.Tensor], home: str) -> Tensors:
    """Fresh copies: what the graph has on the device is on ``home``, the rest on the host."""
    on = {root.name: "cpu" if root.device == "host" else home for root in graph.roots}
    return {name: tensor.clone().to(on[name]) for name, tensor in tensors.items()}


def settle(driver: Driver) -> None:
    """Waits for what the caller's stream waits for."""
    event = driver.create_event()
    driver.record(event, 0)
    driver.synchronize(event)
    driver.destroy_event(event)


def repeated(
    driver: Driver,
    schedule: Schedule,
    tensors: Mapping[str, torch.Tensor],
    *,
    capture: bool,
    runs: int,
    strict: bool = False,
) -> list[Tensors]:
    """Outputs and states after each of ``runs`` runs from the same states; a graph must not fall back to launches.

    With ``strict``, nor may a kernel fall back to its operator's reference.
    """
    given = placed(schedule.graph, tensors, driver.device)
    inputs, constants, states = random_dags.by_kind(schedule.graph, given)
    found = []
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module=r"nanort\.runtime\.")
        with nr.Executor(
            schedule, constants=constants, states=states, backend="cuda", capture=capture, strict=strict
        ) as run:
            for _ in range(runs):
                for name, state in states.items():
                    state.copy_(tensors[name])
                outputs = run(**inputs)
                settle(driver)
                found.append({name: tensor.cpu().clone() for name, tensor in (outputs | states).items()})
    return found
