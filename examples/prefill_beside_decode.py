"""A decode step beside some layers of a prompt, on SMs of their own, so that prompts do not hold up those that decode.

The first part plans steps of LLaMA-3-8B for an H200: a chunk of 2048 rows of a prompt as a whole, as fewer rows (what
chunked prefill does), and layer by layer. The second part generates with a tiny model on this machine, with and without
a time per token to hold.
"""

from __future__ import annotations

import torch

import nanort as nr
from nanort import graphs
from nanort.checkpoints.tokenizer import ByteTokenizer
from nanort.serving.generate import LLM
from nanort.serving.sampling import SamplingParams

LLAMA = graphs.CONFIGS["llama-3-8b"]
DECODE, CONTEXT, PAGE = 128, 1024, 16
CHUNK = 2048
PROMPTS = ("One", "A longer prompt, which takes several steps", "Two", "Another prompt that others do not wait for")


def step(rows: int, layers: int = LLAMA.layers) -> nr.Graph:
    """A decode step, and so many rows of a prompt, which pass all layers or the first ones only."""
    layout = nr.Layout(decode=DECODE, prefill=rows, kv_tokens=DECODE * CONTEXT)
    width = max(CONTEXT, rows) // PAGE
    sizes = {"pages": 1 + (DECODE + 1) * width, "requests": DECODE + 1, "table_width": width}
    if layers == LLAMA.layers:
        return graphs.decoder(LLAMA, layout, dtype=torch.bfloat16, **sizes)
    return graphs.beside(LLAMA, layout, first=0, layers=layers, chunk_rows=CHUNK, dtype=torch.bfloat16, **sizes)


def row(schedule: nr.Schedule, rows: int, layers: int) -> str:
    """How long every token takes, and how much of a prompt is done in a millisecond."""
    done = rows * layers / LLAMA.layers / schedule.makespan / 1e3
    return f"{rows:5} rows, {layers:2} layers{1e3 * schedule.makespan:12.1f} ms{done:14.1f}  {schedule.mechanism}"


def main() -> None:
    """Plans; then generates."""
    device = nr.device("h200")
    print("beside 128 rows that decode  time per token  rows per ms  mechanism")
    for rows in (128, 256, 512, CHUNK):
        print(row(nr.co_schedule(step(rows), device, effort=300), rows, LLAMA.layers))
    for layers in (1, 2, 4, 8, 16):
        schedule = nr.co_schedule(step(CHUNK, layers), device, policy=nr.Apart())
        print(row(schedule, CHUNK, layers))
    config = graphs.CONFIGS["tiny"]
    weights, params = graphs.random_weights(config, torch.float32), SamplingParams(max_new_tokens=12, ignore_eos=True)
    replies = []
    for slo_tpot in (None, 1e-6):  # no step holds a microsecond: a layer of a prompt at a time
        with LLM(config, weights, ByteTokenizer(), max_rows=16, slo_tpot=slo_tpot) as llm:
            replies.append([completion.tokens for completion in llm.generate(PROMPTS, params)])
            graphs_run = sorted({plan.schedule.source.name for plan in llm.plans})
            print(f"slo_tpot={slo_tpot}: {len(replies[-1])} replies by graphs called {', '.join(graphs_run)}")
    print(f"the same tokens: {replies[0] == replies[1]}")


if __name__ == "__main__":
    main()
