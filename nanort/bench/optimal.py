"""Optimal: what a model on a device gives at best, which throughput is held against."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch

from nanort.costs.profile import Profile
from nanort.costs.roofline import Costs
from nanort.devices import Device
from nanort.graph import Graph
from nanort.graphs import DecoderConfig, decoder
from nanort.layout import Layout

PRODUCTS = frozenset({"linear", "expert_linear", "expert_combine"})
"""Operators whose time no schedule can hide: everything else may run beside them."""


def product_seconds(graph: Graph, costs: Costs, layers: int = 1) -> float:
    """What the matrix products of ``graph`` take one after another, each alone on the device.

    Those inside a layer's scope count ``layers`` times.
    """
    products = (node for node in graph.nodes if node.op.name in PRODUCTS)
    return sum(costs.solo(node, costs.device.sms).seconds * (layers if node.scope else 1) for node in products)


class Optimal:
    """Seconds of the least step, and the tokens a second that the parameters alone allow.

    Args:
        config: the model.
        device, profile: what its products run on, and what they were measured to take there.
        dtype: of the model.
    """

    def __init__(self, config: DecoderConfig, device: Device, dtype: torch.dtype, profile: Profile | None) -> None:
        self.config, self.device, self.dtype = config, device, dtype
        self._costs = Costs(device, profile)
        self.seconds = cache(self._seconds)

    def _seconds(self, rows: int, draws: int) -> float:
        """The summed times of the unsplit matrix products of a step of ``rows`` rows, of which so many draw a token."""
        if not rows:  # pages moved alone
            return 0.0
        one = replace(self.config, layers=1)
        # All rows are alike for products: which of them decode, and what the cache is like, does not matter.
        graph = decoder(one, Layout(prefill=rows), pages=2, requests=max(1, draws), table_width=1, dtype=self.dtype)
        return product_seconds(graph.seal(), self._costs, self.config.layers)

    @property
    def tokens_per_second(self) -> float:
        """Tokens of prompts and outputs that the device's arithmetic allows: 2 operations a parameter in use."""
        return self.device.rate(self.dtype) / (2 * self.active_parameters)

    @property
    def active_parameters(self) -> float:
        """Parameters that a token uses: of a mixture, those of its experts only."""
        config = self.config
        if not config.experts:
            return config.parameters
        of_experts = sum(
            torch.Size(shape).numel() for name, (shape, _) in config.weights(self.dtype).items() if ".experts." in name
        )
        return config.parameters - of_experts * (1 - config.experts_per_token / config.experts)
