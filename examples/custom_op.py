"""An operator of your own: what it computes, what it asks of a device, and what nano_batch proves about it."""

from __future__ import annotations

import torch

import nanort as nr
from nanort.errors import SplitError

ROWS, WIDTH = 4096, 8192


@nr.op(
    demand=lambda x, *, out: nr.Demand(flops=2 * x.numel(), hbm_bytes=x.nbytes + out.nbytes),
    example=(torch.linspace(-1, 1, 12).reshape(4, 3),),
)
def squared_relu(x: torch.Tensor) -> torch.Tensor:
    """The function is the meaning, the shape rule and the CPU path; it returns a fresh tensor."""
    return x.relu().square()


@nr.op(
    demand=lambda x, *, out: nr.Demand(flops=2 * x.numel(), hbm_bytes=x.nbytes + out.nbytes),
    example=(torch.linspace(-1, 1, 12).reshape(4, 3),),
)
def centred(x: torch.Tensor) -> torch.Tensor:
    """Subtracts the mean of the batch: its shapes would let it be cut, its numbers do not."""
    return x - x.mean(dim=0)


@nr.op(
    demand=lambda total, x, *, out: nr.Demand(flops=x.numel(), hbm_bytes=x.nbytes),
    writes=("total",),
    example=(torch.zeros(3), torch.linspace(-1, 1, 12).reshape(4, 3)),
)
def add_up(total: torch.Tensor, x: torch.Tensor) -> None:
    """Changes ``total`` in place, so the graph orders it before and after whoever else touches that state."""
    total += x.sum(dim=0)


def cuttable() -> nr.Graph:
    """Three operators, each with its proof or with someone who vouches for it."""
    g = nr.Graph("cuttable")
    y = squared_relu(g.input("x", (ROWS, WIDTH), torch.bfloat16, batch=0))
    add_up(g.state("total", (WIDTH,), torch.bfloat16), y)
    # Any torch function becomes an operator where it is called; axes="rows" vouches for what no example= proves.
    work = nr.Demand(flops=5 * ROWS * WIDTH, hbm_bytes=4 * ROWS * WIDTH)
    g.output(y=g.call(torch.softmax, y, dim=-1, demand=work, axes="rows"))
    return g


def uncuttable() -> nr.Graph:
    """An operator whose rows depend on one another."""
    g = nr.Graph("uncuttable")
    g.output(y=centred(g.input("x", (ROWS, WIDTH), torch.bfloat16, batch=0)))
    return g


def pinned() -> nr.Graph:
    """What an expert may fix: a duration that was measured, the SMs of a call, an order that no data says."""
    g = nr.Graph("pinned")
    x = g.input("x", (ROWS, WIDTH), torch.bfloat16)
    slow = squared_relu(x, name="slow")
    measured = nr.Demand.rigid(seconds=40e-6, sms=16, hbm=0.3)  # what a profiler said: duration, SMs, share of HBM
    beside = g.call(torch.neg, x, demand=measured, name="beside")
    last = g.call(squared_relu, x, name="last", sms=(8, 32), after=(slow, "beside"))  # no data says so, the user does
    g.output(slow=slow, beside=beside, last=last)
    return g


def show(graph: nr.Graph) -> None:
    """Prints every node with its demand and what it runs after."""
    print(graph)
    for node in graph.nodes:
        waits = ", ".join(f"{graph.nodes[pred].name} ({reason})" for pred, reason in node.preds)
        print(f"  {node.name:14} {node.demand}{f' after {waits}' if waits else ''}")


def main() -> None:
    """Cuts the first graph, fails to cut the second, and schedules the third for an H200."""
    show(cuttable())
    show(nr.nano_batch(cuttable(), 2))
    try:
        nr.nano_batch(uncuttable(), 2)
    except SplitError as error:
        print(f"\n{type(error).__name__}: {error}\n")
    show(pinned())
    print(nr.co_schedule(pinned(), nr.device("h200")))


if __name__ == "__main__":
    main()
