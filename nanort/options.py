"""Options of the command line, and what their values mean."""

from __future__ import annotations

import math
import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer

from nanort.checkpoints.weights import read_json
from nanort.devices import Device, device
from nanort.errors import RequestError
from nanort.graph import Graph
from nanort.graphs import CONFIGS, DecoderConfig, decoder_step

SIZES = {
    f"{prefix}{unit}": scale**power
    for unit, scale in (("iB", 1024.0), ("B", 1000.0))
    for power, prefix in enumerate("KMGT", 1)
}
"""Bytes of each unit of memory."""

SERVED_TOKENS = 16384
"""A cache for several requests at once, in the memory of any machine."""


def in_a_folder(path: Path | None) -> Path | None:
    """Refuses, before any work is done, a file that could not be written at its end."""
    if path is not None and not path.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.parent}: make it, or name another")
    if path is not None and (path.is_dir() or not os.access(path.parent, os.W_OK)):
        raise typer.BadParameter(f"{path} is a folder, or in one that cannot be written to: name a file")
    return path


Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Model = Annotated[str, typer.Option(help=f"{', '.join(CONFIGS)}, or a folder with config.json.", show_default=True)]
Decode = Annotated[int, typer.Option(help="Requests that decode, a row each.", min=0)]
Context = Annotated[int, typer.Option(help="Tokens that each of them attends to, its own included.", min=1)]
Prefill = Annotated[int, typer.Option(help="Rows of a prompt that is prefilled.", min=0)]
Pieces = Annotated[
    str | None, typer.Option(help="Nano-batch counts to choose from, such as 1,2; by default those worth trying.")
]
Policy = Annotated[str, typer.Option(help="serial, list, search or auto.")]
Seconds = Annotated[float | None, typer.Option(help="When to stop, whatever is left; Ctrl-C stops sooner.")]
Seed = Annotated[int, typer.Option(help="Of the search; the same gives the same.")]

ModelFiles = Annotated[
    str, typer.Option("--model", help="A Hugging Face folder, a .gguf file, smollm2 (its package) or tiny (random).")
]
NewTokens = Annotated[int, typer.Option(help="Generated at most.", min=1)]
Temperature = Annotated[float, typer.Option(help="0 is greedy.", min=0)]
TopK = Annotated[int, typer.Option(help="0 is off.", min=0)]
TopP = Annotated[float, typer.Option(help="1 is off.")]
DrawSeed = Annotated[int, typer.Option("--seed", help="Of the draws, above temperature 0.")]
Memory = Annotated[
    str | None, typer.Option(help="For weights, cache and plans, such as 40GiB; by default a cache of some tokens.")
]
CacheTokens = Annotated[
    int | None,
    typer.Option(help=f"That the cache holds, unless --memory says; {SERVED_TOKENS} by default on the CPU.", min=1),
]
HostCache = Annotated[str | None, typer.Option(help="Of the host, for pages that are used again, such as 8GiB.")]
MaxRows = Annotated[int | None, typer.Option(help="Rows of one step: tokens that it processes.", min=1)]
SloTpot = Annotated[
    str | None, typer.Option(help="Time per token to hold while prompts are processed beside, such as 30ms.")
]
TraceFolder = Annotated[
    Path | None, typer.Option("--trace", help="Keep every step's timeline in this folder.", file_okay=False)
]


class Sweep(str, Enum):
    """What may be swept."""

    SMS = "sms"


def config_of(model: str) -> DecoderConfig:
    """The sizes of a model by its name, or of the folder that has its config.json."""
    if model in CONFIGS:
        return CONFIGS[model]
    if not Path(model).is_dir():
        raise RequestError(
            f"no model is called {model!r}: give one of {', '.join(CONFIGS)}, or a folder with config.json"
        )
    return DecoderConfig.from_hf(read_json(Path(model) / "config.json"))


def counts_of(text: str | None) -> tuple[int, ...] | None:
    """Nano-batch counts; None where none are given."""
    if text is None:
        return None
    try:
        return tuple(int(count) for count in text.split(","))
    except ValueError:
        raise RequestError(f"--nano-batches {text!r} is not a list of counts: give 1,2 or 2") from None


def pace_of(text: str | None) -> float | None:
    """Seconds of a time per token; None where none is given.

    >>> pace_of("30ms"), pace_of("0.5s")
    (0.03, 0.5)
    """
    return None if text is None else _amount("--slo-tpot", text, {"ms": 1e-3, "s": 1.0}, "30ms or 0.03s")


def bytes_of(option: str, text: str | None) -> int | None:
    """Bytes of a size that ``option`` was given; None where none is given.

    >>> bytes_of("--memory", "1.5GiB"), bytes_of("--memory", "2MB")
    (1610612736, 2000000)
    """
    return None if text is None else int(_amount(option, text, SIZES, "40GiB or 500MB"))


def _amount(option: str, text: str, units: dict[str, float], like: str) -> float:
    unit = next((unit for unit in units if text.endswith(unit)), "")
    try:
        amount = float(text.removesuffix(unit)) * units[unit]
    except (KeyError, ValueError):
        amount = 0.0
    if not 0.0 < amount < math.inf:
        raise RequestError(f"{option} {text!r} is no amount above zero: give it with its unit, such as {like}")
    return amount


def dtype_of(target: Device) -> torch.dtype:
    """What models are run with on a GPU, and on cores."""
    return torch.bfloat16 if target.kind == "cuda" else torch.float32


def device_of(on: str) -> Device:
    """A device of the database, or this machine's."""
    return Device.current() if on == "current" else device(on)


def step_of(config: DecoderConfig, decode: int, context: int, prefill: int, dtype: torch.dtype) -> Graph:
    """The graph of one step of a model."""
    if decode + prefill == 0:
        raise RequestError("--decode 0 --prefill 0 is a step of no rows: give at least one")
    return decoder_step(config, decode=decode, context=context, prefill=prefill, dtype=dtype)
