"""profile: what every distinct call of a graph takes alone on this machine's cores, measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median
from time import perf_counter
from typing import Any

import torch

from nanort.costs.profile import Measurement, Profile
from nanort.costs.provenance import machine, versions
from nanort.costs.roofline import REFERENCE
from nanort.costs.samples import Place, Sample
from nanort.devices import Device, device
from nanort.eager import KINDS, Memory, bind
from nanort.errors import REFUSALS, CostError, InputError
from nanort.graph import Graph
from nanort.nodes import Node
from nanort.programs.program import View
from nanort.runtime.faults import failure
from nanort.runtime.sweeps import Point

BUDGET = 0.1
"""Seconds after which a call is not repeated any more; a first call that takes them all counts."""


def profile(
    graphs: Graph | Iterable[Graph], tensors: Mapping[str, torch.Tensor], *, on: Device | None = None, repeats: int = 5
) -> Profile:
    """Median seconds of every distinct call of ``graphs`` (a graph, or its cuts) on 1, 2, ... of the CPU's cores.

    Args:
        graphs: share their inputs, constants and states; rows of inputs are taken as they come.
        tensors: all of these by name; states are changed in place as a run would.
        on: the CPU that plans are made for.
        repeats: runs of each call that are timed, after one that is not.

    Raises:
        CostError: ``on`` is not a CPU; a GPU's profile comes from the CUDA backend.
        InputError: a tensor is missing or does not fit.
    """
    cpu = on or device("cpu")
    if cpu.kind != "cpu":
        raise CostError(f"this machine's cores cannot measure {cpu.name}: profile nr.device('cpu'), or load a profile")
    if repeats < 1:
        raise CostError(f"profile(..., {repeats=}): give at least one run")
    found: dict[Measurement, None] = {}
    before = torch.get_num_threads()
    try:
        with torch.no_grad():
            for graph in [graphs] if isinstance(graphs, Graph) else graphs:
                found |= dict.fromkeys(_measured(graph, bind(graph.seal(), tensors, KINDS, "cpu"), cpu, repeats, found))
    finally:
        torch.set_num_threads(before)
    return Profile(cpu.name, cpu.sms, machine(), found, versions=versions())


def _measured(
    graph: Graph, bound: dict[int, torch.Tensor], cpu: Device, repeats: int, known: Iterable[Measurement]
) -> list[Measurement]:
    """The measurements of one graph that are not known yet; it is run in order, so that every call sees real values."""
    memory, found = Memory(graph, bound), list[Measurement]()
    seen = {_key(measurement) for measurement in known}
    for node in graph.nodes:
        args = memory.args(node)
        least, most = node.span_on(cpu.kind)
        if node.demand.is_rigid or (key := _key(Measurement.of(node, REFERENCE, 1, 1.0))) in seen:
            counts = range(0)
        else:
            seen.add(key)
            counts = (
                range(max(1, least), min(most or cpu.sms, cpu.sms) + 1) if least else range(1)
            )  # a transfer holds no core
        for cores in counts:
            seconds = median(_times(node, args, max(1, cores), repeats))
            found.append(Measurement.of(node, REFERENCE, cores, seconds))
        torch.set_num_threads(1)  # threads that others keep busy make small calls a hundred times slower
        memory.store(node, node.op.reference(*args, **node.static))
    return found


class CpuMeter:
    """Measures points on this machine's cores, as :func:`profile` does; one at a time.

    Attributes:
        device, place, counts, pairs: see Meter.
    """

    def __init__(self, cpu: Device, *, repeats: int = 9) -> None:
        self.device = cpu
        self.place = Place.of(cpu)
        self.counts = tuple(range(1, cpu.sms + 1))
        self.pairs = False
        self._repeats = repeats

    def __call__(self, point: Point) -> tuple[Sample, ...]:
        """The sample of a part alone.

        Raises:
            ExecutionError: the reference failed; the node is named.
        """
        (part,), before = point, torch.get_num_threads()
        try:
            tensors = part.operands.tensors(part.launch, lambda nbytes: torch.empty(nbytes, dtype=torch.uint8))
            args = [
                argument.of(tensors[argument.buffer]) if isinstance(argument, View) else argument
                for argument in part.launch.args
            ]
            with torch.no_grad():
                return (Sample.of(part.call, _times(part.node, args, part.sms, self._repeats)),)
        except InputError:
            raise
        except REFUSALS as error:
            raise failure(part.operands.program, part.launch, error) from error
        finally:
            torch.set_num_threads(before)


def _times(node: Node, args: list[Any], threads: int, repeats: int) -> list[float]:
    """The seconds of some runs of a call, after one that is not timed; what it changes in place is copied first."""
    torch.set_num_threads(threads)
    own = [argument.clone() if k in node.op.writes else argument for k, argument in enumerate(args)]
    times: list[float] = []
    while len(times) <= repeats and sum(times) < BUDGET:
        began = perf_counter()
        node.op.reference(*own, **node.static)
        times.append(perf_counter() - began)
    return times[1:] or times


def _key(measurement: Measurement) -> tuple[object, ...]:
    """What makes two calls the same, whatever they ran on."""
    m = measurement
    return m.operator, m.shapes, m.dtype, m.flops, m.hbm_bytes
