"""A node that hangs or breaks the device, in a process that cannot go on: ``faulty.py hang`` or ``faulty.py fault``.

Prints a line for each of three things that are tried: the error's class, the node that it names, the first words.
"""

from __future__ import annotations

import sys
import time

import torch

import nanort as nr
from nanort.errors import ExecutionError

WORK = nr.Demand(hbm_bytes=1e6)
SPIN_CYCLES = 20_000_000_000
"""Ten seconds at 2 GHz: the process is gone before it ends."""


def spin(x: torch.Tensor) -> torch.Tensor:
    if x.is_cuda:
        torch.cuda._sleep(SPIN_CYCLES)
    return x + 1


def fault(x: torch.Tensor) -> torch.Tensor:
    if x.is_cuda:
        torch._assert_async(x.isnan().any(), "planted")
    return x + 1


def main(kind: str) -> None:
    graph = nr.Graph("faulty")
    x = graph.input("x", (1024,), torch.float32)
    x = graph.call(torch.neg, x, demand=WORK, name="before")
    x = graph.call(spin if kind == "hang" else fault, x, demand=WORK, name="culprit")
    graph.output(y=graph.call(torch.neg, x, demand=WORK, name="behind"))
    schedule = nr.co_schedule(graph, nr.Device.current(), policy="serial")
    given = torch.ones(1024, device="cuda")
    began = time.monotonic()
    with nr.Executor(schedule, backend="cuda", timeout=1.0) as run:
        for _ in range(2):
            tell(lambda: run(x=given))
    tell(lambda: nr.Executor(schedule, backend="cuda")(x=given))
    print(f"after {time.monotonic() - began:.0f} s")


def tell(call: object) -> None:
    try:
        call()
    except ExecutionError as error:
        print(type(error).__name__, error.node, "|", str(error)[:200].replace("\n", " "), flush=True)
    else:
        print("no error", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
