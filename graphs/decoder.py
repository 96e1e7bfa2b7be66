"""decoder: one step of a Llama- or Mixtral-style decoder, its rows prefill or decode or both, over a paged KV cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import nanort as nr
from nanort import ops
from nanort.graphs.config import DecoderConfig


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

    Inputs, one entry a row: ``tokens``, ``positions`` (in the request), ``slots`` (of the cache, page * page_size +
    offset) and ``requests`` (row of the page table). Besides: the page table ``pages`` (requests, table_width), and
    ``last`` (requests,), the packed row of this step that each request's next token follows from.
    States are ``kv.0``, ``kv.1``, ... of shape (pages, 2, page_size, kv_heads, head_dim), constants the weights.
    """
    g = nr.Graph(name, layout)
    step = Step.inputs(g, config, (pages, page_size), (requests, table_width), dtype)
    x, residual = step.embed()
    for i in range(config.layers):
        with g.scope(layer=i):
            x, residual = step.layer(i, x, residual)
    step.head(x, sampling)
    return g


@dataclass(frozen=True, slots=True)
class Step:
    """What all layers of a step share: the values of its rows, the weights by name, the cache by layer."""

    graph: nr.Graph
    config: DecoderConfig
    weights: dict[str, nr.Value]
    kv: list[nr.Value]
    tokens: nr.Value
    positions: nr.Value
    slots: nr.Value
    requests: nr.Value
    pages: nr.Value
    last: nr.Value

    @classmethod
    def inputs(
        cls, g: nr.Graph, config: DecoderConfig, cache: tuple[int, int], table: tuple[int, int], dtype: torch.dtype
    ) -> Step:
        """Declares inputs, constants and states, for a ``cache`` of (pages, page_size) and a page ``table``'s shape."""
        assert g.layout is not None
        per_row = (g.layout.rows,), torch.int64
        kv = (cache[0], 2, cache[1], config.kv_heads, config.head_dim)
        return cls(
            graph=g,
            config=config,
            weights={name: g.constant(name, *spec) for name, spec in config.weights(dtype).items()},
            kv=[g.state(f"kv.{i}", kv, dtype) for i in range(config.layers)],
            tokens=g.input("tokens", *per_row, batch=0),
            positions=g.input("positions", *per_row, batch=0),
            slots=g.input("slots", *per_row, batch=0),
            requests=g.input("requests", *per_row, batch=0),
            pages=g.input("pages", table, torch.int32),
            last=g.input("last", table[:1], torch.int64),
        )

    def embed(self) -> tuple[nr.Value, nr.Value]:
        """The rows' embeddings, normalised for the first layer and as they are."""
        x = ops.embedding(self.tokens, self.weights["model.embed_tokens.weight"])
        return ops.rms_norm(x, self.norm(0), eps=self.config.eps), x

    def layer(self, i: int, x: nr.Value, residual: nr.Value) -> tuple[nr.Value, nr.Value]:
        """What layer ``i`` makes of its normalised input: the input of the next, and the residual stream."""
        eps, weight = self.config.eps, f"model.layers.{i}.post_attention_layernorm.weight"
        x, residual = ops.add_rms_norm(self.attention(i, x), residual, self.weights[weight], eps=eps)
        x, residual = ops.add_rms_norm(self.ffn(i, x), residual, self.norm(i + 1), eps=eps)
        return x, residual

    def attention(self, i: int, x: nr.Value) -> nr.Value:
        g, kv, heads, dim = self.graph, self.kv[i], self.config.heads, self.config.head_dim
        q = self.linear(i, "self_attn.q_proj", x).reshape(-1, heads, dim)
        k = self.linear(i, "self_attn.k_proj", x).reshape(-1, self.config.kv_heads, dim)
        v = self.linear(i, "self_attn.v_proj", x).reshape(-1, self.config.kv_heads, dim)
        q = ops.rope_kv_append(kv, q, k, v, self.positions, self.slots, theta=self.config.theta)
        (dq, pq), (dp, pp), (dr, pr) = g.split(q), g.split(self.positions), g.split(self.requests)
        decode = ops.decode_attention(dq, kv, self.pages, dp, dr)
        prefill = ops.prefill_attention(pq, kv, self.pages, pp, pr)
        return self.linear(i, "self_attn.o_proj", g.join(decode, prefill).reshape(-1, heads * dim))

    def ffn(self, i: int, x: nr.Value) -> nr.Value:
        if self.config.experts:
            return self.mixture(i, x)
        gate, up = self.linear(i, "mlp.gate_proj", x), self.linear(i, "mlp.up_proj", x)
        return self.linear(i, "mlp.down_proj", ops.silu_mul(gate, up))

    def mixture(self, i: int, x: nr.Value) -> nr.Value:
        """The gated layer of each row's experts, weighted and summed."""
        layer = f"model.layers.{i}.block_sparse_moe"
        w1, w2, w3 = (self.weights[f"{layer}.experts.{name}.weight"] for name in ("w1", "w2", "w3"))
        experts, weights = ops.route(x, self.weights[f"{layer}.gate.weight"], top_k=self.config.experts_per_token)
        gate = ops.expert_linear(x, experts, w1, name="expert_gate")
        up = ops.expert_linear(x, experts, w3, name="expert_up")
        y: nr.Value = ops.expert_combine(ops.silu_mul(gate, up), experts, weights, w2, name="expert_down")
        return y

    def head(self, x: nr.Value, sampling: bool) -> None:
        """Names the outputs: logits of the rows that end a request's share of the step, and the next tokens."""
        weight = self.weights["model.embed_tokens.weight" if self.config.tied else "lm_head.weight"]
        logits = ops.linear(ops.gather(x, self.last), weight, name="lm_head")
        tokens = ops.sample(logits, *self.sampling_inputs()) if sampling else ops.argmax(logits)
        self.graph.output(tokens=tokens, logits=logits)

    def sampling_inputs(self) -> list[nr.Value]:
        dtypes = {"uniform": torch.float32, "temperature": torch.float32, "top_k": torch.int64, "top_p": torch.float32}
        return [self.graph.input(name, self.last.shape, dtype) for name, dtype in dtypes.items()]

    def norm(self, i: int) -> nr.Value:
        """The weight that normalises the input of layer ``i``; after the last, that of the head."""
        last = i == self.config.layers
        return self.weights["model.norm.weight" if last else f"model.layers.{i}.input_layernorm.weight"]

    def linear(self, i: int, module: str, x: nr.Value) -> nr.Value:
        y: nr.Value = ops.linear(x, self.weights[f"model.layers.{i}.{module}.weight"], name=module.rpartition(".")[2])
        return y
