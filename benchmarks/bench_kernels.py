"""Kernels beside their best public peers: the parts of benchmarks.gpu that are about them.

What each part compares, and its goals, is in benchmarks/gpu/kernel_*.py; docs/measured.md says what they found.
"""

from __future__ import annotations

import sys

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.runner import PARTS

KERNELS = tuple(part for part in PARTS if part.name.startswith("kernel_"))

if __name__ == "__main__":
    sys.exit(main(known=KERNELS, module="bench_kernels"))
