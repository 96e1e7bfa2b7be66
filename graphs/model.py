"""Model: what tells one architecture from another: its config.json, its weights, and what a layer computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nanort.errors import ModelError

if TYPE_CHECKING:
    from nanort.graphs.config import DecoderConfig
    from nanort.graphs.decoder import Layer
    from nanort.values import Value

Shapes = dict[str, tuple[int, ...]]
LARGEST = 1 << 31
"""No size of a model comes near it, and products of a few are still sizes."""
FAR = 1e15
"""Beyond this, or below its inverse, no figure of a model is meant."""


@dataclass(frozen=True, slots=True)
class Stack:
    """A weight that checkpoints keep in parts: the tensors ``names``, one above the other in a new first dimension."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """A weight that checkpoints keep in a larger tensor: its rows from ``start`` on, of ``total``."""

    name: str
    start: int
    total: int


Sources = dict[str, Stack | Rows]


@dataclass(frozen=True, slots=True)
class Model:
    """One architecture, over what all decoders share: an embedding, a residual stream that RMSNorm reads, a head.

    Attributes:
        name: by which a DecoderConfig knows it.
        architectures: those of config.json that it serves, each with what the keys mean that a file leaves out.
        weights: names and shapes of a layer's weights; names are those of Hugging Face checkpoints, in the layer.
        layer: what a layer makes of its normalised input and the residual stream: what is to be added to that, and
            the residual stream.
        sizes: what config.json says of it beyond what all decoders state, as fields of a DecoderConfig.
        only: keys of config.json that may have this one value.
        sources: weights that checkpoints keep in other tensors than one of that name; names in the layer too.
        mixture: whether it has experts.
    """

    name: str
    architectures: Mapping[str, Mapping[str, Any]]
    weights: Callable[[DecoderConfig], Shapes]
    layer: Callable[[Layer, Value, Value], tuple[Value, Value]]
    sizes: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda keys: {}
    only: Mapping[str, Any] = field(default_factory=dict)
    sources: Callable[[DecoderConfig], Sources] = lambda config: {}
    mixture: bool = False


MODELS: dict[str, Model] = {}
"""Every registered model by its name."""


def register(model: Model) -> Model:
    """Makes ``model`` known to DecoderConfig, and returns it.

    Raises:
        ModelError: its name, or one of its architectures, is taken.
    """
    taken = {architecture for other in MODELS.values() for architecture in other.architectures}
    if model.name in MODELS or not taken.isdisjoint(model.architectures):
        raise ModelError(f"{model.name} for {list(model.architectures)} is registered already: {list(MODELS)} are")
    MODELS[model.name] = model
    return model


def whole(keys: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """The positive whole number that config.json has under that name.

    Raises:
        ModelError: it has something else, or nothing and there is no default.
    """
    size = keys.get(name)
    size = default if size is None else size
    if type(size) is not int or not 1 <= size < LARGEST:
        raise ModelError(f"config.json has {name}={size!r:.80}: a positive whole number is needed")
    return size


def figure(keys: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """The positive number that config.json has under that name, of a size with which one can compute.

    Raises:
        ModelError: it has something else, or nothing and there is no default.
    """
    number: Any = keys.get(name)
    number = default if number is None else number
    if type(number) not in (int, float) or not 1 / FAR < number < FAR:
        raise ModelError(f"config.json has {name}={number!r:.80}: a positive number is needed")
    return float(number)
