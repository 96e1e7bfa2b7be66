"""Runs parts one after another, each in a process with a time limit, and keeps what they found whatever happens."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from benchmarks.measure import Row, Spread, table

ROOT = Path(__file__).parents[2]
GRACE = 10.0
"""Seconds that a killed process is waited for."""
TRACE = 4000
"""The last characters of what a failed part printed: its traceback."""


@dataclass(frozen=True, slots=True)
class Part:
    """A module to measure, and the seconds after which it is killed."""

    module: str
    seconds: float

    @property
    def name(self) -> str:
        """The module's, without its package."""
        return self.module.rpartition(".")[2]


PARTS = tuple(
    Part(f"benchmarks.gpu.{name}", seconds)
    for name, seconds in (
        ("hello", 75),  # first what the project claims: what comes last may find no time left
        ("llm_layer", 120),
        ("serving", 150),
        ("kernel_linear", 75),
        ("kernel_decode", 60),
        ("kernel_coresident", 40),
        ("kernel_prefill", 45),
        ("kernel_elementwise", 70),
        ("kernel_pages", 35),
        ("kernel_experts", 45),
        ("kernel_sampling", 40),
        ("gemm_beside_attention", 60),
        ("dispatch", 45),
        ("offload", 60),
        ("bandwidth", 45),
        ("gemm", 45),
        ("gemm_beside_copy", 45),
        ("copies", 45),
        ("contexts", 30),
        ("events", 30),
        ("forks", 30),
    )
)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a part.

    Attributes:
        name: of the part.
        seconds: that it took, the start of its process included.
        rows: as far as it came.
        gpu: what its driver told of the GPU in the end.
        failed: why it did not come to its end, with what it printed last; "" if it did.
    """

    name: str
    seconds: float
    rows: tuple[Row, ...] = ()
    gpu: Mapping[str, Any] | None = None
    failed: str = ""

    @property
    def data(self) -> dict[str, Any]:
        """Its figures, for JSON."""
        return {**asdict(self), "rows": [{**asdict(row), "met": row.met} for row in self.rows]}

    def __str__(self) -> str:
        head = f"{self.name}, {self.seconds:.0f} s{': FAILED' if self.failed else ''}"
        return "\n".join(
            ["", head, *([table(self.rows)] if self.rows else []), *([self.failed] if self.failed else [])]
        )


def run(parts: Sequence[Part], *, driver: str, scale: float = 1.0, budget: float) -> Iterator[Result]:
    """The result of every part; what finds no time left of ``budget`` seconds is not run."""
    began = monotonic()
    for part in parts:
        left = budget - (monotonic() - began)
        if left > 0:
            yield one(part, driver, scale, min(part.seconds, left))
        else:
            yield Result(part.name, 0.0, failed=f"not run: the {budget:.0f} s for all parts were over")


def one(part: Part, driver: str, scale: float, seconds: float) -> Result:
    """What a part finds in a process of its own."""
    began = monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found, printed = Path(folder) / "found", Path(folder) / "printed"
        command = [sys.executable, "-m", "benchmarks.gpu.child", part.module, driver, str(scale), str(found)]
        with printed.open("wb") as out:
            try:
                process = subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT)
                code = process.wait(seconds)
                failed = f"it ended with {code}" if code else ""
            except subprocess.TimeoutExpired:
                process.kill()
                with suppress(subprocess.TimeoutExpired):  # one that is stuck in the driver must not hold up the others
                    process.wait(GRACE)
                failed = f"killed after {seconds:.0f} s"
            except BaseException:
                process.kill()
                raise
        rows, gpu = _read(found)
        if gpu is None:
            failed = failed or "it ended by itself before it was done"
        said = printed.read_text(encoding="utf-8", errors="replace")[-TRACE:]
    return Result(part.name, monotonic() - began, rows, gpu, f"{failed}; it printed:\n{said}" if failed else "")


def _read(path: Path) -> tuple[tuple[Row, ...], Mapping[str, Any] | None]:
    """Rows, and what is told of the GPU, from as many lines as were written whole."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    gpu = lines.pop()["gpu"] if lines and "gpu" in lines[-1] else None
    return tuple(_row(**line) for line in lines), gpu


def _row(*, found: dict[str, Any], ratio: dict[str, Any] | None, goal: list[Any] | None, **rest: Any) -> Row:
    target = None if goal is None else (str(goal[0]), float(goal[1]))
    return Row(found=Spread(**found), ratio=None if ratio is None else Spread(**ratio), goal=target, **rest)
