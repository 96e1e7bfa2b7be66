"""Random graphs that can be cut, cuts of them, and placements on streams: what must be right, not what is fast.

All arithmetic is on whole numbers modulo 251, so that a result is the same bits however a graph is cut and ordered, and
a value that is read too early shows for good.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch

import nanort as nr
from nanort import graphs, partition
from nanort.partition import Stream
from nanort.programs.program import Launch
from nanort.scheduling.schedule import Assignment, Outlook, Schedule
from nanort.scheduling.waits import waits

PRIME = 251
WIDTH = 4


def synthetic(seed: int) -> tuple[nr.Graph, dict[str, torch.Tensor]]:
    """A graph of up to 30 nodes that nano_batch can cut, and tensors for it, rows in canonical order."""
    rng = random.Random(seed)
    nodes, variety = rng.randint(1, 30), rng.choice((0.3, 0.8))
    family: Callable[[], nr.Graph] = rng.choice(
        (
            lambda: graphs.synthetic.layered(nodes, seed, width=rng.randint(1, 6), variety=variety),
            lambda: graphs.synthetic.fork_join(nodes, seed, width=rng.randint(1, 4), variety=variety),
            lambda: graphs.synthetic.series_parallel(nodes, seed, variety=variety),
            lambda: graphs.synthetic.llm_like(nodes, seed, variety=variety),
        )
    )
    graph = family()
    return graph, graphs.synthetic.tensors(graph, seed)


# Ragged batches: rows of several requests that read what earlier rows of theirs have stored.


def _linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (x @ weight + 1) % PRIME


def _append(
    kv: torch.Tensor,
    x: torch.Tensor,
    requests: torch.Tensor,
    positions: torch.Tensor,
    *,
    layout: nr.Layout | None = None,
) -> None:
    kv[requests, positions] = x


def _attend(
    q: torch.Tensor,
    kv: torch.Tensor,
    requests: torch.Tensor,
    positions: torch.Tensor,
    *,
    layout: nr.Layout | None = None,
) -> torch.Tensor:
    """Each row's tokens up to its own, the first counted once, the second twice, and so on."""
    tokens = torch.arange(kv.shape[1], device=q.device)
    seen = torch.where(tokens <= positions[:, None], tokens + 1, 0).to(q.dtype)
    return (q + (seen[:, :, None] * kv[requests]).sum(1)) % PRIME


def _rows(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return x[index]


WORK = nr.Demand(flops=1e9, hbm_bytes=1e6)
linear = nr.op(demand=WORK, name="linear", example=(torch.arange(24.0).view(6, 4), torch.ones(4, 4)))(_linear)
append = nr.op(
    demand=WORK, name="append", writes=("kv",), cells={"kv": lambda layout, **_: layout.own_cells}, axes="rows"
)(_append)
decode_attend = nr.op(
    demand=WORK, name="decode_attend", cells={"kv": lambda layout, **_: layout.decode_cells}, axes="rows"
)(_attend)
prefill_attend = nr.op(
    demand=WORK, name="prefill_attend", cells={"kv": lambda layout, **_: layout.prefill_cells}, axes="rows"
)(_attend)
add = nr.op(demand=WORK, name="add", axes="rows")(lambda x, y: (x + y) % PRIME)
gather = nr.op(demand=WORK, name="gather", axes="whole")(_rows)


def ragged(seed: int) -> tuple[nr.Graph, dict[str, torch.Tensor]]:
    """A decoder's step in little: decode rows and prompts over caches; and tensors for it, rows in canonical order.

    Input ``last`` counts packed rows, so that it depends on the cut: see :func:`packed`.
    """
    rng = random.Random(seed)
    decode = [rng.randint(0, 5) for _ in range(rng.randint(0, 4))]  # tokens before the row, by request
    prompts = [nr.Segment(rng.randint(1, 7), rng.choice((0, 3))) for _ in range(rng.randint(0 if decode else 1, 3))]
    layout = nr.Layout(decode=len(decode), prefill=tuple(prompts), kv_tokens=sum(decode) + len(decode))
    positions = decode + [prompt.past + row for prompt in prompts for row in range(prompt.rows)]
    owners = [*range(len(decode)), *(len(decode) + k for k, prompt in enumerate(prompts) for _ in range(prompt.rows))]
    count = len(decode) + len(prompts)
    graph = nr.Graph(f"ragged-{seed}", layout=layout)
    x = graph.input("x", (layout.rows, WIDTH), torch.float64, batch=0)
    requests = graph.input("requests", (layout.rows,), torch.int64, batch=0)
    position = graph.input("positions", (layout.rows,), torch.int64, batch=0)
    last = graph.input("last", (count,), torch.int64)
    for layer in range(rng.randint(1, 3)):
        with graph.scope(layer=layer):
            weight = graph.constant(f"w{layer}", (WIDTH, WIDTH), torch.float64)
            kv = graph.state(f"kv{layer}", (count, max(positions) + 1, WIDTH), torch.float64)
            y = linear(x, weight)
            append(kv, y, requests, position)
            (q0, q1), (r0, r1), (p0, p1) = map(graph.split, (y, requests, position))
            x = add(x, graph.join(decode_attend(q0, kv, r0, p0), prefill_attend(q1, kv, r1, p1)))
    graph.output(x=x, last=gather(x, last))
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        root.name: torch.randint(PRIME, root.shape, generator=generator).to(root.dtype)
        for root in graph.roots
        if root.kind in ("input", "constant", "state")
    }
    ends = {owner: row for row, owner in enumerate(owners)}
    given = {"requests": owners, "positions": positions, "last": [ends[owner] for owner in range(count)]}
    return graph, tensors | {name: torch.tensor(rows, dtype=torch.int64) for name, rows in given.items()}


# Floating point, where the bits of a result depend on how it was computed.

MIX = (
    ("tanh", "rows", torch.tanh),
    ("softmax", "rows", lambda x: x.softmax(-1)),
    ("norm", "rows", lambda x: torch.nn.functional.layer_norm(x, x.shape[1:])),
    ("scan", "whole", lambda x: (x - x.mean(0)).cumsum(0) + (x.T @ x).sum() / x.numel()),
)


def floats(seed: int) -> tuple[nr.Graph, dict[str, torch.Tensor]]:
    """Matrix products of odd sizes, norms and sums; and tensors for them. Equal to eager only for the same cut."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    rows, widths = rng.randint(2, 40), [rng.choice((1, 3, 7, 13, 33, 65, 129)) for _ in range(6)]
    graph = nr.Graph(f"floats-{seed}", layout=nr.Layout(prefill=rows))
    x = graph.input("x", (rows, widths[0]), torch.float32, batch=0)
    tensors = {"x": torch.randn(rows, widths[0], generator=generator)}
    for layer, (k, n) in enumerate(pairwise(widths)):
        weight = graph.constant(f"w{layer}", (k, n), torch.float32)
        tensors[f"w{layer}"] = torch.randn(k, n, generator=generator) / k**0.5
        y = graph.call(torch.matmul, x, weight, demand=WORK, axes="rows")
        name, axes, function = rng.choice(MIX)
        y = graph.call(function, y, demand=WORK, axes=axes, name=f"{name}{layer}")
        x = graph.call(torch.add, y, x[:, :1], demand=WORK, axes="rows") if axes == "rows" else y
    graph.output(y=x)
    return graph, tensors


Family = Callable[[int], tuple[nr.Graph, dict[str, torch.Tensor]]]
FAMILIES: tuple[Family, ...] = (synthetic, ragged, floats)

# Cuts and placements.


def cut(graph: nr.Graph, rng: random.Random) -> nr.Graph:
    """``graph`` in up to 4 pieces of random sizes, some operators in other counts."""
    assert graph.layout is not None
    rows, count = graph.layout.rows, rng.randint(1, 4)
    ends = sorted(rng.randint(0, rows) for _ in range(count - 1))
    sizes = [high - low for low, high in zip([0, *ends], [*ends, rows], strict=True)]
    pieces = sum(size > 0 for size in sizes)
    counts = {
        node.op.name: pieces * rng.randint(1, 3) if node.op.takes_layout else rng.randint(1, 5)
        for node in graph.nodes
        if rng.random() < 0.3
    }
    return nr.nano_batch(graph, sizes, counts)


def packed(graph: nr.Graph, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Fresh copies of ``tensors`` with their rows in the order of ``graph``, a cut one."""
    assert graph.layout is not None
    batches = {root.name for root in graph.roots if root.batch is not None}
    ordered = {name: graph.layout.pack(t) if name in batches else t.clone() for name, t in tensors.items()}
    if "last" in tensors:
        ordered["last"] = graph.layout.unpack(torch.arange(graph.layout.rows))[tensors["last"]]
    return ordered


def unpacked(graph: nr.Graph, name: str, output: torch.Tensor) -> torch.Tensor:
    """An output of a cut graph with its rows in canonical order, if it has those of the step."""
    assert graph.layout is not None
    return graph.layout.unpack(output) if len(output) == graph.layout.rows and name != "last" else output


def streams(device: nr.Device, rng: random.Random, most: int = 4) -> tuple[Stream, ...]:
    """Up to ``most`` streams, and copy engines: groups apart, some beside the whole device, or lanes that share it."""
    count = rng.randint(1, most)
    grain = device.sm_granularity
    apart = partition.split(device, [max(grain, device.sm_minimum)] * min(count, device.partitionable_sms // grain))
    groups = rng.choice((apart, (*apart[: most - 1], partition.whole(device)), (partition.whole(device, lanes=count),)))
    return partition.streams(groups, rng.choice(((), partition.ENGINES)))


def placed(graph: nr.Graph, rng: random.Random, device: nr.Device | None = None, most: int = 4) -> Schedule:
    """A valid schedule that nobody would want: a random order, every node on a random stream that may carry it."""
    device = device or nr.device("h200")
    available = streams(device, rng, most)
    fits = [
        [k for k, s in enumerate(available) if s.engine in ("", node.demand.engine) and node.span[0] <= s.sms]
        for node in graph.nodes
    ]
    return schedule(graph, available, [rng.choice(lanes) for lanes in fits], _order(graph, rng), device)


def schedule(
    graph: nr.Graph,
    available: Sequence[Stream],
    lane: Sequence[int],
    order: Sequence[int] | None = None,
    device: nr.Device | None = None,
) -> Schedule:
    """The nodes in ``order`` (as written) one after the other, each on its lane of the ``available`` streams."""
    device, order = device or nr.device("h200"), order or range(len(graph.nodes))
    assignments = []
    for place, index in enumerate(order):
        node, stream = graph.nodes[index], available[lane[index]]
        sms = stream.sms if node.span[1] is None else min(stream.sms, node.span[1])
        assignments.append(Assignment(index, node.name, stream.name, sms, "reference", float(place), place + 1.0))
    return Schedule(
        source=graph,
        split=None,
        graph=graph,
        device=device,
        mechanism="random",
        streams=tuple(available),
        assignments=tuple(assignments),
        waits=waits(graph, available, order, lane),
        outlooks=(Outlook(device.hbm_saturation_sms[0], float(len(order)), float(len(order))),),
    )


def _order(graph: nr.Graph, rng: random.Random) -> list[int]:
    """The nodes in a random order that keeps all edges."""
    left = [len(node.preds) for node in graph.nodes]
    successors: list[list[int]] = [[] for _ in graph.nodes]
    for node in graph.nodes:
        for pred, _ in node.preds:
            successors[pred].append(node.index)
    ready, order = [index for index, count in enumerate(left) if not count], list[int]()
    while ready:
        order.append(ready.pop(rng.randrange(len(ready))))
        for successor in successors[order[-1]]:
            left[successor] -= 1
            if not left[successor]:
                ready.append(successor)
    return order


# Runs.


def by_kind(graph: nr.Graph, tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], ...]:
    """The inputs, constants and states among ``tensors``."""
    kinds = ("input", "constant", "state")
    return tuple({root.name: tensors[root.name] for root in graph.roots if root.kind == kind} for kind in kinds)


def slowed(program: nr.Program, rng: random.Random) -> nr.Program:
    """The program with a sleep of up to a millisecond before every other operator."""

    def late(seconds: float, reference: Callable[..., Any], *args: Any, **static: Any) -> Any:
        time.sleep(seconds)
        return reference(*args, **static)

    def slow(step: Launch) -> Launch:
        reference = partial(late, 1e-3 * rng.random(), step.op.reference)
        return replace(step, op=replace(step.op, reference=reference)) if rng.random() < 0.5 else step

    return replace(program, instructions=tuple(slow(i) if isinstance(i, Launch) else i for i in program.instructions))


def compare_with_eager(schedule: Schedule, tensors: dict[str, torch.Tensor], rng: random.Random, runs: int = 2) -> None:
    """Runs a slowed schedule several times, states going on from run to run, and asserts eager's bits."""
    reference, given = ({name: t.clone() for name, t in tensors.items()} for _ in range(2))
    inputs, constants, states = by_kind(schedule.graph, given)
    found, expected = [], []
    with nr.Executor(slowed(nr.lower(schedule), rng), constants=constants, states=states, backend="cpu") as run:
        for _ in range(runs):
            expected.append(schedule.graph.eager(**reference))
            found.append(run(**inputs))
    for outputs, answers in zip(found, expected, strict=True):
        assert outputs.keys() == answers.keys()
        for name, answer in answers.items():
            assert torch.equal(outputs[name], answer), f"{schedule.source.name}: output {name}"
    for name, tensor in given.items():
        assert torch.equal(tensor, reference[name]), f"{schedule.source.name}: {name} after {runs} runs"
