"""House: a small model with the sizes that it is served by, its plans, and what it says when nothing disturbs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from nanort.chaos.scattered import Scattered
from nanort.devices import device
from nanort.graph import Graph
from nanort.graphs import DecoderConfig, decoder, random_weights
from nanort.layout import Layout, Segment
from nanort.scheduling.coschedule import co_schedule
from nanort.scheduling.schedule import Schedule
from nanort.serving.shapes import Shape
from nanort.serving.steps import Steps

DTYPE = torch.float64
"""In which no order of additions turns a token, so that a report is the same on every machine."""

LONGEST, MOST = 24, 10
"""Tokens of a prompt, and of a reply."""

GPU = device("h200").with_(name="simulated", sms=18, sm_granularity=2, sm_minimum=2, hbm_saturation_sms=(6, 6))
"""A small one, whose plans are soon made."""

DENSE = DecoderConfig(1, 16, 16, 2, 1, 8, 61, max_positions=128)
DEEP = DecoderConfig(2, 16, 16, 2, 2, 8, 61, max_positions=128)
EXPERTS = DecoderConfig(1, 16, 16, 2, 1, 8, 61, max_positions=128, experts=4, experts_per_token=2, model="mixtral")
"""Random models, small enough that a step takes milliseconds."""


@dataclass(frozen=True, slots=True)
class House:
    """A model and what does not change while it is served; whatever is found once for it is kept.

    Attributes:
        config: the model.
        pages, page_size, host_pages: of its KV cache.
        max_rows, seats: of its steps.
    """

    config: DecoderConfig
    pages: int
    page_size: int
    host_pages: int
    max_rows: int
    seats: int

    @property
    def steps(self) -> Steps:
        """The steps that it takes."""
        return Steps(self.config, DTYPE, self.pages, self.page_size, self.seats, self.max_rows)

    @property
    def room(self) -> int:
        """Tokens that one request can have."""
        return min(LONGEST + MOST, (self.pages - 1) * self.page_size)

    def __str__(self) -> str:
        layers = f"{self.config.layers} layer{'s' * (self.config.layers > 1)} of {self.config.model}"
        cache = f"{self.pages} pages of {self.page_size} tokens and {self.host_pages} on the host"
        return f"{layers}, {cache}, {self.max_rows} rows, {self.seats} seats"


HOUSES = (
    House(DENSE, 19, 2, 0, 8, 4),
    House(DENSE, 40, 4, 60, 16, 8),
    House(DENSE, 36, 1, 40, 8, 4),
    House(DEEP, 12, 4, 30, 16, 4),
    House(DEEP, 30, 2, 0, 8, 8),
    House(EXPERTS, 12, 4, 20, 8, 4),
)
"""Those that worlds are made of: few, since the plans of each take a while to make."""


GAIN = {"embed_tokens": 0.05, "q_proj": 4.0, "k_proj": 4.0, "o_proj": 5.0, "down_proj": 5.0, "w2": 5.0}
"""What weights are multiplied by, so that a text depends on all that stands in the cache, and seldom repeats itself."""


@cache
def weights(config: DecoderConfig) -> dict[str, torch.Tensor]:
    """Random weights of a model."""
    found = random_weights(config, DTYPE, seed=1)
    return {
        name: tensor * next((gain for part, gain in GAIN.items() if part in name), 1.0)
        for name, tensor in found.items()
    }


@cache
def graph_of(house: House, shape: Shape) -> Graph:
    """The graph of such a step."""
    return house.steps.graph(shape)


@cache
def schedule_of(house: House, shape: Shape, policy: int, pieces: int) -> Schedule:
    """A schedule of such a step: serial for policy 0, else scattered, cut into so many pieces."""
    graph = graph_of(house, shape)
    how = Scattered(policy) if policy else "serial"
    return co_schedule(graph, GPU, policy=how, nano_batches=pieces if shape.beside is None else 1, guard=False)


ROWS = LONGEST + MOST
BATCH = 8
"""Prompts that are continued together."""


@cache
def _known(config: DecoderConfig) -> dict[tuple[int, ...], tuple[int, ...]]:
    return {}


def replies(config: DecoderConfig, prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """What follows from each prompt, ``MOST`` tokens of it: whole texts through one graph that is run in order.

    Nothing of serving takes part in it, so it knows nothing of its mistakes.
    """
    known = _known(config)
    new = sorted(set(prompts) - known.keys())
    for start in range(0, len(new), BATCH):
        some = new[start : start + BATCH]
        known |= zip(some, _continued(config, some), strict=True)
    return [known[prompt] for prompt in prompts]


def _continued(config: DecoderConfig, prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    texts = [list(prompt) for prompt in prompts]
    graph = _whole_texts(config)
    rows, kv = torch.arange(BATCH * ROWS), (BATCH, 2, ROWS, config.kv_heads, config.head_dim)
    constant: dict[str, Any] = {
        "positions": rows % ROWS,
        "slots": rows,
        "requests": rows // ROWS,
        "pages": torch.arange(BATCH, dtype=torch.int32).view(BATCH, 1),
        **{f"kv.{i}": torch.zeros(kv, dtype=DTYPE) for i in range(config.layers)},
        **weights(config),
    }
    for _ in range(MOST):
        tokens, last = torch.zeros(BATCH * ROWS, dtype=torch.int64), torch.zeros(BATCH, dtype=torch.int64)
        for at, text in enumerate(texts):
            tokens[at * ROWS : at * ROWS + len(text)] = torch.tensor(text)
            last[at] = at * ROWS + len(text) - 1
        drawn = graph.eager(tokens=tokens, last=last, **constant)["tokens"].tolist()
        for text, token in zip(texts, drawn, strict=False):
            text.append(token)
    return [tuple(text[len(prompt) :]) for text, prompt in zip(texts, prompts, strict=True)]


@cache
def _whole_texts(config: DecoderConfig) -> Graph:
    layout = Layout(prefill=tuple(Segment(ROWS, 0) for _ in range(BATCH)))
    return decoder(config, layout, pages=BATCH, page_size=ROWS, requests=BATCH, table_width=1, dtype=DTYPE)
