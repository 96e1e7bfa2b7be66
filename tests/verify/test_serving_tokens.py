"""Greedy tokens of tiny random models of every architecture, served in one continuous batch, against transformers."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

import nanort as nr
from nanort.checkpoints.tokenizer import ByteTokenizer
from nanort.serving.engine import StepRecord
from nanort.serving.generate import LLM
from nanort.serving.steps import page_bytes
from serving_models import MODELS, TinyModel, drawn_prompts, parted, served

PAGE, COUNT = 2, 20
PROMPTS = drawn_prompts(20, longest=90, shared=40)
AMPLE = sum(len(prompt) + COUNT + PAGE for prompt in PROMPTS)
SMALL = max(len(prompt) for prompt in PROMPTS) + COUNT + 40 * PAGE
CACHES: dict[str, dict[str, Any]] = {
    "ample": {"cache_tokens": AMPLE, "prefix_sharing": False},
    "shared": {"cache_tokens": AMPLE},
    "recomputed": {"cache_tokens": SMALL, "prefix_sharing": False},
    "swapped": {"cache_tokens": SMALL, "preempt": "swap"},
}
CORE = nr.device("cpu").with_(sms=1, hbm_saturation_sms=(1, 1))
"""Two cores are slow at products as small as these; where there are two, pieces run beside each other."""
SIZES = list(product((16, 64), (1, 2, 3)))
"""Rows of a step, and nano-batches."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every model in every size and with every cache, and every size with every cache; with --soak all of the three."""
    soak = metafunc.config.getoption("soak")
    cases = [
        (name, *size, cache)
        for (m, name), (s, size), (c, cache) in product(enumerate(MODELS), enumerate(SIZES), enumerate(CACHES))
        if soak or (m + s) % len(CACHES) == c
    ]
    metafunc.parametrize(("model", "rows", "pieces", "cache"), cases, indirect=["model"], scope="module")


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return TinyModel.make(request.param, tmp_path_factory.mktemp("model"))


def test_tokens_are_those_of_transformers(model: TinyModel, rows: int, pieces: int, cache: str) -> None:
    options: dict[str, Any] = {"max_rows": rows, "nano_batches": (pieces,), "page_size": PAGE, **CACHES[cache]}
    options["device"] = nr.device("cpu") if rows > 16 else CORE
    if cache == "swapped":
        options["host_cache"] = 800 * page_bytes(model.config, PAGE, torch.float32)
    steps = list[StepRecord]()
    with LLM(model.config, model.weights, ByteTokenizer(), policy="list", guard=False, **options) as llm:
        llm.engine.observers.append(steps.append)
        requests = served(llm.engine, PROMPTS, COUNT, seed=rows + pieces)
        cuts = {len({node.piece for node in plan.schedule.graph.nodes}) for plan in llm.plans}
    preempted = sum(request.preemptions for request in requests)
    shared = sum(request.prefix_hits for request in requests)
    loaded = sum(len(step.batch.loads) for step in steps)
    lines = parted(model.theirs, PROMPTS, [request.generated for request in requests])
    told = f"{len(steps)} steps, {preempted} preemptions, {shared} tokens shared, {loaded} pages loaded"
    print(f"{told}, {len(PROMPTS) * COUNT} tokens, {len(lines)} close calls", *lines, sep="\n  ")
    assert max(step.batch.layout.rows for step in steps) == rows
    assert max(cuts) == pieces
    assert (preempted > 0) == (cache in ("recomputed", "swapped"))
    assert (shared > 0) == (cache in ("shared", "swapped"))
    assert (loaded > 0) == (cache == "swapped")
