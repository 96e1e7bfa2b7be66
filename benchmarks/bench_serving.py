"""Serving: SmolLM2 on this CPU beside transformers, LLaMA-3-8B on a simulated H200, and an hour of arrivals replayed.

``--arrivals FILE`` takes the hour from a csv file with the columns of the Azure traces instead of drawing one like it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import torch

from benchmarks import serving_here, serving_simulated
from benchmarks.measure import Row, run


def measure(trace: str | None, quick: bool) -> list[Row]:
    """All rows."""
    return [
        *serving_here.rows(quick, torch.float32),
        *serving_here.rows(quick, torch.bfloat16),
        *serving_simulated.ablation(quick),
        *serving_simulated.hour(quick, trace),
    ]


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Prints the table; see benchmarks/__init__.py for the options."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--arrivals", metavar="FILE")
    own, rest = parser.parse_known_args(argv)
    return run("bench_serving", partial(measure, own.arrivals), rest)


if __name__ == "__main__":
    main()
