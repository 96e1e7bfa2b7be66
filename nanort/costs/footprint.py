"""Footprint: what one program of a kernel occupies of an SM, and so how many an SM holds, alone and side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path

from nanort.costs import files
from nanort.errors import DeviceError

KIB = 1024
WARP = 32
QUARTERS = 4
"""An SM's parts, each of which has a scheduler and a quarter of the registers; the warps of a program take turns."""
QUARTER_REGISTERS = 16384
REGISTER_UNIT = 256
"""Registers are given to a warp in multiples of these."""
SHARED_UNIT = 128
SHARED_RESERVED = KIB
"""Shared memory that the system takes for itself, of every program."""

SCHEMA, VERSION = "nanort.footprints", 1
COMPILED = Path(__file__).with_name("footprints.json")
"""What ``python -m nanort.occupancy`` found."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one program (CUDA says block) of a kernel occupies: registers of each thread, and bytes of shared memory."""

    registers: int
    shared_bytes: int
    threads: int

    @property
    def warps(self) -> int:
        """Groups of 32 threads."""
        return -(-self.threads // WARP)

    @property
    def warp_registers(self) -> int:
        """Registers that each of its warps is given."""
        return _up(self.registers * WARP, REGISTER_UNIT)

    @property
    def allocated_bytes(self) -> int:
        """Shared memory that it is given, the system's part included."""
        return _up(self.shared_bytes + SHARED_RESERVED, SHARED_UNIT)


Footprints = Mapping[tuple[int, str], Footprint]
"""By compute capability, and by kernel: ``(90, "linear.coresident")``."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one SM holds at once; all known ones have 64 Ki registers."""

    shared_bytes: int
    threads: int
    programs: int


LIMITS = {
    80: Limits(164 * KIB, 2048, 32),
    89: Limits(100 * KIB, 1536, 24),
    90: Limits(228 * KIB, 2048, 32),
    100: Limits(228 * KIB, 2048, 32),
}
"""By compute capability, as the CUDA C++ Programming Guide has it (Technical Specifications per Compute Capability).

The tensor memory of Blackwell (100) is not counted: of two kernels that use it, one may have to wait.
"""


def programs_per_sm(footprint: Footprint, capability: int) -> int:
    """How many of these programs an SM holds at once, by the rules of NVIDIA's occupancy calculator; 0 if none fits.

    >>> programs_per_sm(Footprint(registers=37, shared_bytes=0, threads=128), 80)  # of the CUDA Best Practices Guide
    12
    """
    limits, warps = _limits(capability), footprint.warps
    bounds = [limits.programs, limits.threads // WARP // warps, limits.shared_bytes // footprint.allocated_bytes]
    if footprint.registers:
        bounds.append(QUARTER_REGISTERS // footprint.warp_registers * QUARTERS // warps)
    return min(bounds)


def fit_together(a: Footprint, b: Footprint, capability: int) -> bool:
    """Whether an SM holds a program of one kernel beside a program of the other.

    >>> product, attention = Footprint(168, 96 * 1024, 256), Footprint(128, 64 * 1024, 128)
    >>> fit_together(product, attention, 90), fit_together(product, product, 80)
    (True, False)
    """
    limits, pair = _limits(capability), (a, b)
    return (
        # Which quarter a program's first warp goes to is not documented, so each has to have room for one more.
        sum(-(-each.warps // QUARTERS) * each.warp_registers for each in pair) <= QUARTER_REGISTERS
        and sum(each.allocated_bytes for each in pair) <= limits.shared_bytes
        and sum(each.warps for each in pair) * WARP <= limits.threads
    )


def footprint(operator: str, kernel: str, capability: int) -> Footprint | None:
    """The most that any launch of an operator's kernel takes of an SM at the sizes of a model; None if it has none.

    What fits beside that fits beside each of them. It is what Triton's compiler said when this nanort was made.
    """
    return _compiled().get((capability, f"{operator}.{kernel}"))


def save(footprints: Footprints, triton: str, path: str | os.PathLike[str] = COMPILED) -> None:
    """Writes footprints, and the version of Triton whose compiler gave them."""
    rows = [[*key, *astuple(footprints[key])] for key in sorted(footprints)]
    files.write(path, SCHEMA, VERSION, {"triton": triton, "footprints": rows})


def load(path: str | os.PathLike[str] = COMPILED) -> tuple[Footprints, str]:
    """What :func:`save` wrote.

    Raises:
        FileError: it is no such file.
    """
    fields = files.record(files.read(path, SCHEMA, VERSION), str(path), {"triton": str, "footprints": list})
    rows = [files.row(row, f"{path}: footprints", (int, str, int, int, int)) for row in fields["footprints"]]
    return {(capability, name): Footprint(*figures) for capability, name, *figures in rows}, fields["triton"]


@cache
def _compiled() -> Footprints:
    return load()[0]


def _limits(capability: int) -> Limits:
    if capability not in LIMITS:
        known = ", ".join(map(str, LIMITS))
        raise DeviceError(f"what an SM of compute capability {capability} holds is not known: give one of {known}")
    return LIMITS[capability]


def _up(amount: int, unit: int) -> int:
    return -(-amount // unit) * unit
