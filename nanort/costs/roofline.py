"""How long a node takes alone on some of a device's SMs: a roofline, overridden by what was measured."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

from nanort.costs.profile import Profile, call
from nanort.devices import Device
from nanort.errors import CapacityError, CostError
from nanort.nodes import Node
from nanort.operators import Op

SHARPNESS = 8
"""The p of the p-norm that joins compute and memory time: 9 % above the larger where they are equal, soon nothing."""

REFERENCE = "reference"
"""The kernel that every operator has: its torch function."""

CORESIDENT = "coresident"
"""The kernel that leaves room on its SMs for another: what an operator that has one runs where streams share SMs."""


def kernel_beside_others(op: Op) -> str:
    """The kernel of an operator that runs where streams share SMs."""
    return CORESIDENT if CORESIDENT in op.kernels else next(iter(op.kernels), REFERENCE)


@dataclass(frozen=True, slots=True)
class Cost:
    """A node alone: its seconds, and the shares (0 to 1) of each bandwidth that it draws while it runs."""

    seconds: float
    hbm: float = 0.0
    h2d: float = 0.0
    d2h: float = 0.0
    net: float = 0.0
    kernel: str = REFERENCE


class Costs:
    """The cost of every node on ``device``, cached by what it depends on.

    Args:
        device: sustained figures.
        profile: measured seconds; they replace the model wherever there are any.
        saturation: SMs with which memory-bound work reaches the full HBM bandwidth; by default the most that
            ``device.hbm_saturation_sms`` deems possible, which is the pessimistic end for partitions.

    Raises:
        CostError: the profile is of another device, or the saturation point is not on the device.
    """

    def __init__(self, device: Device, profile: Profile | None = None, saturation: int | None = None) -> None:
        saturation = device.hbm_saturation_sms[1] if saturation is None else saturation
        if not 1 <= saturation <= device.sms:
            raise CostError(f"saturation={saturation} SMs: {device.name} has 1 to {device.sms}")
        if profile is not None and (profile.device, profile.sms) != (device.name, device.sms):
            raise CostError(
                f"the profile was measured on {profile.device} ({profile.sms} SMs), the plan is for {device.name} "
                f"({device.sms} SMs): measure this device, or plan without a profile"
            )
        self.device = device
        self.profile = profile
        self.saturation = saturation
        self._cache: dict[tuple[Hashable, int], Cost] = {}

    def key(self, node: Node) -> Hashable:
        """All that the cost of a node depends on, besides the SMs."""
        base = (node.demand, node.dtype, node.sms, tuple(node.op.kernels))
        return (*base, *call(node)) if self.profile else base

    def solo(self, node: Node, sms: int) -> Cost:
        """What ``node`` takes alone on ``sms`` SMs, of which it uses no more than it asks for."""
        key = (self.key(node), sms)
        if (found := self._cache.get(key)) is None:
            found = self._cache[key] = self._solo(node, sms)
        return found

    def _solo(self, node: Node, sms: int) -> Cost:
        most = node.span_on(self.device.kind)[1]
        sms = sms if most is None else min(sms, most)
        performance = self.profile.performance(node, sms) if self.profile and sms else None  # a copy holds no SMs
        if performance is None:
            return self._apart(node, sms)
        whole = self._apart(node, self.device.sms)
        hbm, h2d, d2h, net = (share * performance for share in (whole.hbm, whole.h2d, whole.d2h, whole.net))
        return Cost(whole.seconds / performance, hbm, h2d, d2h, net, whole.kernel)

    def _apart(self, node: Node, sms: int) -> Cost:
        """What ``node`` takes on ``sms`` SMs with nothing beside it."""
        demand, device = node.demand, self.device
        kernel = next(iter(node.op.kernels), REFERENCE) if device.kind == "cuda" else REFERENCE
        if demand.seconds is not None:
            return Cost(demand.seconds, demand.hbm, demand.h2d, demand.d2h, 0.0, kernel)
        seconds = self._modelled(node, sms)
        if self.profile is not None:
            measured = self.profile.fastest(node, sms, lambda other: self._modelled(node, other))
            seconds, kernel = measured or (seconds, kernel)
        needs = (demand.hbm_bytes / device.hbm_bandwidth, *demand.link_seconds(device))
        hbm, h2d, d2h, net = (min(need / seconds, 1.0) for need in needs)
        return Cost(seconds, hbm, h2d, d2h, net, kernel)

    def _modelled(self, node: Node, sms: int) -> float:
        """Compute on n of N SMs at n/N of the rate, memory at its full bandwidth from the saturation point on.

        Arithmetic in tiles takes whole rounds of them: 133 tiles on 132 SMs take as long as 264.
        """
        demand, device = node.demand, self.device
        links = max(demand.link_seconds(device))
        if links == math.inf:
            raise CapacityError(f"{node.where}: {node.name} sends over a network, and {device.name} has none")
        memory = demand.hbm_bytes / device.hbm_bandwidth
        if demand.engine:
            return device.launch_seconds + max(memory, links)
        if sms < 1:
            raise CostError(f"{node.where}: {node.name} needs SMs, and it was given {sms}")
        compute = demand.flops / device.rate(node.dtype) * device.sms / sms
        if device.kind == "cuda":
            compute *= unevenness(demand.tiles, sms)
        return device.launch_seconds + max(links, smooth_max(compute, memory / min(1.0, sms / self.saturation)))


def rounds(tiles: int, sms: int) -> int:
    """How many tiles some SM does one after another.

    >>> rounds(132, 132), rounds(133, 132)
    (1, 2)
    """
    return -(-tiles // sms)


def unevenness(tiles: int, sms: int) -> float:
    """How many times longer arithmetic in so many tiles takes than if it could be shared out at will.

    >>> unevenness(132, 132), unevenness(132, 88), unevenness(0, 88)
    (1.0, 1.3333333333333333, 1.0)
    """
    return rounds(tiles, sms) * sms / tiles if tiles else 1.0


def smooth_max(a: float, b: float) -> float:
    """The p-norm of two times: at least the larger, and just that where the other is zero.

    >>> smooth_max(3.0, 0.0), round(smooth_max(1.0, 1.0), 3)
    (3.0, 1.091)
    """
    large, small = (a, b) if a > b else (b, a)
    return large * (1.0 + (small / large) ** SHARPNESS) ** (1.0 / SHARPNESS) if small else large
