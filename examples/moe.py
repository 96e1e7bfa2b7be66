"""A mixture of experts: routed and shared experts are nodes of their own, and run side by side; then text of one.

The first part plans four layers of Qwen1.5-MoE-A2.7B for an H200. The routed experts read much and compute little, the
shared one, which every row passes, waits for none of them. The second part generates with a tiny one on this machine.
"""

from __future__ import annotations

from dataclasses import replace

import torch

import nanort as nr
from nanort import graphs
from nanort.checkpoints.tokenizer import ByteTokenizer
from nanort.serving.generate import LLM
from nanort.serving.sampling import SamplingParams

QWEN = graphs.DecoderConfig(
    layers=4, hidden=2048, ffn=1408, heads=16, kv_heads=16, head_dim=128, vocab=151_936, theta=1e6,
    experts=60, experts_per_token=4, model="qwen2_moe", shared_ffn=5632, normalize=False,
)  # fmt: skip  # its config.json, but for the layers
TINY = replace(graphs.CONFIGS["tiny"], experts=8, experts_per_token=2, model="qwen2_moe", shared_ffn=96)
CONTEXT, PAGE = 512, 16


def step(rows: int) -> nr.Graph:
    """So many requests that decode."""
    return graphs.decoder(
        QWEN,
        nr.Layout(decode=rows, kv_tokens=rows * CONTEXT),
        pages=1 + rows * CONTEXT // PAGE,
        requests=rows,
        table_width=CONTEXT // PAGE,
        dtype=torch.bfloat16,
    )


def side_by_side(schedule: nr.Schedule) -> tuple[float, float]:
    """Seconds of the shared experts' products, and those of them in which routed experts run too."""
    shared = [a for a in schedule.assignments if ".shared_" in a.name]
    routed = [a for a in schedule.assignments if ".expert_" in a.name]
    both = sum(max(0.0, min(a.end, b.end) - max(a.start, b.start)) for a in shared for b in routed)
    return sum(a.end - a.start for a in shared), both


def main() -> None:
    """Plans steps of more and more rows; then generates."""
    names = [node.name for node in step(256).nodes]
    print(", ".join(names[names.index("layer0.route") : names.index("layer1.q_proj")]))
    print("rows  one after the other  co-scheduled  shared experts  beside routed ones")
    for rows in (128, 256, 512, 1024):
        schedule = nr.co_schedule(step(rows), nr.device("h200"), nano_batches=1)
        shared, both = side_by_side(schedule)
        print(
            f"{rows:4}{1e3 * schedule.serial_makespan:18.2f} ms{1e3 * schedule.makespan:11.2f} ms"
            f"{1e3 * shared:13.2f} ms{1e3 * both:17.2f} ms"
        )
    params = SamplingParams(max_new_tokens=8, ignore_eos=True)
    with LLM(TINY, graphs.random_weights(TINY, torch.float32), ByteTokenizer()) as llm:
        for completion in llm.generate(["Experts", "of many kinds"], params):
            print(list(completion.tokens))


if __name__ == "__main__":
    main()
