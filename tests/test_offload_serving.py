"""The host tier under the real engine: pages that leave and come back hold what they held, and tokens are the same."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import nanort as nr
from fake_driver import TwoThreads
from fake_runs import gpu
from nanort.checkpoints.tokenizer import ByteTokenizer
from nanort.errors import ExecutionError
from nanort.graphs import CONFIGS, decoder, offload, random_weights
from nanort.serving.batching import Batch
from nanort.serving.engine import StepRecord
from nanort.serving.generate import LLM
from nanort.serving.host_store import HostStore
from nanort.serving.requests import Request
from nanort.serving.runner import Result, Runner
from nanort.serving.sampling import SamplingParams
from nanort.serving.shapes import SWAPPED
from nanort.serving.steps import page_bytes

TINY, PAGE = CONFIGS["tiny"], 4
EXACT = torch.float64  # in which no order of additions turns a greedy token
WEIGHTS = {  # of a model whose text depends on what its keys and values are
    name: 20 * tensor if "o_proj" in name else tensor for name, tensor in random_weights(TINY, EXACT).items()
}
HOST_PAGE = page_bytes(TINY, PAGE, EXACT)
CORE = nr.device("cpu").with_(sms=1, hbm_saturation_sms=(1, 1))  # since two threads share small products slowly


def tiny(**options: Any) -> LLM:
    given: dict[str, Any] = {"device": CORE, "page_size": PAGE, "policy": "serial", "nano_batches": (1,)}
    return LLM(TINY, WEIGHTS, ByteTokenizer(), **(given | options))


def prompt(seed: int, length: int) -> tuple[int, ...]:
    return tuple(torch.randint(256, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def greedy(tokens: int, logprobs: int | None = 0) -> SamplingParams:
    return SamplingParams(max_new_tokens=tokens, ignore_eos=True, logprobs=logprobs)


@dataclass
class Reply:
    """What was generated, with the log-probabilities, which tell of any key or value that is not what it should be."""

    request: Request
    logprobs: list[float] = field(default_factory=list)

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(self.request.generated)


class Judged:
    """Requests served to their end while the accounts are checked at every step; counts what moved, and beside rows."""

    def __init__(self, llm: LLM) -> None:
        self.llm, self.saves, self.loads, self.beside = llm, 0, 0, torch.tensor([0, 0])
        llm.engine.observers.append(self.judge)

    def judge(self, record: StepRecord) -> None:
        cache = self.llm.cache
        cache.check()
        assert cache.free + cache.used == cache.pages - 1
        batch = record.batch
        self.saves += len(batch.saves)
        self.loads += len(batch.loads)
        if batch.shares:
            self.beside += torch.tensor([len(batch.saves), len(batch.loads)])

    def serve(self, prompts: Sequence[Sequence[int]], *params: SamplingParams) -> list[Reply]:
        """Their replies, by one of the ``params`` each, or all by the same."""
        each = zip(prompts, params if len(params) > 1 else params * len(prompts), strict=True)
        replies = {(made := self.llm.engine.submit(tokens, how)): Reply(made) for tokens, how in each}
        while self.llm.engine.busy:
            for output in self.llm.engine.step():
                replies[output.request].logprobs += [told.logprob for told in output.logprobs or ()]
        assert self.llm.cache.used == 0
        return list(replies.values())


def refuse_others(replies: Sequence[Reply]) -> None:
    """Asserts that these are the replies of a model with room for everything, where nothing is shared."""
    with tiny(prefix_sharing=False) as llm:
        requests = [reply.request for reply in replies]
        wanted = Judged(llm).serve([r.prompt for r in requests], *[r.params for r in requests])
    for reply, expected in zip(replies, wanted, strict=True):
        assert reply.tokens == expected.tokens
        assert reply.logprobs == pytest.approx(expected.logprobs, abs=1e-5)


def two_rounds(judged: Judged, logprobs: int | None = 0) -> tuple[list[Reply], list[Reply]]:
    """Three questions, something that takes all of the device's pages, and a question after each of the replies."""
    lengths = [greedy(length, logprobs) for length in (6, 11, 16)]
    first = judged.serve([prompt(seed, 17 + 3 * seed) for seed in range(3)], *lengths)
    judged.serve([prompt(9, 80)], lengths[0])
    assert judged.loads == 0
    questions = [(*reply.request.tokens, 7, 8, 9) for reply in first]
    second = judged.serve([prompt(8, 6), *questions], lengths[2], *lengths)
    assert min(judged.beside) > 5, "pages came and went beside the rows of other requests"
    return first, second


def test_later_rounds_find_the_earlier_ones_on_the_host() -> None:
    with tiny(cache_tokens=88, host_cache=60 * HOST_PAGE) as llm:
        judged = Judged(llm)
        first, second = two_rounds(judged)
    # All of a round stands in the cache but its last token; whole pages are found.
    hits = [0, *((len(reply.request.tokens) - 1) // PAGE * PAGE for reply in first)]
    assert [reply.request.prefix_hits for reply in second] == hits
    assert judged.loads * PAGE == sum(hits)
    refuse_others([*first, *second])


@pytest.mark.parametrize(("preempt", "host_pages"), [("recompute", 0), ("recompute", 30), ("swap", 30), ("swap", 3)])
def test_preemption_leaves_the_tokens_as_they_are(preempt: str, host_pages: int) -> None:
    prompts, params = [prompt(seed, 4 + 3 * seed) for seed in range(5)], greedy(20)
    with tiny(cache_tokens=48, host_cache=host_pages * HOST_PAGE, preempt=preempt) as llm:
        judged = Judged(llm)
        replies = judged.serve(prompts, params)
        assert sum(reply.request.preemptions for reply in replies) > 0
        assert (judged.saves > 0) == (host_pages > 0)
        assert judged.loads > 0 or (preempt, host_pages) != ("swap", 30)
    refuse_others(replies)


@pytest.mark.parametrize("seed", range(2))
def test_pages_come_and_go_on_a_gpu_whatever_its_streams_do_first(seed: int) -> None:
    # Of the order of log-probabilities, which torch computes on its own stream, the fake driver knows nothing.
    overlapped: dict[str, Any] = {"policy": "list", "guard": False, "device": nr.device("h200")}
    with gpu(TwoThreads(seed=seed)), tiny(cache_tokens=88, host_cache=60 * HOST_PAGE, **overlapped) as llm:
        first, second = two_rounds(Judged(llm), logprobs=None)
    refuse_others([*first, *second])


def failing_once(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """Lets the first batch that loads pages fail after it has run; that batch."""
    launch, collect, flying, failed = runner.launch, runner.collect, deque[Batch](), list[Batch]()

    def launched(batch: Batch) -> None:
        flying.append(batch)
        launch(batch)

    def collected() -> Result:
        batch, result = flying.popleft(), collect()
        if batch.loads and not failed:
            failed.append(batch)
            raise ExecutionError("the step failed")
        return result

    monkeypatch.setattr(runner, "launch", launched)
    monkeypatch.setattr(runner, "collect", collected)
    return failed


def test_a_failed_step_costs_its_own_requests_and_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    params = greedy(6)
    with tiny(cache_tokens=48, host_cache=60 * HOST_PAGE) as llm:
        judged = Judged(llm)
        first = judged.serve([prompt(seed, 20) for seed in range(3)], params)
        judged.serve([prompt(9, 40)], params)
        failed = failing_once(llm.engine.runner, monkeypatch)
        replies = judged.serve([(*reply.request.tokens, 7) for reply in first], params)
    struck = [reply.request in failed[0].requests for reply in replies]
    assert [reply.request.error is not None for reply in replies] == struck
    assert not all(struck), "those that waited for the pages start again"
    refuse_others([reply for reply, lost in zip(replies, struck, strict=True) if not lost])


# What a step is given, and what it gives.


def test_a_store_brings_pages_to_a_step_and_keeps_what_it_saved() -> None:
    store, pages = HostStore(TINY, 5, PAGE, torch.float32), 20
    shape = (2, PAGE, TINY.kv_heads, TINY.head_dim)
    assert store.nbytes == 5 * page_bytes(TINY, PAGE, torch.float32)
    cache = {f"kv.{i}": torch.randn(pages, *shape) for i in range(TINY.layers)}
    saving = Batch(saves=((3, 4), (7, 0), (2, 1)))
    given = store.inputs(saving)
    assert given.keys() == {"swap_out"}
    assert given["swap_out"].tolist() == [3, 7, 2] + [0] * (SWAPPED[1] - 3), "the rest is scratch"
    outputs = {f"saved.{i}": cache[f"kv.{i}"][given["swap_out"]] for i in range(TINY.layers)}
    store.keep(saving, outputs)
    loading = Batch(loads=((0, 11), (4, 12)))
    given = store.inputs(loading)
    assert given["swap_in"].tolist() == [11, 12] + [0] * (SWAPPED[1] - 2)
    for i in range(TINY.layers):
        assert given[f"loaded.{i}"].shape == (SWAPPED[1], *shape)
        assert torch.equal(given[f"loaded.{i}"][:2], cache[f"kv.{i}"][[7, 3]])
    assert store.inputs(Batch()) == {}
    into = {f"loaded.{i}": torch.zeros(SWAPPED[1], *shape) for i in range(TINY.layers)}
    given = store.inputs(loading, into)
    for i in range(TINY.layers):
        assert given[f"loaded.{i}"] is into[f"loaded.{i}"]
        assert torch.equal(given[f"loaded.{i}"][:2], cache[f"kv.{i}"][[7, 3]])


def test_pages_move_without_rows_too() -> None:
    store = HostStore(TINY, 3, PAGE, torch.float32)
    states = {f"kv.{i}": torch.randn(9, 2, PAGE, TINY.kv_heads, TINY.head_dim) for i in range(TINY.layers)}
    before = {name: kv.clone() for name, kv in states.items()}
    store.move(Batch(saves=((5, 2), (1, 0))), states)
    store.move(Batch(saves=((6, 1),), loads=((2, 8), (0, 7))), states)
    for name, kv in states.items():
        assert torch.equal(kv[[8, 7]], before[name][[5, 1]])
        assert torch.equal(kv[:7], before[name][:7])
    store.move(Batch(loads=((1, 4),)), states)
    assert all(torch.equal(kv[4], before[name][6]) for name, kv in states.items())


@pytest.mark.parametrize("sampling", [False, True])
def test_a_step_that_swaps_draws_what_one_that_does_not_draws(sampling: bool) -> None:
    layout, seats = nr.Layout(decode=2, prefill=3, kv_tokens=4), 4
    sizes: dict[str, Any] = {"pages": 12, "page_size": PAGE, "requests": 3, "table_width": 2, "seats": seats}
    given = {
        "tokens": torch.tensor([-1, 5, 6, 7, 8]),
        "positions": torch.tensor([0, 0, 0, 1, 2]),
        "slots": torch.tensor([4, 8, 12, 13, 14]),
        "requests": torch.tensor([0, 1, 2, 2, 2]),
        "pages": torch.tensor([[1, 0], [2, 0], [3, 0]], dtype=torch.int32),
        "last": torch.tensor([0, 1, 4]),
        "seats": torch.tensor([2, 0, seats]),
    }
    if sampling:
        given |= {"uniform": torch.tensor([0.1, 0.5, 0.9]), "temperature": torch.ones(3)}
        given |= {"top_k": torch.full((3,), 50), "top_p": torch.ones(3)}
    shape = (2, PAGE, TINY.kv_heads, TINY.head_dim)
    moved = {"swap_out": torch.tensor([9, 0]), "swap_in": torch.tensor([10])}
    moved |= {f"loaded.{i}": torch.randn(1, *shape) for i in range(TINY.layers)}
    weights, found = random_weights(TINY, torch.float32), []
    for build, more in ((decoder, {}), (offload, {"swap_out": 2, "swap_in": 1})):
        states = {f"kv.{i}": torch.zeros(12, *shape) for i in range(TINY.layers)}
        states["drawn"] = torch.full((seats + 1,), 3)
        graph = build(TINY, layout, **sizes, **more, sampling=sampling)
        out = graph.eager(**given, **(moved if more else {}), **weights, **states)
        found.append((out["tokens"].tolist(), states["drawn"][:seats].tolist()))
        schedule = nr.co_schedule(graph, nr.device("h200"), policy="list", nano_batches=(1, 2))
        assert nr.lower(schedule).hazards() == ()
    assert found[0] == found[1]
    assert found[0][1] == [found[0][0][1], 3, found[0][0][0], 3], "the drawn tokens lie at their seats"
