"""What running a schedule costs beside the same launches by hand in torch: the host eagerly, the device in a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

import torch

import nanort as nr
from benchmarks.bench_dispatch import NAMES, NODES, SHAPE, network
from benchmarks.gpu.by_hand import ByHand
from benchmarks.gpu.places import device_of
from benchmarks.gpu.races import CALLER, QUEUED, UNTIMED, fixed
from benchmarks.gpu.timing import device_seconds, finish, host_seconds, interleave, sized
from benchmarks.measure import Row, Spread, compared
from nanort.driver import Driver

HAND = "by hand in torch"
LANES = {"one stream": ("whole", "whole"), "two streams": ("whole", "whole.1")}
CALLS: dict[str, Callable[..., torch.Tensor]] = {
    "relu": partial(torch.clamp_min, min=0),
    "add": torch.add,
    "maximum": torch.maximum,
}
"""What is called by hand, with ``out=``."""


def relu(x: torch.Tensor, *, out: torch.Tensor, scratch: None, sms: int) -> None:
    """A kernel that writes to where its result belongs, which a reference cannot."""
    CALLS["relu"](x, out=out)


def add(x: torch.Tensor, y: torch.Tensor, *, out: torch.Tensor, scratch: None, sms: int) -> None:
    """See :func:`relu`."""
    CALLS["add"](x, y, out=out)


def maximum(x: torch.Tensor, y: torch.Tensor, *, out: torch.Tensor, scratch: None, sms: int) -> None:
    """See :func:`relu`."""
    CALLS["maximum"](x, y, out=out)


REFERENCES: dict[str, Callable[..., torch.Tensor]] = {"relu": torch.relu, "add": torch.add, "maximum": torch.maximum}
OPS = {
    name: nr.op(demand=nr.Demand(hbm_bytes=1e3), axes="rows", name=name, kernels={"out": f"{__name__}:{name}"})(call)
    for name, call in REFERENCES.items()
}


def graph_of(blocks: int, lanes: tuple[str, str]) -> nr.Graph:
    """The network of bench_dispatch, the right half of every fan on the second stream; nothing is an input."""
    graph = nr.Graph("network")

    def pinned(op: nr.Op) -> Callable[..., nr.Value]:
        return lambda *args: graph.call(op, *args, stream=lanes[len(graph.nodes) % NODES in (5, 6, 7, 8)])

    values = [graph.constant(name, SHAPE, torch.float32) for name in NAMES]
    graph.output(y=network(*values, blocks=blocks, **{name: pinned(op) for name, op in OPS.items()}))
    return graph


def measure(driver: Driver, scale: float) -> Iterator[Row]:
    """200 small nodes, whose launches are all there is to them; what a run costs besides is shared by its nodes."""
    blocks, device = sized(20, scale), device_of(driver)
    tensors = {name: torch.randn(SHAPE, device=driver.device) for name in NAMES}
    for how, lanes in LANES.items():
        plan = fixed(graph_of(blocks, lanes), device)
        hand = ByHand(nr.lower(plan), CALLS, tensors)
        with ExitStack() as stack:
            eager, graph = (
                stack.enter_context(nr.Executor(plan, constants=tensors, backend="cuda", capture=capture, trace=False))
                for capture in (False, True)
            )
            for run in (eager, graph) * UNTIMED:
                _refuse_unlike(driver, run()["y"], hand)
            found = interleave(
                {
                    "eager": partial(host_seconds, driver, CALLER, eager),
                    f"eager {HAND}": partial(host_seconds, driver, CALLER, hand),
                    "captured": partial(device_seconds, driver, CALLER, graph, QUEUED),
                    f"captured {HAND}": partial(device_seconds, driver, CALLER, hand.captured(), QUEUED),
                },
                scale,
            )
        for what, unit, most in (("eager", "host s/node", 1.3), ("captured", "device s/node", 1.02)):
            ours, theirs = (found[name] / (NODES * blocks) for name in (what, f"{what} {HAND}"))
            yield Row(f"{what}, {how}, {HAND}", unit, Spread.of(theirs))
            yield compared(f"{what}, {how}, nanort", ours, HAND, theirs, unit=unit, goal=(">=", 1 / most))


def _refuse_unlike(driver: Driver, y: torch.Tensor, hand: ByHand) -> None:
    hand()
    finish(driver, CALLER)
    if not torch.equal(y, hand.y):
        raise AssertionError("by hand something else is computed")
