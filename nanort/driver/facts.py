"""What the machine says of its GPU: names, versions, SMs and clocks."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import NamedTuple

CLOCKS = {"sm": 1, "memory": 2}  # nvmlClockType_t


class Resource(NamedTuple):
    """The SMs of a device: how many, the fewest that a group may have, and of what their number is a multiple."""

    sms: int
    minimum: int
    alignment: int


class Facts(NamedTuple):
    """The GPU, the driver and the CUDA that the driver brings; a text is "" where it cannot be told."""

    gpu: str
    driver: str
    cuda: str
    sms: int
    copy_engines: int


def driver_version() -> str:
    """The installed driver's version, "580.65.06"; "" without NVML."""
    text = ctypes.create_string_buffer(80)
    if (nvml := _nvml()) is None or nvml.nvmlSystemGetDriverVersion(text, len(text)) != 0:
        return ""
    return text.value.decode()


def clocks(uuid: str) -> dict[str, float]:
    """MHz now of the GPU with this UUID, by "sm" and "memory"; without those that NVML does not tell."""
    handle, mhz = ctypes.c_void_p(), ctypes.c_uint()
    if (nvml := _nvml()) is None or nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)) != 0:
        return {}
    found = {}
    for name, kind in CLOCKS.items():
        if nvml.nvmlDeviceGetClockInfo(handle, kind, ctypes.byref(mhz)) == 0:
            found[name] = float(mhz.value)
    return found


@cache
def _nvml() -> ctypes.CDLL | None:
    """NVML, which comes with the driver and needs no Python package."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return nvml if nvml.nvmlInit_v2() == 0 else None
