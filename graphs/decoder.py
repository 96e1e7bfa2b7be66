"""decoder: one step of a decoder, its rows prefill or decode or both, over a paged KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

import nanort as nr
from nanort import ops
from nanort.graphs.config import DecoderConfig
from nanort.graphs.model import MODELS


def decoder(
    config: DecoderConfig,
    layout: nr.Layout,
    *,
    pages: int,
    page_size: int = 16,
    requests: int,
    table_width: int,
    dtype: torch.dtype = torch.float32,
    name: str = "decoder",
    sampling: bool = False,
    seats: int = 0,
) -> nr.Graph:
    """The graph of one step; its outputs are ``tokens`` (requests,) and ``logits`` (requests, vocab).

    Args:
        config: the sizes of the model.
        layout: the rows of the step: decode, then prefill.
        pages: how many pages the KV cache has.
        page_size: how many tokens each of them holds.
        requests: how many requests have rows in this step.
        table_width: how many pages a request may have.
        dtype: of weights, cache and what is computed.
        name: of the graph.
        sampling: draws the tokens by ``uniform``, ``temperature``, ``top_k`` and ``top_p`` (requests,) instead of
            taking the likeliest.
        seats: keeps drawn tokens on the device, for so many requests; 0 keeps none.

    Inputs, one entry a row: ``tokens``, ``positions`` (in the request), ``slots`` (of the cache, page * page_size +
    offset) and ``requests`` (row of the page table). Besides: the page table ``pages`` (requests, table_width), and
    ``last`` (requests,), the packed row of this step that each request's next token follows from.
    States are ``kv.0``, ``kv.1``, ... of shape (pages, 2, page_size, kv_heads, head_dim), constants the weights.

    With ``seats`` the next step can be built before this one has ended. The state ``drawn`` (seats + 1,) holds the
    token that was drawn last at each seat, and the input ``seats`` (requests,) says where each token of this step goes;
    those that nobody waits for go to the last entry, ``seats``. A row of ``tokens`` may then be -1 - seat: what was
    drawn there.
    """
    g = nr.Graph(name, layout)
    step = Step.inputs(g, config, (pages, page_size), (requests, table_width), dtype, seats)
    x, residual = step.embed()
    for i in range(config.layers):
        with g.scope(layer=i):
            x, residual = step.layer(i, x, residual)
    step.head(x, sampling)
    return g


@dataclass(frozen=True, slots=True)
class Step:
    """What all layers of a step share: the values of its rows, the weights by name, the cache by layer.

    ``layout`` says which rows of the graph's these are: all, or those of a part that is called on its own.
    """

    graph: nr.Graph
    layout: nr.Layout
    config: DecoderConfig
    weights: dict[str, nr.Value]
    kv: list[nr.Value]
    tokens: nr.Value
    positions: nr.Value
    slots: nr.Value
    requests: nr.Value
    pages: nr.Value
    last: nr.Value
    drawn: nr.Value | None = None
    seats: nr.Value | None = None

    @classmethod
    def inputs(
        cls,
        g: nr.Graph,
        config: DecoderConfig,
        cache: tuple[int, int],
        table: tuple[int, int],
        dtype: torch.dtype,
        seats: int = 0,
    ) -> Step:
        """Declares inputs, constants and states, for a ``cache`` of (pages, page_size) and a page ``table``'s shape."""
        assert g.layout is not None
        per_row = (g.layout.rows,), torch.int64
        constants = config.weights(dtype) | {name: (rope.shape, rope.dtype) for name, rope in config.tables.items()}
        kv = (cache[0], 2, cache[1], config.kv_heads, config.head_dim)
        return cls(
            graph=g,
            layout=g.layout,
            config=config,
            weights={name: g.constant(name, *spec) for name, spec in constants.items()},
            kv=[g.state(f"kv.{i}", kv, dtype, scratch=(0, 1)) for i in range(config.layers)],
            tokens=g.input("tokens", *per_row, batch=0),
            positions=g.input("positions", *per_row, batch=0),
            slots=g.input("slots", *per_row, batch=0),
            requests=g.input("requests", *per_row, batch=0),
            pages=g.input("pages", table, torch.int32),
            last=g.input("last", table[:1], torch.int64),
            drawn=g.state("drawn", (seats + 1,), torch.int64, scratch=(seats, seats + 1)) if seats else None,
            seats=g.input("seats", table[:1], torch.int64) if seats else None,
        )

    def embed(self) -> tuple[nr.Value, nr.Value]:
        """The rows' embeddings, normalised for the first layer and as they are."""
        tokens = self.tokens if self.drawn is None else ops.recall(self.tokens, self.drawn)
        x = ops.embedding(tokens, self.weights["model.embed_tokens.weight"])
        return ops.rms_norm(x, self.norm(0), eps=self.config.eps), x

    def layer(self, i: int, x: nr.Value, residual: nr.Value) -> tuple[nr.Value, nr.Value]:
        """What layer ``i`` makes of its normalised input: the input of the next, and the residual stream."""
        x, residual = MODELS[self.config.model].layer(Layer(self, i), x, residual)
        x, residual = ops.add_rms_norm(x, residual, self.norm(i + 1), eps=self.config.eps)
        return x, residual

    def head(self, x: nr.Value, sampling: bool) -> None:
        """Names the outputs: logits of the rows that end a request's share of the step, and the next tokens."""
        weight = self.weights["model.embed_tokens.weight" if self.config.tied else "lm_head.weight"]
        logits = ops.linear(ops.gather(x, self.last), weight, name="lm_head")
        tokens = ops.sample(logits, *self.sampling_inputs()) if sampling else ops.argmax(logits)
        if self.drawn is not None and self.seats is not None:
            ops.scatter(self.drawn, self.seats, tokens)
        self.graph.output(tokens=tokens, logits=logits)

    def sampling_inputs(self) -> list[nr.Value]:
        dtypes = {"uniform": torch.float32, "temperature": torch.float32, "top_k": torch.int64, "top_p": torch.float32}
        return [self.graph.input(name, self.last.shape, dtype) for name, dtype in dtypes.items()]

    def norm(self, i: int) -> nr.Value:
        """The weight that normalises the input of layer ``i``; after the last, that of the head."""
        last = i == self.config.layers
        return self.weights["model.norm.weight" if last else f"model.layers.{i}.input_layernorm.weight"]


@dataclass(frozen=True, slots=True)
class Layer:
    """Layer ``i`` of a step, as a model sees it: weights by their name in the layer, and what ends in the cache."""

    step: Step
    i: int

    @property
    def config(self) -> DecoderConfig:
        """The sizes of the decoder."""
        return self.step.config

    def weight(self, name: str) -> nr.Value:
        """The weight ``name`` of this layer."""
        return self.step.weights[f"model.layers.{self.i}.{name}"]

    def linear(self, module: str, x: nr.Value, *, bias: bool = False, name: str = "") -> nr.Value:
        """``x`` times the weight of a module, plus its bias if it has one; a node called ``name``, or as the module."""
        kinds = ("weight", "bias") if bias else ("weight",)
        weights = (self.weight(f"{module}.{kind}") for kind in kinds)
        y: nr.Value = ops.linear(x, *weights, name=name or module.rpartition(".")[2])
        return y

    def heads(self, x: nr.Value) -> nr.Value:
        """The heads of every row: (rows, heads * dim) -> (rows, heads, dim)."""
        return x.reshape(-1, x.shape[1] // self.config.head_dim, self.config.head_dim)

    def attention(self, q: nr.Value, k: nr.Value, v: nr.Value) -> nr.Value:
        """Attention to every row's request, this row included: (rows, heads, dim) each -> (rows, heads * dim).

        Queries and keys are rotated on the way; keys and values are appended to the cache.
        """
        step, config, layout = self.step, self.config, self.step.layout
        g, kv, tables = step.graph, step.kv[self.i], [step.weights[name] for name in config.tables]
        scaled: dict[str, Any] = {"scale": config.rope_scale} if tables else {}
        q = ops.rope_kv_append(
            kv, q, k, v, step.positions, step.slots, *tables, theta=config.theta, layout=layout, **scaled
        )
        (dq, pq), (dp, pp), (dr, pr) = (self._parts(rows) for rows in (q, step.positions, step.requests))
        decode = ops.decode_attention(dq, kv, step.pages, dp, dr, layout=layout)
        prefill = ops.prefill_attention(pq, kv, step.pages, pp, pr, layout=layout)
        return g.join(decode, prefill).reshape(-1, config.heads * config.head_dim)

    def add_norm(self, x: nr.Value, residual: nr.Value, name: str) -> tuple[nr.Value, nr.Value]:
        """The sum of both normalised by the weight ``name``, and the sum itself."""
        x, residual = ops.add_rms_norm(x, residual, self.weight(name), eps=self.config.eps)
        return x, residual

    def _parts(self, rows: nr.Value) -> tuple[nr.Value, nr.Value]:
        """The decode rows and the prefill rows."""
        decode, end = self.step.layout.decode, self.step.layout.rows
        return rows.narrow(0, 0, decode, "decode"), rows.narrow(0, decode, end, "prefill")
