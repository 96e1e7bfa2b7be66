"""Solving project scheduling problems: how far from the best known makespans, and how many schedules a second.

Problems are those of ``benchmarks.progen``, compared with what CP-SAT finds from a long search's solution; or files of
the standard sets, ``--files FOLDER``, compared with the makespans in its ``best.csv``: lines of ``name,makespan``.
"""

from __future__ import annotations

import argparse
import csv
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import process_time

import numpy as np

from benchmarks import progen
from benchmarks.measure import Row, Spread, run
from nanort.compiled import COMPILES
from nanort.scheduling.problem import Problem, Solution
from nanort.scheduling.solving.exact import solve_exact
from nanort.scheduling.solving.genetic import Search
from nanort.scheduling.solving.solve import solve

BUDGETS = (1_000, 5_000)
GAPS = {30: (0.3, 0.1), 60: (1.1, 0.6), 120: (3.0, 2.0)}
"""By activities in one mode, the mean gap in percent that is aimed at with each of the budgets."""
MODES_GAP = 2.0
"""The same for problems in several modes, with the larger budget."""
RATES = {30: 150_000.0, 120: 30_000.0}
"""Schedules a second that are aimed at."""
GRIDS = ("j30", "j60", "j120", "m20")
LONG = 50_000
"""Schedules of the search that CP-SAT's solutions start from."""


@dataclass(frozen=True, slots=True)
class Known:
    """A problem and the best makespan that is known; ``proved`` if it is known to be optimal."""

    problem: Problem
    makespan: float
    proved: bool


def generated(grid: str, per_cell: int, seconds: float, cells: int | None) -> list[Known]:
    """A grid's problems, and for each the best that CP-SAT finds in so many seconds."""
    found = []
    for _, problem in islice(progen.grid(grid, per_cell), cells):
        best = solve(problem, policy="search", schedules=LONG, seed=1 << 20)
        if not best.optimal:
            best = solve_exact(problem, seconds, hint=best)
        found.append(Known(problem, best.makespan, best.optimal))
    return found


def read(folder: Path) -> dict[str, list[Known]]:
    """A folder's problems by how many activities they have."""
    found: dict[str, list[Known]] = {}
    with (folder / "best.csv").open(encoding="utf-8", newline="") as lines:
        best = {row[0]: float(row[1]) for row in csv.reader(lines) if len(row) > 1 and row[1][:1].isdigit()}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".sm", ".mm", ".rcp") and path.stem in best:
            problem = Problem.read(path)
            kind = "m" if max(map(len, (task.modes for task in problem.tasks))) > 1 else "j"
            known = Known(problem, best[path.stem], proved=False)
            found.setdefault(f"{kind}{len(problem.tasks) - 2}", []).append(known)
    return found


def gaps(name: str, known: Sequence[Known], seeds: int) -> Iterator[Row]:
    """The mean gap over the problems, once for every seed; beside it that of the priority rules."""
    yield Row(f"{name}: problems", "", Spread.of([len(known)]))
    yield Row(f"{name}: optima that are proved", "%", Spread.of([100 * float(np.mean([one.proved for one in known]))]))
    yield Row(f"{name}: gap of the priority rules", "%", Spread.of([_gap(known, policy="list")]))
    for at, schedules in enumerate(BUDGETS):
        found = [_gap(known, policy="search", schedules=schedules, seed=seed) for seed in range(seeds)]
        limit = GAPS.get(int(name[1:]), (None, None))[at] if name[0] == "j" else (None, MODES_GAP)[at]
        goal = None if limit is None else ("<=", limit)
        yield Row(f"{name}: gap after {schedules:,} schedules", "%", Spread.of(found), goal=goal)


def _gap(known: Iterable[Known], **options: object) -> float:
    return 100 * float(np.mean([_checked(one.problem, **options).makespan / one.makespan - 1 for one in known]))


def _checked(problem: Problem, **options: object) -> Solution:
    solution = solve(problem, **options)  # type: ignore[arg-type]  # options of solve, handed on
    problem.check(solution)
    return solution


def rates(name: str, known: Sequence[Known], schedules: int) -> Iterator[Row]:
    """Schedules for a second of one core, problem by problem; what is compiled once is left out."""
    found = []
    for one in known:
        for budget in (100, schedules):
            search = Search(one.problem.arrays, 0.0, budget, math.inf, seed=0)  # no makespan ends it
            began = process_time()
            search.run()
            seconds = process_time() - began
        found.append(search.schedules / seconds)
    limit = RATES.get(int(name[1:])) if name[0] == "j" and COMPILES else None
    goal = None if limit is None else (">=", limit)
    how = "compiled" if COMPILES else "numba is absent"
    yield Row(f"{name}: schedules a second of a core, {how}", "1/s", Spread.of(found), goal=goal)


def measure(options: argparse.Namespace, quick: bool) -> list[Row]:
    """The rows of every grid, or of the files."""
    rows = []
    if options.files:
        every = iter(read(options.files).items())
    else:
        cells, grids = (2, GRIDS[:1]) if quick else (None, options.grids)
        every = ((grid, generated(grid, options.per_cell, options.reference_seconds, cells)) for grid in grids)
    for name, known in every:
        rows += [*gaps(name, known, 1 if quick else 3), *rates(name, known[:: max(1, len(known) // 12)], 5_000)]
    return rows


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Prints the table; see benchmarks/__init__.py for the options, of which these are its own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_rcpsp", add_help=False)
    parser.add_argument("--per-cell", type=int, default=1, help="problems for each cell of the grids")
    parser.add_argument("--reference-seconds", type=float, default=20.0, help="CP-SAT's time for each")
    parser.add_argument("--grids", nargs="+", choices=GRIDS, default=GRIDS, help="which of them")
    parser.add_argument("--files", type=Path, metavar="FOLDER", help="problems to solve instead, and best.csv")
    options, rest = parser.parse_known_args(argv)
    return run("bench_rcpsp", functools.partial(measure, options), rest)


if __name__ == "__main__":
    main()
