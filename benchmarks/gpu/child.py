"""One part in a process of its own: ``python -m benchmarks.gpu.child MODULE DRIVER SCALE FILE``.

Writes a line of JSON for each row as soon as it is known, so that nothing is lost when a later one fails, and then one
about the GPU: without it the part did not come to its end.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import torch

import nanort.driver


def main(module: str, driver: str, scale: str, file: str) -> None:
    """Measures a module; ``driver`` is the ``module:function`` that makes what it runs on."""
    # What falls back to something slower is not to be measured; planning may be slow, where numba refuses this numpy.
    warnings.filterwarnings("error", module=r"nanort\.runtime\.")
    home, _, make = driver.partition(":")
    made = getattr(importlib.import_module(home), make)()
    nanort.driver.current = lambda: made  # what executors run on
    with Path(file).open("w", encoding="utf-8") as out, torch.no_grad():
        for row in importlib.import_module(module).measure(made, float(scale)):
            print(json.dumps(asdict(row)), file=out, flush=True)
        print(json.dumps({"gpu": {**made.facts()._asdict(), "clocks": made.clocks()}}), file=out)


if __name__ == "__main__":
    main(*sys.argv[1:])
