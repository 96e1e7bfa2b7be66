"""scaled: what rotary embedding turns by where config.json stretches it to longer texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from nanort.errors import ModelError, UnsupportedModelError
from nanort.graphs.model import figure, whole


@dataclass(frozen=True, slots=True)
class Angles:
    """What a position turns each pair of dimensions by, a factor on the result, and how many positions that serves."""

    frequencies: tuple[float, ...]
    scale: float = 1.0
    positions: int | None = None


def scaled(rope: Mapping[str, Any], theta: float, dim: int, positions: int) -> Angles | None:
    """The angles of heads of ``dim`` that ``rope`` (config.json's rope_parameters) means, as Hugging Face has them.

    None where they are the plain ones, ``theta ** (-2 i / dim)``. ``positions`` is how far the model reaches.

    Raises:
        UnsupportedModelError: a kind of scaling that is not known.
        ModelError: a number that is missing or cannot be.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    plain = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if kind == "linear":
        return Angles(_numbers(plain / figure(rope, "factor")))
    if kind == "llama3":
        return Angles(_numbers(_llama3(rope, plain, positions)))
    if kind == "yarn":
        return _yarn(rope, plain, theta, positions)
    if kind in ("longrope", "su"):
        return _longrope(rope, plain, positions)
    if kind == "divided":  # by numbers that GGUF files state
        return Angles(_numbers(plain / _list(rope, "factors", dim // 2)))
    raise UnsupportedModelError(
        f"rope of type {kind!r} is not supported: only 'default', 'linear', 'llama3', 'yarn' and 'longrope' are"
    )


def _llama3(rope: Mapping[str, Any], plain: torch.Tensor, positions: int) -> torch.Tensor:
    """Slow pairs are slowed down by the factor, fast ones are not, and those in between in part."""
    factor, low, high = (figure(rope, key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    if low >= high:
        raise ModelError(f"rope has low_freq_factor={low} and high_freq_factor={high}: the second must be larger")
    turns = whole(rope, "original_max_position_embeddings", positions) * plain / (2 * math.pi)
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * plain / factor + blend * plain


def _yarn(rope: Mapping[str, Any], plain: torch.Tensor, theta: float, positions: int) -> Angles:
    """Pairs up to one dimension keep their frequency, from another one on it is divided, in between it is blended."""
    known, dim = whole(rope, "original_max_position_embeddings", positions), 2 * len(plain)
    factor = figure(rope, "factor", positions / known)
    if theta <= 1:
        raise ModelError(f"rope has theta={theta}: yarn needs more than 1")
    fast, slow = figure(rope, "beta_fast", 32.0), figure(rope, "beta_slow", 1.0)
    ends = [dim * math.log(known / (turns * 2 * math.pi)) / (2 * math.log(theta)) for turns in (fast, slow)]
    if rope.get("truncate", True):
        ends = [math.floor(ends[0]), math.ceil(ends[1])]
    first, last = max(ends[0], 0), min(ends[1], dim - 1)
    ramp = ((torch.arange(dim // 2) - first) / (last - first or 0.001)).clamp(0, 1)
    scale, whole_scale = rope.get("mscale"), rope.get("mscale_all_dim")
    if rope.get("attention_factor") is not None:
        attention = figure(rope, "attention_factor")
    elif scale and whole_scale:
        attention = _grown(factor, figure(rope, "mscale")) / _grown(factor, figure(rope, "mscale_all_dim"))
    else:
        attention = _grown(factor)
    reach = max(positions, int(known * factor))  # a config may still state the length before it was stretched
    return Angles(_numbers(plain / factor * ramp + plain * (1 - ramp)), attention, reach)


def _longrope(rope: Mapping[str, Any], plain: torch.Tensor, positions: int) -> Angles:
    """Each pair has its own divisor.

    Texts beyond the original length have others from their first token on: they would have to be computed anew.
    """
    known = whole(rope, "original_max_position_embeddings", positions)
    factor = figure(rope, "factor", positions / known)
    grown = math.sqrt(1 + math.log(factor) / math.log(known)) if min(factor, known) > 1 else 1.0
    frequencies = _numbers(plain / _list(rope, "short_factor", len(plain)))
    return Angles(frequencies, figure(rope, "attention_factor", grown), min(known, positions))


def _grown(factor: float, scale: float = 1.0) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _numbers(frequencies: torch.Tensor) -> tuple[float, ...]:
    return tuple(frequencies.tolist())


def _list(rope: Mapping[str, Any], key: str, count: int) -> torch.Tensor:
    stated = rope.get(key)
    if not isinstance(stated, list) or len(stated) != count:
        raise ModelError(f"rope has {key}={str(stated)[:80]}: a list of {count} numbers is needed")
    return torch.tensor([figure({key: each}, key) for each in stated])
