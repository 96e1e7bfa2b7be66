"""Occupancy: what Triton's compiler makes of every kernel at the sizes of a model, and what that takes of an SM.

No GPU is needed. ``python -m nanort.occupancy`` compiles all kernels and rewrites ``nanort/costs/footprints.json``, by
which plans know what fits on one SM together.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

from nanort.costs.footprint import KIB, LIMITS, Footprint, Footprints, programs_per_sm, save
from nanort.devices import device
from nanort.errors import BackendError, DeviceError, RequestError

if TYPE_CHECKING:
    from nanort.kernels.kernel import Typical

SAVED = (80, 90, 100)
"""Compute capabilities of whose GPUs footprints are shipped."""

HEAD = "kernel", "sizes", "function", "registers", "spilled", "shared KiB", "threads", "programs/SM", "grid", "WGMMA"
NAMES = 3
"""Columns that are no figures."""

GPUS = {80: "a100-80g", 89: "l40s", 90: "h200", 100: "b200"}
"""For each compute capability, the GPU whose SMs the kernels are told to run on."""


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What one launch of a call of a kernel occupies.

    Attributes:
        kernel: ``operator.kernel``, as in ``"linear.coresident"``.
        sizes: of the call.
        function: what is launched, since a call may launch several.
        footprint: of each of its programs.
        spilled_bytes: of each thread.
        programs: an SM holds so many at once.
        grid: so many are launched on all SMs.
        wgmma: whether it uses Hopper's tensor cores by groups of four warps.
    """

    kernel: str
    sizes: str
    function: str
    footprint: Footprint
    spilled_bytes: int
    programs: int
    grid: int
    wgmma: bool

    @property
    def flaw(self) -> str:
        """Why it should not be run so, or ""."""
        spills = f"spills {self.spilled_bytes} bytes a thread" if self.spilled_bytes else ""
        return " and ".join(filter(None, (spills, "does not fit on an SM" if not self.programs else "")))

    @property
    def cells(self) -> tuple[str, ...]:
        """The same as a table shows it, below ``HEAD``."""
        figures = (self.footprint.registers, self.spilled_bytes, f"{self.footprint.shared_bytes / KIB:.1f}")
        rest = (self.footprint.threads, self.programs, self.grid, "yes" if self.wgmma else "no")
        return (self.kernel, self.sizes, self.function, *map(str, figures + rest))

    @property
    def data(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "kernel": self.kernel,
            "sizes": self.sizes,
            "function": self.function,
            "registers": self.footprint.registers,
            "spilled_bytes": self.spilled_bytes,
            "shared_bytes": self.footprint.shared_bytes,
            "threads": self.footprint.threads,
            "programs_per_sm": self.programs,
            "grid": self.grid,
            "wgmma": self.wgmma,
        }


@dataclass(frozen=True, slots=True)
class OccupancyTable:
    """Calls of kernels and what they occupy; prints aligned."""

    rows: tuple[Occupancy, ...]

    def __str__(self) -> str:
        lines = [HEAD, *(row.cells for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                f"{cell:{'<' if at < NAMES else '>'}{width}}"
                for at, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        )

    @property
    def data(self) -> list[dict[str, Any]]:
        """The rows as plain values."""
        return [row.data for row in self.rows]

    @property
    def flaws(self) -> list[str]:
        """What is wrong with which rows."""
        return [f"{row.kernel} at {row.sizes}: {row.function} {row.flaw}" for row in self.rows if row.flaw]


def occupancy(arch: str = "sm_90", names: Sequence[str] = ()) -> OccupancyTable:
    """What the typical calls of kernels occupy on GPUs of ``arch``: of those named, else of all.

    Raises:
        DeviceError: there is no such architecture here.
        RequestError: there is no such kernel.
        BackendError: kernels cannot be compiled in this process.
    """
    capability = _capability(arch)
    calls = list(_typical_calls())
    known = sorted({call.name for call in calls})
    if unknown := [name for name in names if name not in {*known, *(each.split(".")[0] for each in known)}]:
        raise RequestError(f"no kernel is called {', '.join(unknown)}: give an operator, or one of {', '.join(known)}")
    chosen = [call for call in calls if not names or {call.name, call.name.split(".")[0]} & set(names)]
    return OccupancyTable(tuple(row for call in chosen for row in _compiled(call, capability)))


def largest(rows: Sequence[Occupancy], capability: int) -> Footprints:
    """Of each kernel, the most registers, shared memory and threads that any of its launches takes."""
    found = defaultdict[tuple[int, str], list[tuple[int, ...]]](list)
    for row in rows:
        found[capability, row.kernel].append(astuple(row.footprint))
    return {key: Footprint(*map(max, zip(*figures, strict=True))) for key, figures in found.items()}


def _compiled(call: Typical, capability: int) -> Iterator[Occupancy]:
    for launch in call.launches(device(GPUS[capability]).sms):
        found = launch.compiled(capability)
        footprint = Footprint(found.registers, found.shared_bytes, found.threads)
        yield Occupancy(
            kernel=call.name,
            sizes=call.sizes,
            function=launch.kernel.fn.__name__.lstrip("_"),
            footprint=footprint,
            spilled_bytes=found.spilled_bytes,
            programs=programs_per_sm(footprint, capability),
            grid=launch.programs,
            wgmma=found.has_wgmma,
        )


def _typical_calls() -> Iterator[Typical]:
    """Those of every module of nanort.kernels that has some."""
    if importlib.util.find_spec("triton") is None:
        raise BackendError("Triton is not installed, which compiles the kernels: pip install 'nanort[cuda]'")
    import nanort.kernels
    from nanort.kernels.launch import INTERPRETED

    if INTERPRETED:
        raise BackendError("kernels are interpreted in this process, not compiled: unset TRITON_INTERPRET")
    for found in pkgutil.iter_modules(nanort.kernels.__path__):
        module = importlib.import_module(f"nanort.kernels.{found.name}")
        yield from getattr(module, "typical", tuple)()


def _capability(arch: str) -> int:
    known = {f"sm_{capability}": capability for capability in LIMITS}
    if arch not in known:
        raise DeviceError(f"--arch {arch} is not known: give one of {', '.join(known)}")
    return known[arch]


def main() -> None:
    """Rewrites the footprints that are shipped."""
    import triton

    footprints: dict[tuple[int, str], Footprint] = {}
    for capability in SAVED:
        footprints |= largest(occupancy(f"sm_{capability}").rows, capability)
    save(footprints, triton.__version__)


if __name__ == "__main__":
    main()
