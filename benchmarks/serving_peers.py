"""Requests answered by Hugging Face transformers: its `generate` in static batches, and its continuous batching."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM

from nanort.graphs import DecoderConfig

STATIC = 8
"""Requests of a static batch."""
ROWS = 512
"""Rows of a step of continuous batching, as in ours."""
PAGE = 16


def model_of(config: DecoderConfig, weights: dict[str, torch.Tensor]) -> LlamaForCausalLM:
    """A Llama of transformers with these weights."""
    dtype = next(iter(weights.values())).dtype
    settings = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=config.vocab,
        hidden_size=config.hidden,
        intermediate_size=config.ffn,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.theta},
        max_position_embeddings=config.max_positions,
        tie_word_embeddings=config.tied,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(settings).to(dtype).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise AssertionError(f"transformers lacks {unexpected} and has {missing} besides")
    return model


@torch.no_grad()
def in_static_batches(
    model: LlamaForCausalLM, prompts: Sequence[Sequence[int]], replies: Sequence[int], order: Sequence[int]
) -> list[list[int]]:
    """The replies of so many tokens, in batches of the given order, each as long as its longest request."""
    found: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), STATIC):
        batch = order[start : start + STATIC]
        width = max(len(prompts[number]) for number in batch)
        padding = [width - len(prompts[number]) for number in batch]
        rows = [[0] * pad + list(prompts[number]) for number, pad in zip(batch, padding, strict=True)]
        mask = [[0] * pad + [1] * (width - pad) for pad in padding]
        how = _greedy(max(replies[number] for number in batch))
        out = model.generate(torch.tensor(rows), attention_mask=torch.tensor(mask), generation_config=how)
        for number, row in zip(batch, out[:, width:].tolist(), strict=True):
            found[number] = row[: replies[number]]
    return found


def in_continuous_batches(
    model: LlamaForCausalLM, prompts: Sequence[Sequence[int]], replies: Sequence[int]
) -> list[list[int]]:
    """The replies by transformers' own continuous batching, with room for all requests in its cache."""
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)  # it misses an optional package
    pages = sum(-(-(len(prompt) + reply) // PAGE) for prompt, reply in zip(prompts, replies, strict=True))
    sizes = ContinuousBatchingConfig(
        page_size=PAGE, num_blocks=pages + 64, max_batch_tokens=ROWS, max_requests_per_batch=len(prompts)
    )
    found: dict[str, Any] = {}
    how = _greedy(max(replies))
    with model.continuous_batching_context_manager(
        generation_config=how, continuous_batching_config=sizes, warmup=False
    ) as manager:
        for number, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
            manager.add_request(list(prompt), request_id=str(number), max_new_tokens=reply, eos_token_id=-1)
        while len(found) < len(prompts) and manager.is_running():
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                found[result.request_id] = result
    return [list(found[str(number)].generated_tokens) for number in range(len(prompts))]


def _greedy(tokens: int) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0, use_cache=True
    )
