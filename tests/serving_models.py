"""Tiny random models of every architecture, made by transformers, and what their tokens are held against."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from greedy import CLOSE
from nanort.checkpoints.weights import load_weights, open_checkpoint
from nanort.graphs import DecoderConfig
from nanort.serving.engine import Engine
from nanort.serving.requests import Request
from nanort.serving.sampling import SamplingParams

VOCAB = 257
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
_EXPERTS: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
_LLAMA3: dict[str, Any] = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
_YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 128}
_LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}

MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "llama, scaled as llama3": (LlamaConfig, {"rope_parameters": _LLAMA3, "tie_word_embeddings": True}),
    "llama, scaled linearly": (LlamaConfig, {"rope_parameters": _LINEAR, "num_key_value_heads": 4}),
    "mistral": (MistralConfig, {"sliding_window": None, "head_dim": 32}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2, scaled by yarn": (Qwen2Config, {"rope_parameters": _YARN}),
    "qwen3": (Qwen3Config, {"head_dim": 24, "tie_word_embeddings": True}),
    "phi3": (Phi3Config, {"num_key_value_heads": 4}),
    "mixtral": (MixtralConfig, {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "qwen2_moe": (Qwen2MoeConfig, {**_EXPERTS, "shared_expert_intermediate_size": 56, "norm_topk_prob": False}),
    "qwen3_moe": (Qwen3MoeConfig, {**_EXPERTS, "head_dim": 16, "norm_topk_prob": True}),
}
"""By name, a configuration of transformers and what of it is not the same for all."""


@dataclass(frozen=True, slots=True)
class TinyModel:
    """A random model as transformers computes it, and as nanort reads it from the folder that transformers wrote."""

    theirs: PreTrainedModel
    config: DecoderConfig
    weights: dict[str, torch.Tensor]

    @classmethod
    def make(cls, name: str, folder: Path, seed: int = 0) -> TinyModel:
        """The model of that name, by way of files in ``folder``."""
        kind, differs = MODELS[name]
        theirs = AutoModelForCausalLM.from_config(kind(**{**_SIZES, **differs}), dtype=torch.float32).eval()
        _draw(theirs, torch.Generator().manual_seed(seed))
        theirs.save_pretrained(folder)
        with open_checkpoint(folder) as checkpoint:
            config = DecoderConfig.from_hf(checkpoint.config)
            return cls(theirs, config, load_weights(checkpoint, config, torch.float32))


def _draw(model: PreTrainedModel, chance: torch.Generator) -> None:
    """Weights that keep the size of what they are applied to, so that few tokens are close calls."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=chance)
            matrix = parameter.dim() > 1
            parameter.copy_(
                noise / math.sqrt(parameter.shape[-1]) if matrix else noise / 10 + (not name.endswith("bias"))
            )


def drawn_prompts(count: int, *, longest: int, shared: int, seed: int = 0) -> list[list[int]]:
    """Prompts of 1 to ``longest`` tokens; each third begins with the same ``shared`` ones."""
    draw = random.Random(seed)
    start, prompts = draw.choices(range(VOCAB), k=shared), list[list[int]]()
    for number in range(count):
        begun = start if number % 3 == 0 else []
        prompts.append(begun + draw.choices(range(VOCAB), k=draw.randint(1, longest - len(begun))))
    return prompts


@torch.no_grad()
def parted(model: Any, prompts: Iterable[Sequence[int]], replies: Iterable[Sequence[int]]) -> list[str]:
    """Close calls, a line each, where greedy ``replies`` are not what ``model`` says; any other difference fails.

    Each token is held against the model's logits after the prompt and the tokens before it: if all agree, they are
    those that it would have generated one by one, and behind a close call the comparison goes on.
    """
    whole = [([*prompt], [*reply]) for prompt, reply in zip(prompts, replies, strict=True)]
    width = max(len(prompt) + len(reply) for prompt, reply in whole)
    # Attention is causal: what fills a row up behind its last token changes nothing before it.
    rows = torch.tensor([prompt + reply + [0] * (width - len(prompt) - len(reply)) for prompt, reply in whole])
    lines = []
    for number, (prompt, reply) in enumerate(whole):
        logits = model(input_ids=rows[number : number + 1, : len(prompt) + len(reply)]).logits[0, len(prompt) - 1 : -1]
        best, token = logits.max(dim=-1)
        behind = best - logits.gather(1, torch.tensor(reply)[:, None])[:, 0]
        for step in (token != torch.tensor(reply)).nonzero()[:, 0].tolist():
            where = f"request {number} parts at token {step}: logits {float(behind[step]):.1e} apart"
            assert behind[step] < CLOSE, where
            lines.append(where)
    return lines


def served(
    engine: Engine, prompts: Sequence[Sequence[int]], count: int, *, seed: int = 0, wait: int = 2
) -> list[Request]:
    """The prompts as requests that arrive a few steps apart at random, all of them served to their end."""
    arrivals, params = random.Random(seed), SamplingParams(max_new_tokens=count, ignore_eos=True)
    coming, requests = deque(prompts), list[Request]()
    while coming or engine.busy:
        for _ in range(min(len(coming), arrivals.choice((0, 0, 1, wait)))):
            requests.append(engine.submit(coming.popleft(), params))
        engine.step()
        engine.cache.check()
    for request in requests:
        if request.error is not None:
            raise request.error
        assert request.finish == "length", request
    assert engine.cache.used == engine.cache.leaving
    return requests
