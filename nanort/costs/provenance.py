"""Provenance: on which machine and with which versions something was measured or planned."""

from __future__ import annotations

import platform
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from nanort import driver

PACKAGES = ("nanort", "torch")

Versions = tuple[tuple[str, str], ...]


@lru_cache(maxsize=1)
def versions() -> Versions:
    """The running versions of what decides how long an operator takes."""
    return tuple((package, metadata.version(package)) for package in PACKAGES)


@lru_cache(maxsize=1)
def machine() -> str:
    """What tells this machine's cores from others: architecture and model. Host names change with every container."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{platform.machine()} {model or platform.processor()}".strip()


def here(device: str) -> str:
    """What tells this machine's ``device``, its cores or its GPU, from others of that name.

    Raises:
        BackendError: it is a GPU, and there is none.
    """
    if device == "cpu":
        return machine()
    facts = driver.current().facts()
    return gpu(facts.gpu, facts.driver)


def gpu(name: str, version: str) -> str:
    """What tells a GPU with a driver of some version from others."""
    return f"{name}, driver {version or 'unknown'}"
