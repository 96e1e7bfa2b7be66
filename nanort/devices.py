"""Device: what one GPU (or the host CPU) can give, from a database or from the machine itself."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, replace

import torch

from nanort import driver
from nanort.errors import BackendError, DeviceError

GB, TB, TFLOP = 1e9, 1e12, 1e12
GIB, MIB = 1 << 30, 1 << 20

MAY_BE_ZERO = ("capability", "net_bandwidth")
"""Figures of a device that it may not have."""


@dataclass(frozen=True, slots=True)
class Datasheet:
    """The vendor's peak figures; plans use the sustained ones of :class:`Device`."""

    flops: dict[str, float] = field(hash=False)
    hbm_bandwidth: float
    source: str


@dataclass(frozen=True, slots=True)
class Device:
    """What one device can give, in sustained figures.

    Attributes:
        name: how it is called, ``"h200"``.
        kind: ``"cuda"`` or ``"cpu"`` (there a core stands for an SM).
        capability: CUDA's number for what an SM holds and can do, 90 for Hopper; 0 of a CPU.
        sms: streaming multiprocessors.
        sm_granularity, sm_minimum: SMs by which a group grows, and the fewest it can hold.
        flops: FLOP/s by dtype name (``"bfloat16"``), all SMs.
        hbm_bandwidth: bytes/s of device memory, reads and writes together.
        hbm_saturation_sms: ``(least, most)`` SMs with which a memory-bound kernel reaches it; equal once measured.
        l2_bytes, memory_bytes: sizes.
        h2d_bandwidth, d2h_bandwidth, net_bandwidth: bytes/s, each direction.
        launch_seconds, event_seconds: cost of a kernel launch, and of an event recorded and waited for.
        datasheet: the vendor's peaks, kept apart.
        source: where the sustained figures come from.
    """

    name: str
    kind: str
    capability: int
    sms: int
    sm_granularity: int
    sm_minimum: int
    flops: dict[str, float] = field(hash=False)
    hbm_bandwidth: float
    hbm_saturation_sms: tuple[int, int]
    l2_bytes: int
    memory_bytes: int
    h2d_bandwidth: float
    d2h_bandwidth: float
    net_bandwidth: float
    launch_seconds: float
    event_seconds: float
    datasheet: Datasheet
    source: str

    def __post_init__(self) -> None:
        positive = (
            f.name for f in fields(self) if f.type in ("int", "float") and f.name not in ("capability", "net_bandwidth")
        )
        for name in positive:
            if not getattr(self, name) > 0:
                raise DeviceError(f"device {self.name!r}: {name}={getattr(self, name)!r} must be more than zero")
        if (
            "float32" not in self.flops
            or not all(rate > 0 for rate in self.flops.values())
            or not self.net_bandwidth >= 0
        ):
            raise DeviceError(
                f"device {self.name!r}: flops={self.flops} must have a float32 rate and be more than zero, "
                f"net_bandwidth={self.net_bandwidth!r} zero or more"
            )
        least, most = self.hbm_saturation_sms
        if not 0 < least <= most <= self.sms or self.sm_minimum > self.sms:
            raise DeviceError(
                f"device {self.name!r}: hbm_saturation_sms={self.hbm_saturation_sms} and sm_minimum={self.sm_minimum} "
                f"must lie within its {self.sms} SMs"
            )

    def __str__(self) -> str:
        rate = self.flops.get("bfloat16" if self.kind == "cuda" else "float32", 0) / TFLOP
        what = "SMs" if self.kind == "cuda" else "cores"
        return (
            f"{self.name}: {self.sms} {what}, {rate:.3g} TFLOP/s, memory {self.memory_bytes / GIB:.0f} GiB at "
            f"{self.hbm_bandwidth / TB:.3g} TB/s, PCIe {self.h2d_bandwidth / GB:.0f} GB/s down, "
            f"{self.d2h_bandwidth / GB:.0f} GB/s up"
        )

    @property
    def partitionable_sms(self) -> int:
        """SMs that groups can hold; the rest (4 of 132 on Hopper) serves only work on the whole device."""
        return self.sms // self.sm_granularity * self.sm_granularity

    def rate(self, dtype: torch.dtype | None) -> float:
        """FLOP/s at ``dtype``; the float32 rate where the device has no figure for it."""
        name = str(dtype).removeprefix("torch.")
        return self.flops.get(name) or self.flops["float32"]

    def with_(self, **changes: object) -> Device:
        """The same device with some figures changed, ``nr.device("h200").with_(hbm_saturation_sms=(64, 64))``."""
        unknown = changes.keys() - {f.name for f in fields(self)}
        if unknown:
            raise DeviceError(f"a device has no {sorted(unknown)}: its figures are {[f.name for f in fields(self)]}")
        return replace(self, **changes)  # type: ignore[arg-type]  # the names are checked above, the figures by __post_init__

    @staticmethod
    def current() -> Device:
        """The device of this machine: its CUDA GPU if there is one, otherwise its CPU, counted by asking it."""
        if torch.cuda.is_available():
            return _current_cuda()
        return device("cpu")


_ESTIMATE = "estimate: 80 % of the datasheet's FLOP/s and 90 % of its bandwidth, until measured"


def _gpu(
    name: str,
    capability: int,
    sms: int,
    bf16: tuple[float, float],
    tf32: tuple[float, float],
    hbm: tuple[float, float],
    saturation: tuple[int, int],
    l2: int,
    memory: int,
    pcie: float,
    net: float,
    granularity: int,
    product: str,
    source: str = _ESTIMATE,
) -> Device:
    """One row of the database; pairs are (datasheet, sustained)."""
    (bf16_peak, bf16_rate), (tf32_peak, tf32_rate), (hbm_peak, hbm_rate) = bf16, tf32, hbm
    return Device(
        name=name,
        kind="cuda",
        capability=capability,
        sms=sms,
        sm_granularity=granularity,
        sm_minimum=granularity,
        flops={"bfloat16": bf16_rate * TFLOP, "float16": bf16_rate * TFLOP, "float32": tf32_rate * TFLOP},
        hbm_bandwidth=hbm_rate * TB,
        hbm_saturation_sms=saturation,
        l2_bytes=l2 * MIB,
        memory_bytes=memory * GIB,
        h2d_bandwidth=pcie * GB,
        d2h_bandwidth=pcie * GB,
        net_bandwidth=net * GB,
        launch_seconds=4e-6,
        event_seconds=1e-6,
        datasheet=Datasheet(
            {"bfloat16": bf16_peak * TFLOP, "float16": bf16_peak * TFLOP, "float32": tf32_peak * TFLOP},
            hbm_peak * TB,
            f"NVIDIA {product} datasheet",
        ),
        source=source,
    )


# float32 means TF32 tensor cores, dense; saturation ranges start from the published 30 of 108 SMs (A100) and 40 of 114
# (H100 PCIe) and end at twice as many.
_H200 = "bf16 and device copy measured on one H200 (769 to 798 TFLOP/s, 4.3 TB/s); PCIe and TF32 estimated"
_DATABASE = {
    gpu.name: gpu
    for gpu in (
        _gpu("a100-80g", 80, 108, (312, 250), (156, 125), (2.039, 1.8), (30, 54), 40, 80, 25, 300, 4, "A100 80GB SXM"),
        _gpu("h100", 90, 132, (989, 750), (494, 375), (3.35, 3.0), (43, 85), 50, 80, 50, 450, 8, "H100 SXM"),
        _gpu("h200", 90, 132, (989, 780), (494, 390), (4.8, 4.3), (43, 85), 60, 139, 50, 450, 8, "H200 SXM", _H200),
        _gpu("b200", 100, 148, (2250, 1800), (1125, 900), (8.0, 7.2), (48, 96), 126, 180, 50, 900, 8, "B200"),
        _gpu("l40s", 89, 142, (362, 290), (183, 146), (0.864, 0.78), (36, 71), 96, 48, 25, 12, 4, "L40S"),
    )
}  # fmt: skip  # a table reads better in rows


def device(name: str) -> Device:
    """The device called ``name`` in the database: a100-80g, h100, h200, b200, l40s or cpu.

    Raises:
        DeviceError: no device has that name.
    """
    key = name.lower() if isinstance(name, str) else ""
    if key == "cpu":
        return _cpu(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if key not in _DATABASE:
        known = ", ".join(sorted([*_DATABASE, "cpu"]))
        raise DeviceError(f"no device is called {name!r}: give one of {known}, or ask for nr.Device.current()")
    return _DATABASE[key]


def _cpu(cores: int) -> Device:
    """The host CPU; its per-core rates are those of a common server core (docs/measured.md)."""
    flops = {"float32": 100e9 * cores, "float64": 50e9 * cores, "bfloat16": 100e9 * cores, "float16": 25e9 * cores}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8 * GIB
    return Device(
        name="cpu",
        kind="cpu",
        capability=0,
        sms=cores,
        sm_granularity=1,
        sm_minimum=1,
        flops=flops,
        hbm_bandwidth=15e9 * (cores + 1),
        hbm_saturation_sms=(min(2, cores), cores),
        l2_bytes=32 * MIB,
        memory_bytes=memory,
        h2d_bandwidth=5e9,
        d2h_bandwidth=5e9,
        net_bandwidth=1e9,
        launch_seconds=2e-6,
        event_seconds=1e-5,
        datasheet=Datasheet(flops, 15e9 * (cores + 1), "none: a CPU has no figure that holds for all"),
        source="estimate per core; cores and memory asked of the machine",
    )


def _current_cuda() -> Device:
    """The GPU that torch sees: counts asked of it, rates from the database where its name is known."""
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    key = found.name.lower().replace("nvidia ", "").split()[0].split("-")[0]
    known = next((gpu for name, gpu in _DATABASE.items() if name.split("-")[0] == key), None)
    if known is None:
        raise DeviceError(
            f"the database has no rates for {found.name!r}: use nr.device('h200').with_(name=..., sms=..., ...)"
        )
    try:
        _, minimum, alignment = driver.current().resource()
        grain = -(-minimum // alignment) * alignment  # groups are unions of the smallest ones
    except BackendError:  # without green contexts plans are made for a GPU that has them
        grain = 8 if found.major >= 9 else 4
    return known.with_(
        capability=10 * found.major + found.minor,
        sms=found.multi_processor_count,
        memory_bytes=found.total_memory,
        sm_granularity=grain,
        sm_minimum=grain,
    )
