"""Random graphs, random cuts of them, and random placements: what an executor must survive, not what is fast."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch

import nanort as nr
from nanort import graphs
from nanort.layout import Cells

WIDTH = 4


def cuttable(seed: int) -> nr.Graph:
    """A synthetic graph of up to 30 nodes that nano_batch can cut; results are whole numbers, equal in any order."""
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
    return family()
