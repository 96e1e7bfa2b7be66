"""Operands: random tensors for any launch of a graph, to measure one call without running all before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property

import torch

from nanort.costs.roofline import REFERENCE
from nanort.devices import Device
from nanort.errors import InputShapeError, MissingInputError
from nanort.graph import Graph
from nanort.programs.lower import lower
from nanort.programs.program import Buffer, Launch, View
from nanort.runtime.kernels import launch
from nanort.scheduling.coschedule import co_schedule

Allocate = Callable[[int], torch.Tensor]

NOISE = (1 << 22) - 1
"""Random numbers that are drawn; larger tensors repeat them, since nothing is faster for it."""
NO_LIMIT = 1 << 60


class Operands:
    """The launches of a graph, and tensors to call each of them with.

    Values that are no floating-point numbers, such as page tables and what is computed of them, are never random: they
    follow from ``inputs``. Never zeros either: a matrix product of zeros runs 13 % faster.

    Args:
        graph: uncut or cut.
        device: what it is measured on.
        inputs: by name, all of integers; of others where what is measured depends on them.
        seed: of the random numbers.

    Attributes:
        graph, program: the graph, and its launches one after another.
        launches: those of its nodes that hold SMs.
    """

    def __init__(self, graph: Graph, device: Device, inputs: Mapping[str, torch.Tensor], *, seed: int = 0) -> None:
        unlimited = device.with_(memory_bytes=NO_LIMIT)  # a call is measured alone, whether or not all fits
        self.program = lower(co_schedule(graph, unlimited, policy="serial", nano_batches=1))
        self.graph = self.program.graph
        self.launches = tuple(step for step in self.program.instructions if isinstance(step, Launch))
        self.inputs = dict(inputs)
        self._seed = seed

    def tensors(self, step: Launch, allocate: Allocate) -> dict[int, torch.Tensor]:
        """A fresh tensor for every buffer that ``step`` reads or writes; ``allocate`` makes so many bytes.

        Raises:
            MissingInputError: it depends on integers that are not among the inputs.
            InputShapeError: an input is of another shape than the graph's.
        """
        reads = {view.buffer for view in step.args if isinstance(view, View)}
        tensors = {}
        for index in sorted(reads | {view.buffer for view in step.outs}):
            buffer = self.program.buffers[index]
            tensors[index] = allocate(buffer.nbytes).view(buffer.dtype).view(buffer.shape)
            if index in reads:
                self._fill(buffer, tensors[index], allocate)
        return tensors

    def _fill(self, buffer: Buffer, tensor: torch.Tensor, allocate: Allocate) -> None:
        given = self.inputs.get(buffer.name) if buffer.kind not in ("result", "join") else None
        if given is not None:
            if given.shape != tensor.shape:
                raise InputShapeError(
                    f"graph {self.graph.name!r} takes {buffer.name!r} of shape {list(tensor.shape)}, and was given "
                    f"{list(given.shape)}"
                )
            tensor.copy_(given)
        elif buffer.dtype.is_floating_point:
            first, *rest = torch.split(tensor.view(-1), NOISE)
            first.copy_(self._noise[: len(first)])
            for part in rest:
                part.copy_(first[: len(part)])
        elif producers := [step for step in self.launches if any(view.buffer == buffer.index for view in step.outs)]:
            for step in producers:
                others = self.tensors(step, allocate)
                reference = replace(step, kernel=REFERENCE)
                with torch.no_grad():
                    launch(self.program, reference, {**others, buffer.index: tensor}, None, tensor.device)()
        else:
            raise MissingInputError(
                f"{buffer.kind} {buffer.name!r} of graph {self.graph.name!r} holds {buffer.dtype}, which cannot be "
                "random: give it among the inputs"
            )

    @cached_property
    def _noise(self) -> torch.Tensor:
        return torch.randn(NOISE, generator=torch.Generator().manual_seed(self._seed))
