"""Cuts: the ways to cut a graph that are worth trying, and the graphs that come of them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

from nanort.errors import GraphError
from nanort.graph import Graph
from nanort.scheduling.flat import Flat
from nanort.scheduling.schedule import Split

TILE = 128
"""Rows of a tile of a matrix product: a piece of another size leaves a part of its last tile empty."""

Sizes = int | Sequence[int]


def worth_trying(graph: Graph, thorough: bool) -> tuple[int | tuple[int, ...], ...]:
    """The uncut graph, and two pieces; if ``thorough`` also two of which one is whole tiles, and three.

    Whole tiles near a half of the rows, and near three eighths: two pieces of unlike sizes fill two groups of unlike
    sizes. More pieces read weights more often: on a LLaMA-3-8B step three are within 2 % of two (docs/measured.md).
    """
    if not any(root.batch is not None for root in graph.roots):
        return (1,)
    rows = graph.layout.rows if graph.layout is not None else 0
    if not thorough or rows < 4 * TILE:
        return (1, 2)
    half = round(rows / 2 / TILE)
    aligned = (
        (count * TILE, rows - count * TILE) for count in dict.fromkeys((half, half + 1, round(rows * 3 / 8 / TILE)))
    )
    return (1, 2, *(sizes for sizes in aligned if sizes[0] != sizes[1]), 3)


def cut(
    source: Flat, nano_batches: Sequence[Sizes], per_op: Mapping[str, int] | None, deadline: float = math.inf
) -> tuple[dict[Split | None, Flat], list[str]]:
    """The graph cut in every way that was asked for and is possible, and a line for each that is not.

    After ``deadline``, a time of ``time.monotonic``, no more are made once there is one.

    Raises:
        GraphError: none of them is; most often a SplitError.
    """
    cuts: dict[Split | None, Flat] = {}
    refused: dict[str, GraphError] = {}
    late = list[str]()
    for sizes in nano_batches:
        if cuts and time.monotonic() >= deadline:
            late.append(f"not cut into {sizes}: time was up")
            continue
        split = Split.of(sizes, per_op)
        try:
            cuts[split] = source if split is None else Flat(split.cut(source.graph), source.device, source.profile)
        except GraphError as error:  # a cut may also break an order that the uncut graph keeps
            refused[f"not cut into {sizes}: {error}"] = error
    if not cuts:
        raise next(iter(refused.values()))
    return cuts, [*refused, *late]
