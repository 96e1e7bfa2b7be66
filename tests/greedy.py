"""Greedy tokens by Hugging Face transformers, and the comparison with ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from nanort.graphs import DecoderConfig

CLOSE = 1e-3
"""Two best logits nearer than this may swap with the last bits of a differently blocked matrix product."""


@dataclass(frozen=True)
class Reference:
    """The tokens that transformers generates, and how far apart the two best logits were at each."""

    tokens: list[int]
    gaps: list[float]


def transformers_sizes(config: DecoderConfig) -> dict[str, Any]:
    """The sizes of a decoder in transformers' words."""
    return {
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.theta},
        "max_position_embeddings": config.max_positions,
    }


def transformers_model(config: DecoderConfig, weights: dict[str, torch.Tensor]) -> LlamaForCausalLM:
    """transformers' Llama with our weights, float32 on the CPU."""
    settings = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        **transformers_sizes(config),
        tie_word_embeddings=config.tied,
    )
    model = LlamaForCausalLM(settings).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"} if config.tied else not missing
    return model


@torch.no_grad()
def reference(model: LlamaForCausalLM, prompt: Sequence[int], count: int) -> Reference:
    """``count`` greedy tokens after ``prompt``, one by one, the end of the text ignored."""
    found, gaps, cache, ids = [], [], DynamicCache(), torch.tensor([list(prompt)])
    for _ in range(count):
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True).logits[0, -1]
        (best, second), (token, _) = logits.topk(2)
        found.append(int(token))
        gaps.append(float(best - second))
        ids = token.view(1, 1)
    return Reference(found, gaps)


def close_calls(expected: Sequence[Reference], ours: Sequence[Sequence[int]]) -> list[str]:
    """Where ours part from the reference after a close call, a line each; any other difference fails."""
    lines = []
    for number, (want, got) in enumerate(zip(expected, ours, strict=True)):
        assert len(got) == len(want.tokens), f"prompt {number}: {len(got)} tokens, not {len(want.tokens)}"
        step = next((k for k, (a, b) in enumerate(zip(want.tokens, got, strict=True)) if a != b), None)
        if step is None:
            continue
        gap = want.gaps[step]
        assert gap < CLOSE, f"prompt {number} parts at token {step}, where the two best logits are {gap:.4f} apart"
        lines.append(f"prompt {number} parts at token {step}, where the two best logits are {gap:.1e} apart")
    return lines
