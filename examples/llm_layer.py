"""A LLaMA-3-8B layer as the plain function that one would write anyway, cut in two and scheduled for an H200."""

from __future__ import annotations

import torch

import nanort as nr
from nanort import ops

LAYERS, HIDDEN, FFN, HEADS, KV_HEADS, DIM = 4, 4096, 14336, 32, 8, 128
DECODE, CONTEXT, PREFILL, PAGE = 670, 1280, 1340, 16  # requests that decode, tokens of each, rows of one prompt
WEIGHTS = {
    "q": (HEADS * DIM, HIDDEN),
    "k": (KV_HEADS * DIM, HIDDEN),
    "v": (KV_HEADS * DIM, HIDDEN),
    "o": (HIDDEN, HEADS * DIM),
    "gate": (FFN, HIDDEN),
    "up": (FFN, HIDDEN),
    "down": (HIDDEN, FFN),
    "norm": (HIDDEN,),
    "next_norm": (HIDDEN,),
}
Values = dict[str, nr.Value]


def layer(
    g: nr.Graph, h: nr.Value, residual: nr.Value, kv: nr.Value, w: Values, row: Values
) -> tuple[nr.Value, nr.Value]:
    """Attention over the paged cache, then the gated feed-forward; nothing in it speaks of pieces or streams."""

    def dense(name: str, x: nr.Value) -> nr.Value:
        return ops.linear(x, w[name], name=name)

    q = ops.rope(dense("q", h).reshape(-1, HEADS, DIM), row["positions"])
    k = ops.rope(dense("k", h).reshape(-1, KV_HEADS, DIM), row["positions"])
    ops.kv_append(kv, k, dense("v", h).reshape(-1, KV_HEADS, DIM), row["slots"])
    (q1, q2), (at1, at2), (of1, of2) = g.split(q), g.split(row["positions"]), g.split(row["requests"])
    decode = ops.decode_attention(q1, kv, row["pages"], at1, of1)
    prefill = ops.prefill_attention(q2, kv, row["pages"], at2, of2)
    h, residual = ops.add_rms_norm(dense("o", g.join(decode, prefill).reshape(-1, HEADS * DIM)), residual, w["norm"])
    h = dense("down", ops.silu_mul(dense("gate", h), dense("up", h)))
    return ops.add_rms_norm(h, residual, w["next_norm"])


def step() -> nr.Graph:
    """A few layers of a step that mixes decode rows and prefill rows."""
    g = nr.Graph("llm_layer", layout=nr.Layout(decode=DECODE, prefill=PREFILL, kv_tokens=DECODE * CONTEXT))
    rows, width = DECODE + PREFILL, -(-max(CONTEXT, PREFILL) // PAGE)
    row = {name: g.input(name, (rows,), torch.int64, batch=0) for name in ("positions", "slots", "requests")}
    row["pages"] = g.input("pages", (DECODE + 1, width), torch.int32)
    h, residual = (g.input(name, (rows, HIDDEN), torch.bfloat16, batch=0) for name in ("h", "residual"))
    for i in range(LAYERS):
        w = {name: g.constant(f"{name}.{i}", shape, torch.bfloat16) for name, shape in WEIGHTS.items()}
        kv = g.state(f"kv.{i}", (1 + (DECODE + 1) * width, 2, PAGE, KV_HEADS, DIM), torch.bfloat16)
        with g.scope(layer=i):
            h, residual = layer(g, h, residual, kv, w, row)
    g.output(h=h, residual=residual)
    return g


def main() -> None:
    """Prints the graph, whole and cut, and its schedule for an H200."""
    whole = step()
    print(whole)
    print(nr.nano_batch(whole, 2))  # co_schedule does this by itself, for each count in nano_batches=(1, 2)
    schedule = nr.co_schedule(whole, nr.device("h200"))
    print(schedule)
    print(schedule.explain())


if __name__ == "__main__":
    main()
