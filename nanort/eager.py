"""Running a graph in order: tensors checked against what it asks for, then every reference in turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from nanort.errors import (
    ExecutionError,
    InputDeviceError,
    InputDtypeError,
    InputShapeError,
    MissingInputError,
    UnknownInputError,
)
from nanort.printable import said
from nanort.values import Value, contiguous, joined

if TYPE_CHECKING:
    from nanort.graph import Graph
    from nanort.nodes import Node

KINDS = ("input", "constant", "state")


def bind(
    graph: Graph, tensors: Mapping[str, Any], kinds: tuple[str, ...] = KINDS, place: str = ""
) -> dict[int, torch.Tensor]:
    """``tensors`` by root index: all that the graph asks for, nothing else, of the right shape, dtype and device.

    Those that are not contiguous are copied; a state must be. ``place`` is the torch device type that the values of the
    device must be on; those of the host are on "cpu".

    Raises:
        MissingInputError, UnknownInputError, InputShapeError, InputDtypeError, InputDeviceError
    """
    wanted = {root.name: root for root in graph.roots if root.kind in kinds}
    what = " or ".join(kinds)
    if missing := [name for name in wanted if name not in tensors]:
        raise MissingInputError(
            f"graph {graph.name!r} was not given its {what} {missing}; given were {sorted(tensors)}"
        )
    if unknown := [name for name in tensors if name not in wanted]:
        raise UnknownInputError(f"graph {graph.name!r} has no {what} {unknown}: it has {list(wanted)}")
    for name, root in wanted.items():
        _check(root, tensors[name], place)
    return {root.index: _laid_out(root, tensors[name]) for name, root in wanted.items()}


def _check(root: Value, tensor: Any, place: str) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise InputDtypeError(f"{root.kind} {root!r} was given a {type(tensor).__name__}: give a torch.Tensor")
    if tuple(tensor.shape) != root.shape:
        raise InputShapeError(f"{root.kind} {root!r} was given a tensor of shape {list(tensor.shape)}")
    if tensor.dtype != root.dtype:
        raise InputDtypeError(f"{root.kind} {root!r} was given {tensor.dtype}: convert it with .to({root.dtype})")
    wanted = "cpu" if root.device == "host" else place
    if tensor.device.type == "meta" or (wanted and tensor.device.type != wanted):
        raise InputDeviceError(
            f"{root.kind} {root!r} must be on {wanted or 'a device with memory'}, its tensor is on {tensor.device}"
        )


def _laid_out(root: Value, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, row-major as views take values to be."""
    if root.kind == "state" and not tensor.is_contiguous():
        raise InputShapeError(f"state {root!r} must be contiguous, since operators change it in place: pass a copy")
    return tensor.contiguous()


def materialise(value: Value, env: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """The tensor of ``value``, from the tensors of the roots."""
    if value.parent is not None:
        whole = materialise(value.parent, env)
        if value.how[0] == "reshape":
            return whole.view(value.how[1])
        _, dim, start, stop = value.how
        return whole.narrow(dim, start, stop - start)
    if value.kind == "join" and value.index not in env:
        return torch.cat([materialise(part, env) for part in value.parts])
    if value.kind == "empty":
        return torch.empty(value.shape, dtype=value.dtype)
    return env[value.index]


class Memory:
    """The tensors of a graph that runs in order, laid out as a program lays them out: joined values in one buffer.

    Results are then the same bits: in the last ones they depend on how arguments are aligned.
    """

    def __init__(self, graph: Graph, bound: Mapping[int, torch.Tensor]) -> None:
        self.env = dict(bound)
        self.roots = graph.roots
        self.joins = joined(graph.roots)
        self.homes = {index: join for join, inside in self.joins.items() for index in inside}

    def args(self, node: Node) -> list[Any]:
        """The arguments of a node."""
        return [materialise(argument, self.env) if isinstance(argument, Value) else argument for argument in node.args]

    def store(self, node: Node, result: Any) -> None:
        """Keeps what the reference of ``node`` returned."""
        results = result if isinstance(result, tuple) else (result,)
        for value, tensor in zip(node.outputs, results, strict=False):
            if (join := self.homes.get(value.index)) is None:
                self.env[value.index] = tensor.contiguous()
                continue
            if join not in self.env:
                self._allocate(join, tensor.device)
            self.env[value.index].copy_(tensor)

    def _allocate(self, join: int, device: torch.device) -> None:
        whole = torch.empty(self.roots[join].shape, dtype=self.roots[join].dtype, device=device)
        for index, offset in self.joins[join].items():
            shape = self.roots[index].shape
            self.env[index] = whole.as_strided(shape, contiguous(shape), offset)


def run_in_order(graph: Graph, bound: Mapping[int, torch.Tensor], threads: int) -> dict[str, torch.Tensor]:
    """The outputs by running every reference in order on ``threads`` threads."""
    memory, before = Memory(graph, bound), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with torch.no_grad():
            for node in graph.nodes:
                memory.store(node, _called(node, memory.args(node)))
            return {name: materialise(value, memory.env) for name, value in graph.outputs.items()}
    finally:
        torch.set_num_threads(before)


def _called(node: Node, args: list[Any]) -> Any:
    try:
        return node.op.reference(*args, **node.static)
    except Exception as error:  # whatever user code raises: chained, with the node's name and line
        raise ExecutionError(
            f"node {node.name} ({node.where}) failed: {said(error)}", node=node.name, where=node.where
        ) from error
