"""measured_search: schedules of steps by measured costs, tried side by side on inputs that touch only scratch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from nanort.devices import Device
from nanort.graph import Graph
from nanort.nanobatch import nano_batch
from nanort.runtime.profiler import profile
from nanort.runtime.stopwatch import Stopwatch
from nanort.scheduling.apart import Apart
from nanort.scheduling.coschedule import co_schedule
from nanort.scheduling.schedule import Schedule
from nanort.serving.batching import scratch_inputs
from nanort.serving.shapes import Shape
from nanort.serving.steps import Steps

REPEATS = 3


def measured_search(
    steps: Steps,
    device: Device,
    place: str,
    constants: Mapping[str, torch.Tensor],
    states: Mapping[str, torch.Tensor],
    *,
    policy: str,
    nano_batches: tuple[int, ...],
) -> Callable[[Shape, Graph], Schedule]:
    """A search that times every call of a step, and runs the plan beside the serial one to keep the faster."""

    def search(shape: Shape, graph: Graph) -> Schedule:
        trial, named = _trial(graph, shape, steps), {root.name: root for root in graph.roots}
        inputs = {name: tensor if named[name].device == "host" else tensor.to(place) for name, tensor in trial.items()}
        bound = [{name: given[name] for name in named.keys() & given.keys()} for given in (constants, states)]
        if "chunk" in bound[1]:  # which may be on its way
            bound[1]["chunk"] = torch.zeros_like(bound[1]["chunk"])
        counts = nano_batches if shape.beside is None else (1,)
        how = policy if shape.beside is None else Apart()
        cuts = [graph, *(nano_batch(graph, count) for count in counts if count > 1)]
        costs = profile(cuts, {**bound[0], **bound[1], **inputs}, on=device, repeats=REPEATS)
        stopwatch = Stopwatch(inputs=inputs, constants=bound[0], states=bound[1], repeats=REPEATS)
        return co_schedule(
            graph, device, policy=how, nano_batches=counts, profile=costs, guard=False, measure=stopwatch
        )

    return search


def _trial(graph: Graph, shape: Shape, steps: Steps) -> dict[str, torch.Tensor]:
    """Inputs of a step that writes nothing but scratch."""
    trial = scratch_inputs(shape.layout, shape.requests, shape.width, steps.page_size, steps.seats)
    # At temperature 1 a sampling step sorts its logits, which is most of what it costs.
    ones = {
        root.name: torch.ones(root.shape, dtype=root.dtype)
        for root in graph.roots
        if root.kind == "input" and root.name not in trial
    }
    scratch = {name: torch.zeros_like(ones[name]) for name in ("swap_out", "swap_in") if name in ones}
    return ones | scratch | trial
