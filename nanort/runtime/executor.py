"""Executor: runs a schedule again and again on one backend; the interface that all backends share."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol

import torch

from nanort.eager import bind
from nanort.errors import BackendError
from nanort.programs.lower import lower
from nanort.programs.program import Program
from nanort.runtime.cpu import CpuBackend
from nanort.runtime.simulated import SimulatedBackend
from nanort.scheduling.schedule import Schedule
from nanort.timeline.events import Timeline

BACKENDS = ("auto", "cpu", "sim")


class Backend(Protocol):
    """What carries a program out; it holds threads, streams and memory until it is closed."""

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The outputs of one run."""
        ...

    @property
    def timeline(self) -> Timeline:
        """What happened in the last run, all of it or up to the failure."""
        ...

    def close(self) -> None:
        """Gives everything back; may be called twice."""
        ...


class Executor:
    """Runs a schedule: ``with nr.Executor(schedule, constants=..., states=...) as run: out = run(x=x)``.

    Args:
        schedule: what to run, from nr.co_schedule; or a Program.
        constants: weights by name, bound once.
        states: tensors by name that operators change in place, run after run.
        backend: "cpu" runs references on one worker thread a stream; "sim" plays the program in the simulator and
            needs no tensors; "auto" is the cpu.
        trace: whether runs are timed; without it ``timeline`` is empty.

    A run that fails raises ExecutionError with the node's name and the line that made it, leaves ``timeline`` as far as
    it came, and the executor can run again.

    Raises:
        InputError: constants or states are missing, unknown, or of a wrong shape, dtype or device.
        BackendError: there is no such backend.
    """

    def __init__(
        self,
        schedule: Schedule | Program,
        *,
        constants: Mapping[str, torch.Tensor] | None = None,
        states: Mapping[str, torch.Tensor] | None = None,
        backend: str = "auto",
        trace: bool = True,
    ) -> None:
        if backend not in BACKENDS:
            raise BackendError(f"there is no backend {backend!r}: give one of {', '.join(BACKENDS)}")
        self.program = schedule if isinstance(schedule, Program) else lower(schedule)
        self._closed = False
        self._backend: Backend
        if backend == "sim":
            self._backend = SimulatedBackend(self.program)
            return
        graph = self.program.graph
        bound = bind(graph, constants or {}, ("constant",), "cpu") | bind(graph, states or {}, ("state",), "cpu")
        self._backend = CpuBackend(self.program, bound, trace=trace)

    def __call__(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """The outputs by name; the simulated backend has none."""
        if self._closed:
            raise BackendError("this executor is closed: make a new one")
        return self._backend.run(inputs)

    @property
    def timeline(self) -> Timeline:
        """What happened in the last run: a Timeline to print, save, or compare with ``schedule.timeline()``."""
        return self._backend.timeline

    def close(self) -> None:
        """Ends the worker threads; the executor cannot run again."""
        if not self._closed:
            self._closed = True
            self._backend.close()

    def __enter__(self) -> Executor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
