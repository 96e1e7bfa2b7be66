"""Seeded families of random DAGs with small real tensors, on which schedulers and executors are tried.

Every operator is of graphs/modular.py, so results are exact. A graph of ``n`` nodes has exactly so many.

>>> graph = layered(1000, seed=7)
>>> graph
Graph layered-1000-7: 1000 nodes, 1527 edges, 4 inputs, 4 constants, 8 states, 7 outputs
>>> outputs = graph.eager(**tensors(graph, seed=7))
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch

import nanort as nr
from nanort.errors import GraphError, InputDtypeError
from nanort.graphs.modular import PRIME, WORK, affine, combine, download, matmul, multiply, recall, upload, write

ROWS, DECODE, WIDTH = 16, 6, 16  # of every value: rows, those of them that g.split calls decode, columns
MEMORY_ROWS = 32  # of a state


def layered(
    n: int,
    seed: int = 0,
    *,
    width: int = 8,
    fan_in: int = 2,
    spread: float = 4.0,
    variety: float = 0.3,
    cuttable: bool = True,
) -> nr.Graph:
    """``n`` nodes in layers of about ``width``; each reads up to ``fan_in`` (at most 16) values of the layer before.

    The arguments of all families: sizes of nodes go from 1/``spread`` to ``spread``; ``variety`` is the share of steps
    that are no plain operator, but slices, a split and a join, a state changed in place, or a transfer and back; a
    graph that is ``cuttable`` has no slices along the batch, so that nano_batch can cut it.
    """
    _refuse(width >= 1 and 1 <= fan_in <= 16, "width of at least 1, fan_in of 1 to 16", width=width, fan_in=fan_in)
    maker = _Maker(f"layered-{n}-{seed}", n, seed, spread, variety, cuttable)
    layer = [maker.input() for _ in range(min(width, 4))]
    while maker.room:
        layer = [maker.step(*maker.some(layer, k, fan_in)) for k in range(width) if maker.room]
    return maker.finish()


def _refuse(fits: bool, wanted: str, **given: float) -> None:
    if not fits:
        raise GraphError(f"a family of graphs needs {wanted}: got {given}")


def fork_join(
    n: int,
    seed: int = 0,
    *,
    width: int = 4,
    depth: int = 2,
    spread: float = 4.0,
    variety: float = 0.3,
    cuttable: bool = True,
) -> nr.Graph:
    """``n`` nodes: a value feeds ``width`` (at most 16) chains of ``depth`` steps, whose ends make the next value.

    See :func:`layered` for the other arguments.
    """
    _refuse(1 <= width <= 16 and depth >= 1, "width of 1 to 16, depth of at least 1", width=width, depth=depth)
    maker = _Maker(f"fork_join-{n}-{seed}", n, seed, spread, variety, cuttable)
    value = maker.input()
    while maker.room:
        ends = []
        for _ in range(width):
            end = value
            for _ in range(depth):
                end = maker.step(end, spare=1)
            ends.append(end)
        value = maker.node(combine, *ends)
    return maker.finish()


def series_parallel(
    n: int, seed: int = 0, *, parallel: float = 0.5, spread: float = 4.0, variety: float = 0.3, cuttable: bool = True
) -> nr.Graph:
    """``n`` nodes put together in series, or with the chance ``parallel`` side by side, again and again.

    See :func:`layered` for the other arguments.
    """
    _refuse(0 <= parallel <= 1, "parallel of 0 to 1", parallel=parallel)
    maker = _Maker(f"series_parallel-{n}-{seed}", n, seed, spread, variety, cuttable)

    def build(value: nr.Value, nodes: int) -> nr.Value:
        """``nodes`` nodes that make a value of this one; halves are even enough to bound the recursion."""
        if nodes <= 3:
            goal = len(maker.graph.nodes) + nodes
            while len(maker.graph.nodes) < goal:
                value = maker.step(value, spare=maker.n - goal)
            return value
        beside = maker.rng.random() < parallel
        first = maker.rng.randint(nodes // 4 + 1, nodes // 2)
        second = nodes - first - beside
        if beside:
            return maker.node(combine, build(value, first), build(value, second))
        return build(build(value, first), second)

    build(maker.input(), n)
    return maker.finish()


def llm_like(n: int, seed: int = 0, *, spread: float = 4.0, variety: float = 0.3, cuttable: bool = True) -> nr.Graph:
    """``n`` nodes in layers of a decoder's shape, a cache written and read in each and pages moved beside it.

    See :func:`layered` for the other arguments.
    """
    maker = _Maker(f"llm_like-{n}-{seed}", n, seed, spread, variety, cuttable)
    graph, node, value, layer = maker.graph, maker.node, maker.input(), 0
    while maker.room >= 10:
        with graph.scope(layer=layer):
            cache = maker.memory(f"cache.{layer}")
            moved = node(download, value)
            qkv = node(matmul, value, maker.weight(), kind="compute")
            node(write, cache[:ROWS], qkv, kind="memory")
            decode, prefill = graph.split(qkv)
            attention = graph.join(
                node(recall, decode, cache[:ROWS], kind="memory"), node(recall, prefill, cache, kind="compute")
            )
            value = node(combine, value, node(matmul, attention, maker.weight(), kind="compute"), kind="memory")
            value = node(matmul, value, maker.weight(), kind="compute")
            node(write, cache[ROWS:], node(upload, moved), kind="memory")
        layer += 1
    while maker.room:
        value = maker.step(value)
    return maker.finish()


def random_dag(seed: int, n: int | None = None) -> nr.Graph:
    """A graph of one of the families, of up to 40 nodes unless ``n`` says how many, all of it chosen by ``seed``."""
    rng = random.Random(seed)
    nodes = rng.randint(1, 40) if n is None else n
    width = rng.randint(1, 8)
    common: dict[str, Any] = {
        "spread": rng.choice((1.0, 4.0, 16.0)),
        "variety": rng.choice((0.0, 0.3, 0.8)),
        "cuttable": rng.random() < 0.8,
    }
    family: Callable[[], nr.Graph] = rng.choice(
        (
            lambda: layered(nodes, seed, width=width, fan_in=rng.randint(1, 4), **common),
            lambda: fork_join(nodes, seed, width=width, depth=rng.randint(1, 4), **common),
            lambda: series_parallel(nodes, seed, parallel=rng.random(), **common),
            lambda: llm_like(nodes, seed, **common),
        )
    )
    return family()


def tensors(graph: nr.Graph, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random inputs, constants and states for a synthetic graph: whole numbers below 251.

    Raises:
        InputDtypeError: the graph takes integers: nothing says which would be valid.
    """
    roots = [root for root in graph.roots if root.kind in ("input", "constant", "state")]
    if integers := [repr(root) for root in roots if not root.dtype.is_floating_point]:
        raise InputDtypeError(f"nothing says which numbers {', '.join(integers)} may hold: make these tensors yourself")
    generator = torch.Generator().manual_seed(seed)
    return {root.name: torch.randint(0, PRIME, root.shape, generator=generator).to(root.dtype) for root in roots}


class _Maker:
    """Makes the nodes of one graph, ``n`` of them, at random."""

    def __init__(self, name: str, n: int, seed: int, spread: float, variety: float, cuttable: bool) -> None:
        if n < 1 or spread < 1 or not 0 <= variety <= 1:
            raise GraphError(f"{name}: n={n} and spread={spread} must be 1 or more, variety={variety} from 0 to 1")
        self.graph = nr.Graph(name, layout=nr.Layout(decode=DECODE, prefill=ROWS - DECODE))
        self.rng = random.Random(seed)
        self.n = n
        self.sizes = [spread ** (power / 2) for power in range(-2, 3)]  # few, so that inference is cached
        self.variety = variety
        self.motifs = [self._there_and_back, self._columns, self._split, self._remember]
        if not cuttable:
            self.motifs.append(self._rows)
        self.roots: dict[str, nr.Value] = {}

    @property
    def room(self) -> int:
        """How many nodes are still to be made."""
        return self.n - len(self.graph.nodes)

    def input(self) -> nr.Value:
        return self.graph.input(f"x{len(self.graph.roots)}", (ROWS, WIDTH), torch.float32, batch=0)

    def weight(self) -> nr.Value:
        """One of a few constants."""
        name = f"w{self.rng.randrange(4)}"
        if name not in self.roots:
            self.roots[name] = self.graph.constant(name, (WIDTH, WIDTH), torch.float32)
        return self.roots[name]

    def memory(self, name: str) -> nr.Value:
        """The state of that name."""
        if name not in self.roots:
            self.roots[name] = self.graph.state(name, (MEMORY_ROWS, WIDTH), torch.float32)
        return self.roots[name]

    def node(self, op: nr.Op, *args: nr.Value, kind: str | None = None) -> nr.Value:
        """The result of one node, of a random size, and of a random kind unless its kind is said or its own."""
        if kind is None:
            kind = op.name if op.name in WORK else self.rng.choice(("compute", "memory", "narrow"))
        made: nr.Value = op(*args, kind=kind, size=self.rng.choice(self.sizes))
        return made

    def some(self, values: list[nr.Value], index: int, most: int) -> list[nr.Value]:
        """Up to ``most`` of ``values``, one of them the one that ``index`` stands for, so that none goes unread."""
        first = values[index % len(values)]
        others = self.rng.sample(values, min(len(values), self.rng.randint(1, most)) - 1)
        return [first, *others]

    def step(self, *inputs: nr.Value, spare: int = 0) -> nr.Value:
        """A value made of ``inputs``: by one node, or by up to three if that leaves room for ``spare`` others."""
        if self.room <= spare:
            return inputs[0]
        if self.room >= spare + 3 and self.rng.random() < self.variety:
            value = inputs[0] if len(inputs) == 1 else self.node(combine, *inputs)
            return self.rng.choice(self.motifs)(value)
        plain = self.rng.random() < 0.5
        if len(inputs) == 1:
            return self.node(affine, *inputs) if plain else self.node(matmul, *inputs, self.weight())
        return self.node(multiply if len(inputs) == 2 and plain else combine, *inputs)

    def finish(self) -> nr.Graph:
        """The graph, with what nobody reads as its outputs."""
        graph = self.graph
        read = {
            part.index for node in graph.nodes for value in node.inputs for part in (value.root.parts or (value.root,))
        }
        sinks = [value for node in graph.nodes for value in node.outputs if value.index not in read]
        graph.output(**{f"y{k}": value for k, value in enumerate(sinks)})
        return graph

    # Two nodes each, and more than one plain operator after another.

    def _there_and_back(self, x: nr.Value) -> nr.Value:
        return self.node(upload, self.node(download, x))

    def _columns(self, x: nr.Value) -> nr.Value:
        at = self.rng.choice((4, 8, 12))
        left = self.node(matmul, x[:, :at], self.weight()[:at])
        return self.node(matmul, left[:, at:], self.weight()[at:])

    def _split(self, x: nr.Value) -> nr.Value:
        decode, prefill = self.graph.split(x)
        return self.graph.join(self.node(affine, decode), self.node(matmul, prefill, self.weight()))

    def _rows(self, x: nr.Value) -> nr.Value:
        at = self.rng.randrange(1, ROWS)
        return self.graph.join(self.node(matmul, x[:at], self.weight()), self.node(affine, x[at:]))

    def _remember(self, x: nr.Value) -> nr.Value:
        memory = self.memory(f"memory.{self.rng.randrange(8)}")
        self.node(write, self._box(memory), x)
        return self.node(recall, x, self._box(memory))

    def _box(self, memory: nr.Value) -> nr.Value:
        """A region; corners lie on a grid, so that shapes are few."""
        top, left = self.rng.randrange(0, MEMORY_ROWS, 8), self.rng.randrange(0, WIDTH, 8)
        return memory[top : top + self.rng.choice((8, 16)), left : left + self.rng.choice((8, 16))]
