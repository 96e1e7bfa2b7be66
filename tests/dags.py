"""Small random graphs of every kind of demand, for what judges plans: they are never run."""

from __future__ import annotations

import random

import torch

import nanort as nr

KINDS = (
    "compute",
    "memory",
    "both",
    "narrow",
    "wide",
    "upload",
    "download",
    "zero_copy",
    "network",
    "rigid",
    "launch",
    "tiled",
)


def demand(kind: str, size: float) -> nr.Demand:
    """A demand of that kind which takes about ``size`` times 0.1 ms on an H200."""
    flops, hbm, pcie, net = (100e-6 * size * rate for rate in (780e12, 4.3e12, 50e9, 450e9))
    return {
        "compute": nr.Demand(flops=flops, hbm_bytes=hbm / 10),
        "memory": nr.Demand(flops=flops / 50, hbm_bytes=hbm),
        "both": nr.Demand(flops=flops, hbm_bytes=hbm),
        "narrow": nr.Demand(flops=flops / 20, hbm_bytes=hbm / 20, sms=(1, 8)),
        "wide": nr.Demand(flops=flops, hbm_bytes=hbm, sms=(100, None)),
        "upload": nr.Demand(h2d_bytes=pcie, hbm_bytes=pcie, sms=(0, 0)),
        "download": nr.Demand(d2h_bytes=pcie, hbm_bytes=pcie, sms=(0, 0)),
        "zero_copy": nr.Demand(h2d_bytes=pcie, d2h_bytes=pcie / 3, sms=(8, 16)),
        "network": nr.Demand(net_bytes=net, hbm_bytes=hbm / 10, sms=(8, 16)),
        "rigid": nr.Demand.rigid(seconds=100e-6 * size, sms=(8, 32), hbm=0.4, d2h=0.1),
        "launch": nr.Demand(),
        "tiled": nr.Demand(flops=flops, hbm_bytes=hbm / 10, tiles=round(60 * size) + 1),
    }[kind]


def node(graph: nr.Graph, name: str, what: nr.Demand, *before: nr.Value, **pins: object) -> nr.Value:
    """A node of that demand which reads ``before``."""
    made: nr.Value = graph.call(_touch, *before, demand=what, name=name, **pins)
    return made


def chain(*demands: nr.Demand) -> nr.Graph:
    """Nodes n0, n1, ... each after the one before."""
    graph = nr.Graph("chain")
    value = graph.input("x", (1,), torch.bfloat16)
    for index, what in enumerate(demands):
        value = node(graph, f"n{index}", what, value)
    return graph


def beside(*demands: nr.Demand) -> nr.Graph:
    """Nodes n0, n1, ... that wait for nothing."""
    graph = nr.Graph("beside")
    x = graph.input("x", (1,), torch.bfloat16)
    for index, what in enumerate(demands):
        node(graph, f"n{index}", what, x)
    return graph


def dag(seed: int) -> nr.Graph:
    """Up to 40 nodes with up to three predecessors each, near ones or far ones; demands of some kinds or of all."""
    rng = random.Random(seed)
    kinds = rng.sample(KINDS, rng.randint(1, len(KINDS)))
    reach = rng.choice((2, 5, 40))
    graph = nr.Graph(f"dag-{seed}")
    values = [graph.input("x", (1,), torch.bfloat16)]
    for index in range(rng.randint(1, 40)):
        before = rng.sample(values[-reach:], min(len(values[-reach:]), rng.randint(1, 3)))
        values.append(node(graph, f"n{index}", demand(rng.choice(kinds), 4 ** rng.uniform(-1, 1)), *before))
    return graph


def _touch(*values: torch.Tensor) -> torch.Tensor:
    return values[0].clone()
