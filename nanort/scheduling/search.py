"""Search: structures are enumerated, each is list-scheduled in the fluid simulation, the best is refined."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from nanort.devices import Device
from nanort.errors import CapacityError, PolicyError
from nanort.scheduling.flat import Flat
from nanort.scheduling.list_schedule import COMPUTE, LIGHT, MEMORY, ORDERS, PATH, Outline, dispatch
from nanort.scheduling.structures import CORESIDENT, ISOLATED, Structure, overlapping
from nanort.scheduling.waits import waits
from nanort.simulation.fluid import Jobs, Trace, replay

SHARE_TO_REFINE = 4
"""One in so many judged schedules refines the best structure instead of trying another."""


def saturations(device: Device) -> list[int]:
    """The saturation points at which plans are judged, the most pessimistic first: the ends of the range and its middle."""
    least, most = device.hbm_saturation_sms
    return sorted({least, round(math.sqrt(least * most)), most}, reverse=True)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to plan: a cut graph, a structure and how nodes are dispatched in it."""

    outline: Outline
    structure: Structure
    order: str = PATH
    borrow: bool = False
    offsets: tuple[float, ...] = ()

    def plan(self) -> Trace:
        """What list scheduling makes of it where device memory saturates latest."""
        return dispatch(self.outline, self.structure, self.order, self.borrow, self.offsets)
