"""The command line; see the package."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu.runner import PARTS, ROOT, Part, Result, run
from benchmarks.measure import machine

REAL = "nanort.driver:current"


def main(argv: Sequence[str] | None = None, known: Sequence[Part] = PARTS, *, module: str = "gpu") -> int:
    """Runs parts, prints their tables and saves what they found; 0 if all came to their end, goals met or not."""
    command = f"python -m benchmarks.{module}"
    parser = argparse.ArgumentParser(prog=command)
    names = [part.name for part in known]
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(names)}; all without any")
    parser.add_argument("--budget", type=float, default=420.0, metavar="SECONDS", help="for all parts")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="below 1, to see that it runs: the numbers mean nothing"
    )
    parser.add_argument(
        "--driver", default=REAL, metavar="MODULE:FUNCTION", help="what makes the driver that parts are given"
    )
    parser.add_argument("--save", type=Path, metavar="FILE", help="not a file of benchmarks/results")
    options = parser.parse_args(argv)
    if unknown := sorted(set(options.parts) - set(names)):
        parser.error(f"there is no part {', '.join(unknown)}: give some of {', '.join(names)}")
    if options.driver == REAL and not torch.cuda.is_available():
        parser.error("torch sees no GPU")
    about = {"command": command, "scale": options.scale, "machine": machine()}
    where = options.save or ROOT / "benchmarks/results" / _file_name(module, about["machine"])
    parts = [part for part in known if part.name in (options.parts or names)]
    results = list[Result]()
    for result in run(parts, driver=options.driver, scale=options.scale, budget=options.budget):
        print(result, flush=True)
        results.append(result)
        found = {**about, "parts": [result.data for result in results]}
        where.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")  # each time: who knows what comes next
    failed = [result.name for result in results if result.failed]
    missed = [row.name for result in results for row in result.rows if row.met is False]
    print(
        f"\nin {where}\nparts that failed: {', '.join(failed) or 'none'}\ngoals missed: {'; '.join(missed) or 'none'}"
    )
    return 1 if failed else 0


def _file_name(module: str, where: dict[str, str | int | float]) -> str:
    """``h200-2026-11-22.json``, with the module's name before the date where it is not benchmarks.gpu."""
    gpu = re.sub(r"[^a-z0-9]+", "-", str(where.get("gpu", "")).lower().removeprefix("nvidia")).strip("-")
    return f"{gpu or 'none'}{'' if module == 'gpu' else f'-{module}'}-{where['date']}.json"


if __name__ == "__main__":
    sys.exit(main())
