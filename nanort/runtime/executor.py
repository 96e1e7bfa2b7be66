"""Executor: runs a schedule again and again on one backend; the interface that all backends share."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol

import torch

from nanort import driver
from nanort.devices import Device
from nanort.errors import BackendError, DriverError, PoisonedError
from nanort.programs.lower import lower
from nanort.programs.program import Program
from nanort.programs.record import RunRecord
from nanort.runtime import faults
from nanort.runtime.buffers import bound_on
from nanort.runtime.cpu import CpuBackend
from nanort.runtime.cuda import CudaBackend
from nanort.runtime.partitions import partitions
from nanort.runtime.simulated import SimulatedBackend
from nanort.scheduling.schedule import Schedule
from nanort.timeline.events import Timeline

BACKENDS = ("auto", "cpu", "cuda", "sim")


class Backend(Protocol):
    """What carries a program out; it holds threads, streams and memory until it is closed."""

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The outputs of one run."""
        ...

    @property
    def timeline(self) -> Timeline:
        """What happened in the last run, all of it or up to the failure."""
        ...

    @property
    def record(self) -> RunRecord | None:
        """What really happened in it; None where nobody looked."""
        ...

    def close(self) -> None:
        """Gives everything back; may be called twice."""
        ...


class Executor:
    """Runs a schedule: ``with nr.Executor(schedule, constants=..., states=...) as run: out = run(x=x)``.

    On a GPU the host queues a run and goes on. Torch code on the caller's stream needs no synchronisation: a run
    comes after what was queued before it, and what is queued later comes after the run. Only with outputs on the
    host (see ``wait``), or a ``timeout``, does the call return when the run has ended. The outputs of a run, states
    excepted, stay as they are while the next one runs; the one after that writes to the same memory, so copy what has
    to last. Use it from one thread at a time.

    Args:
        schedule: what to run, from nr.co_schedule; or a Program.
        constants: weights by name, bound once.
        states: tensors by name that operators change in place, run after run.
        backend: "cuda" runs kernels on the GPU that the schedule was planned for; "cpu" runs references on one worker
            thread a stream; "sim" plays the program in the simulator and needs no tensors; "auto" is "cuda" where there
            is a GPU and the schedule is for one, otherwise "cpu".
        trace: whether runs are timed; without it ``timeline`` is empty.
        capture: of cuda: the first run is queued call by call, later ones replay a CUDA graph of the whole schedule.
            An operator that cannot be captured is named in a warning, and every run is queued call by call.
        timeout: of cuda: seconds in which some node has to end, or else HangError names those that have not.
        budget: of cuda: bytes of the device that it may take, besides constants and states, and what references and
            libraries allocate on the way.
        strict: of cuda: whether it is an error where a kernel does not take the shapes, dtypes or strides of a node.
            Otherwise the node runs its reference, and the log ("nanort") has a line about it.
        wait: of cuda: whether a call returns only when outputs on the host are there. Otherwise they are there when the
            caller's stream has come past the run: queue an event there, and wait for that.
        debug: whether every run is recorded, see ``record``, and judged when it has ended: by the order that its
            streams really had, and by the bytes that its nodes really touched. Runs take several times as long, and a
            call returns when the run has ended.

    A run that fails raises ExecutionError with the node's name and the line that made it, leaves ``timeline`` as far as
    it came, and the executor can run again. After a fault of the GPU itself nothing can run on it in this process any
    more: PoisonedError names the nodes that are suspected. With ``debug`` a run that touched what it did not declare,
    or that nothing kept in order, raises RecordError, which names both nodes, the bytes, and the wait that is missing.

    Raises:
        InputError: constants or states are missing, unknown, or of a wrong shape, dtype or device.
        BackendError: there is no such backend, or no GPU, or the schedule is for another one: plan again. Or a kernel
            cannot be imported, or does not take its arguments and ``strict`` says that it must.
        CapacityError: the budget is too small; it says which would do.
        DeviceMemoryError: there is not enough memory.
    """

    def __init__(
        self,
        schedule: Schedule | Program,
        *,
        constants: Mapping[str, torch.Tensor] | None = None,
        states: Mapping[str, torch.Tensor] | None = None,
        backend: str = "auto",
        trace: bool = True,
        capture: bool = False,
        timeout: float | None = None,
        budget: int | None = None,
        strict: bool = False,
        wait: bool = True,
        debug: bool = False,
    ) -> None:
        self.program = schedule if isinstance(schedule, Program) else lower(schedule)
        self._closed = False
        self._backend: Backend
        self._kind = "cpu"
        kind, where = resolve(backend, self.program.device)
        if kind == "sim":
            if debug:
                raise BackendError(
                    "debug=True records what really runs, and backend='sim' runs nothing: choose 'cpu' or 'cuda', or "
                    "ask program.hazards()"
                )
            self._backend, self._kind = SimulatedBackend(self.program), kind
            return
        if kind == "cuda":
            try:
                self._backend = CudaBackend(
                    self.program, self._bound(where, constants, states), driver=driver.current(), trace=trace,
                    capture=capture, timeout=timeout, budget=budget, strict=strict, wait=wait, debug=debug,
                )  # fmt: skip  # what is said by its name
                self._kind = kind
                return
            except BackendError as error:
                _or_else(backend, error)
        self._backend = CpuBackend(self.program, self._bound("cpu", constants, states), trace=trace, debug=debug)

    def _bound(
        self, where: str, constants: Mapping[str, torch.Tensor] | None, states: Mapping[str, torch.Tensor] | None
    ) -> dict[int, torch.Tensor]:
        graph, device = self.program.graph, torch.device(where)
        return bound_on(device, graph, constants or {}, "constant") | bound_on(device, graph, states or {}, "state")

    def __call__(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """The outputs by name; the simulated backend has none."""
        if self._closed:
            raise BackendError("this executor is closed: make a new one")
        return self._backend.run(inputs)

    @property
    def timeline(self) -> Timeline:
        """What happened in the last run: a Timeline to print, save, or compare with ``schedule.timeline()``."""
        return self._backend.timeline

    @property
    def record(self) -> RunRecord:
        """What really happened in the last run, which ``print`` shows step by step.

        Raises:
            BackendError: nothing was recorded.
        """
        if (found := self._backend.record) is None:
            raise BackendError("there is no record: make the executor with debug=True, and run it")
        return found

    @property
    def host_inputs(self) -> dict[str, torch.Tensor]:
        """The pinned tensors from which the next run on a GPU copies its inputs of the host; {} on other backends.

        An input that was written there and is given as that very tensor is not copied once more.
        """
        return self._backend.host_inputs if isinstance(self._backend, CudaBackend) else {}

    @property
    def memory_bytes(self) -> int:
        """Bytes of a GPU that it holds until it is closed, besides constants and states."""
        return self._backend.memory_bytes if isinstance(self._backend, CudaBackend) else 0

    def __repr__(self) -> str:
        state = " (closed)" if self._closed else ""
        return f"<Executor of {self.program.name} on {self.program.device.name}, backend {self._kind}{state}>"

    def close(self) -> None:
        """Waits for the last run and gives threads, streams and memory back; the executor cannot run again."""
        if not self._closed:
            self._closed = True
            self._backend.close()

    def __enter__(self) -> Executor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def resolve(backend: str, device: Device) -> tuple[str, str]:
    """The backend that is meant for what was planned for ``device``, and the torch device of its values.

    Raises:
        BackendError: there is no such backend, or "cuda" was asked for and cannot run it.
        PoisonedError: there is a GPU that has failed before in this process.
    """
    if backend not in BACKENDS:
        raise BackendError(f"there is no backend {backend!r}: give one of {', '.join(BACKENDS)}")
    if backend in ("cpu", "sim") or (backend == "auto" and device.kind != "cuda"):
        return ("cpu" if backend == "auto" else backend), "cpu"
    try:
        found = driver.current()
        faults.refuse_poisoned(found)
        if device.kind != "cuda":
            raise BackendError(f"planned for {device.name}, which is no GPU: plan again with nr.Device.current()")
        partitions(found, device)
    except BackendError as error:
        _or_else(backend, error)
        return "cpu", "cpu"
    return "cuda", found.device


def _or_else(backend: str, error: BackendError) -> None:
    """Raises ``error`` unless the cpu may take over, which is said in a line where a GPU is left idle."""
    if backend == "cuda" or isinstance(error, (DriverError, PoisonedError)):
        raise error
    if torch.cuda.is_available():
        warnings.warn(f"running on the cpu, not on the GPU: {error}", RuntimeWarning, stacklevel=2)
