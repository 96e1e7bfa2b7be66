"""The graphs on which schedulers are judged: steps of three models in four shapes each, and random DAGs."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypedDict

import nanort as nr
from nanort.graphs import CONFIGS, decoder_step
from nanort.graphs import synthetic as families

MODELS = ("llama-3-8b", "llama-3-70b", "mixtral-8x7b")


class Step(TypedDict, total=False):
    """What :func:`nanort.graphs.decoder_step` takes besides the model."""

    decode: int
    context: int
    prefill: int
    swap: float


# Swapping 2 % of the pages takes 47 ms each way for the 8B model, whose step takes 56 to 68 ms: with 10 % PCIe alone
# would decide how long any schedule is.
STEPS: dict[str, Step] = {
    "decode-heavy": {"decode": 512, "context": 2048, "prefill": 256},
    "balanced": {"decode": 670, "context": 1280, "prefill": 1340},
    "prefill-heavy": {"decode": 128, "context": 1024, "prefill": 1920},
    "offload": {"decode": 670, "context": 1280, "prefill": 1340, "swap": 0.02},
}


def build(model: str, step: str, layers: int | None = None) -> nr.Graph:
    """One step of a model in bfloat16, as deep as the model unless ``layers`` says how deep."""
    config = CONFIGS[model]
    return decoder_step(replace(config, layers=layers or config.layers), **STEPS[step])


WORKLOADS: dict[str, Callable[[int | None], nr.Graph]] = {
    f"{model}/{step}": partial(build, model, step) for model in MODELS for step in STEPS
}
"""Builders by name, ``"llama-3-8b/balanced"``; each takes the number of layers, None for all."""


def device(saturation: int) -> nr.Device:
    """An H200 whose memory bandwidth takes ``saturation`` SMs to reach, with memory for every workload.

    The workloads have the shapes of one GPU without tensor parallelism. The larger ones would not fit on it with their
    KV cache; only their schedules are judged, so memory is 1 TiB.
    """
    return nr.device("h200").with_(hbm_saturation_sms=(saturation, saturation), memory_bytes=1 << 40)


def synthetic(count: int = 200) -> list[nr.Graph]:
    """Random DAGs of 20 to 120 nodes, of each family in turn, bound by compute, memory, few SMs or PCIe."""
    makers = (families.layered, families.fork_join, families.series_parallel, families.llm_like)
    return [makers[seed % len(makers)](random.Random(seed).randint(20, 120), seed) for seed in range(count)]
