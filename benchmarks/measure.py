"""Measuring: variants interleaved in one run, their p20, p50 and p80, ratios pair by pair against a named baseline."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt
import torch

import nanort as nr

Samples = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Spread:
    """How samples lie: 20, 50 and 80 % of them are below these, none is below ``least``."""

    p20: float
    p50: float
    p80: float
    least: float
    count: int

    @classmethod
    def of(cls, samples: Samples | Sequence[float]) -> Spread:
        p20, p50, p80 = np.percentile(samples, (20, 50, 80)).tolist()
        return cls(p20, p50, p80, float(np.min(samples)), len(samples))

    def __str__(self) -> str:
        return " ".join(f"{figure:9.4g}" for figure in (self.least, self.p20, self.p50, self.p80))


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a result.

    Attributes:
        name: what was measured.
        unit: of ``found``.
        found: the samples.
        baseline: what it is compared with, measured in the same run.
        ratio: the baseline's sample over this one's, pair by pair: more than 1 is better than the baseline.
        goal: ``("<=", figure)`` or ``(">=", figure)``, for the p50 of ``ratio`` if there is one, else of ``found``.
    """

    name: str
    unit: str
    found: Spread
    baseline: str = ""
    ratio: Spread | None = None
    goal: tuple[str, float] | None = None

    @property
    def met(self) -> bool | None:
        """Whether the goal was met; None where there is none."""
        if self.goal is None:
            return None
        (how, figure), median = self.goal, (self.ratio or self.found).p50
        return median <= figure if how == "<=" else median >= figure

    def cells(self) -> tuple[str, ...]:
        """The row as the printed table shows it."""
        against = f"{self.ratio} {self.baseline}" if self.ratio else ""
        goal = "" if self.goal is None else f"{self.goal[0]} {self.goal[1]:g}: {'met' if self.met else 'MISSED'}"
        return self.name, str(self.found), self.unit, against, goal


def compared(
    name: str, samples: Samples, baseline: str, against: Samples, *, unit: str, goal: tuple[str, float] | None = None
) -> Row:
    """A row whose ratio is that of samples taken in the same rounds."""
    return Row(name, unit, Spread.of(samples), baseline, Spread.of(against / samples), goal)


@dataclass(frozen=True, slots=True)
class Rounds:
    """Seconds of every variant in every round kept, and the share of the cores that other processes took in each."""

    seconds: dict[str, Samples]
    others: Samples


def interleave(
    variants: Mapping[str, Callable[[], object]], rounds: int, *, warmup: int = 1, tries: int = 1, quiet: float = 0.05
) -> Rounds:
    """Runs every variant in every round, each round in an order of its own: what disturbs one disturbs its neighbours.

    On a shared machine up to ``tries`` times as many rounds are run, until ``rounds`` of them are ``quiet``: other
    processes took no more than that share of the cores. The quietest are kept, whatever they found.
    """
    rng, order = random.Random(0), list(variants)
    found: list[tuple[float, list[float]]] = []
    for this_round in range(-warmup, rounds * tries):
        rng.shuffle(order)
        seconds, before = {}, _processor_seconds()
        for name in order:
            began = perf_counter()
            variants[name]()
            seconds[name] = perf_counter() - began
        if this_round >= 0:
            found.append((_others(before), [seconds[name] for name in variants]))
        if sum(share <= quiet for share, _ in found) == rounds:
            break
    kept = sorted(found, key=lambda one: one[0])[:rounds] if tries > 1 else found
    by_variant = np.array([samples for _, samples in kept]).T
    return Rounds(dict(zip(variants, by_variant, strict=True)), np.array([share for share, _ in kept]))


def machine() -> dict[str, str | int | float]:
    """What a measurement depends on: processor, cores, versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found: dict[str, str | int | float] = {
        "date": date.today().isoformat(),
        "cpu": _cpu(),
        "cores": cores,
        "system": platform.platform(),
        "python": platform.python_version(),
        "nanort": nr.__version__,
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    for package in ("torch", "numpy", "dask", "numba", "cuda-bindings", "triton"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _cpu() -> str:
    """The processor's name; Linux tells it in a file only."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _processor_seconds() -> tuple[float, float]:
    """What all cores have given since the start of the machine, and how much of it to others than this process.

    Only Linux tells; elsewhere both are 0.
    """
    try:
        line = Path("/proc/stat").read_text(encoding="utf-8").partition("\n")[0]
    except FileNotFoundError:
        return 0.0, 0.0
    user, nice, system, idle, iowait, *rest = (float(ticks) / os.sysconf("SC_CLK_TCK") for ticks in line.split()[1:9])
    busy = user + nice + system + sum(rest)
    return busy + idle + iowait, busy - sum(os.times()[:4])


def _others(before: tuple[float, float]) -> float:
    """The share of the cores that other processes have taken since then."""
    given, others = (now - then for now, then in zip(_processor_seconds(), before, strict=True))
    return round(max(0.0, others / given), 4) if given else 0.0


def run(name: str, measure: Callable[[bool], list[Row]], argv: Sequence[str] | None) -> list[Row]:
    """Parses the command line, measures with one thread an operator, prints the table and saves it if asked to."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to see that it runs: the numbers mean nothing")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the result as JSON")
    options = parser.parse_args(argv)
    threads, began = torch.get_num_threads(), _processor_seconds()
    torch.set_num_threads(1)
    try:
        rows = measure(options.quick)
    finally:
        torch.set_num_threads(threads)
    where = {**machine(), "others": f"{_others(began):.0%} of the cores"}
    print("  ".join(f"{key}={value}" for key, value in where.items()))
    print(table(rows))
    if options.save:
        command = f"python -m benchmarks.{name}{' --quick' if options.quick else ''}"
        found = {"command": command, "machine": where, "rows": [{**asdict(row), "met": row.met} for row in rows]}
        options.save.write_text(json.dumps(_rounded(found), indent=1) + "\n", encoding="utf-8")
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    columns = " ".join(f"{name:>9}" for name in ("least", "p20", "p50", "p80"))
    head = ("", columns, "unit", f"{columns} times as good as", "goal")
    lines = [head, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _rounded(found: object) -> object:
    """The same with floats of five digits: more would be noise."""
    if isinstance(found, float):
        return float(f"{found:.5g}")
    if isinstance(found, dict):
        return {key: _rounded(value) for key, value in found.items()}
    return [_rounded(value) for value in found] if isinstance(found, (list, tuple)) else found
