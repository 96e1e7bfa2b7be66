"""What a node costs beside its arithmetic: nanort, torch.fx and dask over a plain loop of the same calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import fx

import nanort as nr
from benchmarks.measure import Rounds, Row, Spread, compared, interleave, run

SHAPE = (8, 16)
NODES = 10  # of a block
NAMES = ("x", "a", "b", "c", "d")
CPU = nr.device("cpu").with_(sms=2, hbm_saturation_sms=(2, 2))
CALLS: dict[str, Callable[..., Any]] = {"relu": torch.relu, "add": torch.add, "maximum": torch.maximum}
OPS = {name: nr.op(demand=nr.Demand(hbm_bytes=1e3), axes="rows")(call) for name, call in CALLS.items()}
LOOP, FX, DASK = "loop", "torch.fx.Interpreter", "dask, threads"


def network(
    x: Any, a: Any, b: Any, c: Any, d: Any, *, blocks: int, relu: Any = torch.relu, add: Any = torch.add,
    maximum: Any = torch.maximum,
) -> Any:  # fmt: skip  # its arguments in one line
    """A chain of fans, ten nodes a block; the constants are what the branches of a fan add."""
    for _ in range(blocks):
        x = relu(x)
        left = maximum(relu(add(x, a)), add(x, b))
        right = maximum(add(x, c), relu(add(x, d)))
        x = maximum(left, right)
    return x


def network_graph(blocks: int, streams: tuple[str | None, str | None]) -> nr.Graph:
    """The network as nanort sees it, the right half of every fan on the second of two streams."""
    graph = nr.Graph("network")

    def pinned(op: nr.Op) -> Callable[..., nr.Value]:
        return lambda *args: graph.call(op, *args, stream=streams[len(graph.nodes) % NODES in (5, 6, 7, 8)])

    values = [graph.input(name, SHAPE, torch.float32) for name in NAMES]
    graph.output(y=network(*values, blocks=blocks, **{name: pinned(op) for name, op in OPS.items()}))
    return graph


def chain_graph(nodes: int, streams: Sequence[str]) -> nr.Graph:
    """A chain whose nodes take the streams in turn."""
    graph = nr.Graph("chain")
    value = graph.input("x", SHAPE, torch.float32)
    for node in range(nodes):
        value = graph.call(OPS["relu"], value, stream=streams[node % len(streams)])
    graph.output(y=value)
    return graph


def on_two_streams(graph: nr.Graph) -> nr.Schedule:
    """The schedule that the pins of a graph ask for."""
    return nr.co_schedule(graph, CPU, policy="list", nano_batches=(1,))


def dask_variant(blocks: int, tensors: Sequence[torch.Tensor]) -> Callable[[], Any]:
    """The network under dask's threaded scheduler, its graph made beforehand, as nanort's is."""
    from dask.delayed import delayed
    from dask.threaded import get

    calls = {name: delayed(call, pure=False, traverse=False) for name, call in CALLS.items()}
    last = network(*tensors, blocks=blocks, **calls)
    return partial(get, dict(last.__dask_graph__()), last.key, num_workers=2)


@torch.no_grad()
def measure(quick: bool) -> list[Row]:
    """Every variant in every round; an overhead is the difference to the loop of that round."""
    blocks, rounds = (5, 3) if quick else (100, 300)
    nodes = NODES * blocks
    tensors = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0)).unbind()
    serial = nr.co_schedule(network_graph(blocks, (None, None)), CPU, policy="serial")
    beside = on_two_streams(network_graph(blocks, ("g0", "g1")))

    def loop(x: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
        return network(x, a, b, c, d, blocks=blocks)

    interpreter = fx.Interpreter(fx.symbolic_trace(loop))
    variants: dict[str, Callable[[], Any]] = {LOOP: partial(loop, *tensors), FX: partial(interpreter.run, *tensors)}
    if find_spec("dask"):
        variants[DASK] = dask_variant(blocks, tensors)
    with ExitStack() as stack:

        def runs(schedule: nr.Schedule, trace: bool = False) -> nr.Executor:
            return stack.enter_context(nr.Executor(schedule, backend="cpu", trace=trace))

        given = dict(zip(NAMES, tensors, strict=True))
        for name, schedule in (("nanort, serial", serial), (f"nanort, two streams, {len(beside.waits)} waits", beside)):
            for how, trace in ((", timeline off", False), (", timeline on", True)):
                variants[name + how] = partial(runs(schedule, trace), **given)
        _same(variants)
        hops = {
            name: partial(runs(on_two_streams(chain_graph(nodes, name))), x=tensors[0])
            for name in (("g0",), ("g0", "g1"))
        }
        found = interleave({**variants, **{"+".join(name): hop for name, hop in hops.items()}}, rounds, tries=5)
    return _rows(found, nodes)


def _same(variants: dict[str, Callable[[], Any]]) -> None:
    """Raises where a variant does not compute what the loop does."""
    for name, variant in variants.items():
        found = variant()
        if not torch.equal(found["y"] if isinstance(found, dict) else found, variants[LOOP]()):
            raise AssertionError(f"{name} does not compute what the loop does")


def _rows(rounds: Rounds, nodes: int) -> list[Row]:
    seconds = dict(rounds.seconds)
    wait = (seconds.pop("g0+g1") - seconds.pop("g0")) / (nodes - 1) * 1e6
    loop = seconds.pop(LOOP)
    overhead = {name: (samples - loop) / nodes * 1e6 for name, samples in seconds.items()}
    theirs = overhead.pop(FX)
    goals = {"nanort, serial, timeline off": (">=", 2.0)}
    return [
        Row("the loop itself", "us/node", Spread.of(loop / nodes * 1e6)),
        Row(f"{FX}, over the loop", "us/node", Spread.of(theirs)),
        *(
            compared(f"{name}, over the loop", found, FX, theirs, unit="us/node", goal=goals.get(name))
            for name, found in overhead.items()
        ),
        Row("nanort, a wait for the other stream", "us/wait", Spread.of(wait)),
        Row("other processes' share of the cores", "%", Spread.of(100 * rounds.others)),
    ]


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Prints the table; see benchmarks/__init__.py for the options."""
    return run("bench_dispatch", measure, argv)


if __name__ == "__main__":
    main()
