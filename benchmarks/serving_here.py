"""SmolLM2 on this machine's CPU: requests served by nanort, and the same ones by transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

import nanort as nr
from benchmarks.measure import Row, Spread, compared, interleave
from benchmarks.serving_peers import ROWS, in_continuous_batches, in_static_batches, model_of
from nanort.bench.arrivals import Arrival, arrivals
from nanort.bench.report import Report
from nanort.bench.serve import bench_serve, drawn_prompt
from nanort.checkpoints.tokenizer import ByteTokenizer
from nanort.checkpoints.weights import find_smollm2, load_weights, open_checkpoint
from nanort.graphs import CONFIGS, DecoderConfig, random_weights
from nanort.ops import products
from nanort.serving.generate import LLM

GOAL = 2.0
"""Times as many tokens a second as the best of transformers' ways."""
ROUNDS = 2
PLANNED, SERIAL = "nanort, co-scheduled", "nanort, serial"
AS_TORCH = "nanort, co-scheduled, products as torch has them"
BY_PROMPT, BY_REPLY = (f"transformers, static batches of 8 sorted by {what}" for what in ("prompt", "reply"))
CONTINUOUS = "transformers, continuous batching"
PEERS = (BY_PROMPT, BY_REPLY, CONTINUOUS)


@dataclass(frozen=True, slots=True)
class Model:
    """What all serve."""

    name: str
    config: DecoderConfig
    weights: dict[str, torch.Tensor]

    @classmethod
    def load(cls, quick: bool, dtype: torch.dtype) -> Model:
        """SmolLM2 where its package is installed and it is not to be quick, otherwise a tiny random one."""
        path = None if quick else find_smollm2()
        if path is None:
            return cls("tiny", CONFIGS["tiny"], random_weights(CONFIGS["tiny"], dtype))
        with open_checkpoint(path) as checkpoint:
            config = DecoderConfig.from_hf(checkpoint.config)
            return cls("SmolLM2-135M", config, load_weights(checkpoint, config, dtype))

    def served(self, policy: str) -> LLM:
        """It by nanort; where prompts are served again, nothing of them is to be found."""
        cuts = (1,) if policy == "serial" else (1, 2)
        sizes = {"cache_tokens": 1 << 15, "max_rows": ROWS, "seats": 64}
        return LLM(
            self.config, self.weights, ByteTokenizer(), policy=policy, nano_batches=cuts, prefix_sharing=False, **sizes
        )


def rows(quick: bool, dtype: torch.dtype) -> Iterator[Row]:
    """Seconds of each way to serve all requests, in turn, and what is known of ours besides."""
    model = Model.load(quick, dtype)
    coming = arrivals("azure", 6 if quick else 64, scale=1 / 64 if quick else 1 / 8, most=model.config.max_positions)
    reports: dict[str, Report] = {}
    torch.set_num_threads(nr.device("cpu").sms)  # as many as ours takes; the harness sets them back
    variants: dict[str, Callable[[], object]] = {
        PLANNED: lambda: reports.update({PLANNED: _anew(model, "list", coming)}),
        SERIAL: lambda: reports.update({SERIAL: _anew(model, "serial", coming)}),
        AS_TORCH: lambda: reports.update({AS_TORCH: _as_torch(model, coming)}),
        **_peers(model, coming),
    }
    found = interleave(variants, 1 if quick else ROUNDS, warmup=0).seconds  # a server's first requests count as well
    tokens = sum(one.prompt + one.output for one in coming)
    best = min(PEERS, key=lambda name: float(np.median(found[name])))
    what = f"{model.name}, {len(coming)} requests, {tokens:,} tokens, {dtype}, {torch.get_num_threads()} threads"
    for name, seconds in found.items():
        yield Row(f"{what}: {name}", "tokens/s", Spread.of(tokens / seconds))
    yield compared(f"{what}: {PLANNED}", found[PLANNED], best, found[best], unit="s", goal=(">=", GOAL))
    yield compared(f"{what}: {SERIAL}", found[SERIAL], best, found[best], unit="s")
    yield compared(f"{what}: {AS_TORCH}", found[AS_TORCH], best, found[best], unit="s")
    yield compared(f"{what}: {PLANNED}", found[PLANNED], SERIAL, found[SERIAL], unit="s")
    yield compared(f"{what}: {PLANNED}", found[PLANNED], AS_TORCH, found[AS_TORCH], unit="s")
    for name, report in reports.items():
        yield Row(f"{what}: {name}: of that, planning", "s", Spread.of([report.planning_seconds]))
        yield Row(f"{what}: {name}: rows a step", "rows", Spread.of([report.rows / report.steps]))
        yield Row(f"{what}: {name}: of optimal by {report.costs}", "%", Spread.of([100 * report.optimal]))


def _anew(model: Model, policy: str, coming: Sequence[Arrival]) -> Report:
    """Served by an engine that has planned nothing yet."""
    with model.served(policy) as llm:
        return bench_serve(llm, coming)


def _as_torch(model: Model, coming: Sequence[Arrival]) -> Report:
    """Served with the library for products that torch takes by itself, so that the gain of another is told apart."""
    before = products.ONEDNN
    products.ONEDNN = None
    try:
        return _anew(model, "list", coming)
    finally:
        products.ONEDNN = before


def _peers(model: Model, coming: Sequence[Arrival]) -> dict[str, Callable[[], object]]:
    """The same prompts, answered to the same lengths."""
    prompts = [drawn_prompt(0, number, one.prompt, model.config.vocab) for number, one in enumerate(coming)]
    replies = [one.output for one in coming]
    theirs = model_of(model.config, model.weights)
    by_prompt, by_reply = (
        sorted(range(len(coming)), key=lengths.__getitem__) for lengths in ([*map(len, prompts)], replies)
    )
    return {
        BY_PROMPT: lambda: in_static_batches(theirs, prompts, replies, by_prompt),
        BY_REPLY: lambda: in_static_batches(theirs, prompts, replies, by_reply),
        CONTINUOUS: lambda: in_continuous_batches(theirs, prompts, replies),
    }
