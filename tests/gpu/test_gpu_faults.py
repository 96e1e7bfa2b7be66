"""Faults that a GPU gets over, or a process of its own that does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import runs
import torch

import nanort as nr
from nanort.driver import Driver
from nanort.errors import DeviceMemoryError

WORK = nr.Demand(hbm_bytes=1e6)
TOO_MUCH = 1 << 50
"""Bytes: more than any machine has."""


def told(kind: str) -> list[str]:
    """What faulty.py prints."""
    command = [sys.executable, str(Path(__file__).with_name("faulty.py")), kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.stdout, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("host", [False, True], ids=["device", "host"])
def test_memory_that_is_not_there_is_refused_and_the_driver_goes_on(driver: Driver, host: bool) -> None:
    if host and driver.device == "cpu":
        pytest.skip("the host memory of the fake has no end")
    with pytest.raises(DeviceMemoryError):
        driver.allocate(TOO_MUCH, host=host)
    assert len(driver.allocate(1 << 20, host=host)) == 1 << 20


@pytest.mark.parametrize("capture", [False, True], ids=["eager", "captured"])
def test_a_node_without_memory_is_named_and_the_executor_runs_on(
    driver: Driver, device: nr.Device, capture: bool
) -> None:
    if driver.device == "cpu":
        pytest.skip("torch on the CPU has no error of its own for this")
    hungry = [False]

    def needs(x: torch.Tensor) -> torch.Tensor:
        scratch = torch.empty(TOO_MUCH if hungry[0] and x.is_cuda else 1, dtype=torch.uint8, device=x.device)
        return x + len(scratch)

    graph = nr.Graph("hungry")
    x = graph.input("x", (1024,), torch.float32)
    graph.output(y=graph.call(needs, x, demand=WORK, name="glutton"))
    schedule = nr.co_schedule(graph, device, policy="serial")
    given = torch.ones(1024, device=driver.device)
    with nr.Executor(schedule, backend="cuda", capture=capture) as run:
        hungry[0] = True
        with pytest.raises(DeviceMemoryError, match="glutton") as caught:
            run(x=given)
        assert caught.value.node == "glutton"
        hungry[0] = False
        for _ in range(4):
            assert torch.equal(run(x=given)["y"].cpu(), torch.full((1024,), 2.0))
    runs.settle(driver)


def test_a_node_that_cannot_be_captured_leaves_torch_as_it_was(driver: Driver, device: nr.Device) -> None:
    if driver.device == "cpu":
        pytest.skip("the fake has no captures that a read of the host breaks")

    def reads(x: torch.Tensor) -> torch.Tensor:
        return x * (2 if x.is_meta else int(x.max()))

    graph = nr.Graph("host")
    x = graph.input("x", (1024,), torch.float32)
    graph.output(y=graph.call(reads, x, demand=WORK, name="reader"))
    schedule = nr.co_schedule(graph, device, policy="serial")
    given = torch.full((1024,), 2.0, device=driver.device)
    with nr.Executor(schedule, backend="cuda", capture=True) as run:
        run(x=given)
        with pytest.warns(RuntimeWarning, match="reader"):
            run(x=given)
        for _ in range(4):
            assert torch.equal(run(x=given)["y"].cpu(), torch.full((1024,), 4.0))
    assert torch.randn(8, device=driver.device).isfinite().all()
    runs.settle(driver)


def test_a_node_that_never_ends_is_named_after_the_timeout(driver: Driver) -> None:
    if driver.device == "cpu":
        pytest.skip("needs a kernel that spins on a GPU")
    first, *_ = told("hang")
    assert first.startswith("HangError culprit |"), first


def test_a_sticky_fault_names_the_node_and_refuses_what_comes_after(driver: Driver) -> None:
    if driver.device == "cpu":
        pytest.skip("needs a GPU to break")
    first, second, third, _ = told("fault")
    assert first.startswith("PoisonedError culprit |"), first
    assert second.startswith("PoisonedError"), second
    assert third.startswith("PoisonedError"), third
