"""4,000 requests (10,000 with --soak), many of them cancelled, disconnected or stopped at random, on a real engine.

Accounts balance after every step, no page is lost, and the tokens of all are those that they give undisturbed.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
import torch

import nanort as nr
from greedy import CLOSE, reference, transformers_model
from nanort.checkpoints.tokenizer import ByteTokenizer
from nanort.graphs import CONFIGS, random_weights
from nanort.http.loop import EngineLoop
from nanort.serving.engine import Engine
from nanort.serving.generate import LLM
from nanort.serving.kv_cache import PagedKVCache
from nanort.serving.requests import Request
from nanort.serving.sampling import SamplingParams
from nanort.serving.steps import page_bytes

TINY = CONFIGS["tiny"]
WEIGHTS = random_weights(TINY, torch.float32, seed=1)
CI, SOAK = 4_000, 10_000
"""Requests in all."""
CLIENTS, MOST = 40, 20
"""How many are served at once, and tokens of a reply."""
PAGE = 1
CORE = nr.device("cpu").with_(sms=1, hbm_saturation_sms=(1, 1))
"""Two cores are slow at products as small as these, the more so when they have other work."""
Replies = dict[tuple[int, ...], tuple[int, ...]]
STOPS = ("e", "th", "\n")
EOS = next(iter(ByteTokenizer.eos_ids))


@pytest.fixture
def count(pytestconfig: pytest.Config) -> int:
    return SOAK if pytestconfig.getoption("soak") else CI


@pytest.fixture(scope="module")
def replies() -> Replies:
    """Prompts of which some begin alike, and the greedy tokens of transformers, all far from a close call."""
    model, draw, found = transformers_model(TINY, WEIGHTS), random.Random(0), Replies()
    starts = [draw.choices(range(256), k=8) for _ in range(8)]
    while len(found) < 200:
        prompt = [*draw.choice(starts)[: draw.choice((0, 5, 8))], *draw.choices(range(256), k=draw.randint(1, 8))]
        reply = reference(model, prompt, MOST)
        if min(reply.gaps) > 2 * CLOSE:
            found[tuple(prompt)] = tuple(reply.tokens)
    return found


def _cut(reply: tuple[int, ...], params: SamplingParams) -> tuple[int, ...]:
    """As many tokens of a reply as the params let pass."""
    decode = ByteTokenizer().decode
    for end, token in enumerate(reply[: params.max_new_tokens], 1):
        ends = token in params.stop_token_ids or (token == EOS and not params.ignore_eos)
        if ends or any(stop in decode(reply[:end]) for stop in params.stop):
            return reply[:end]
    return reply[: params.max_new_tokens]


def _params(draw: random.Random) -> SamplingParams:
    return SamplingParams(
        max_new_tokens=draw.randint(1, MOST),
        ignore_eos=draw.random() < 0.5,
        stop=draw.choice(((), (), STOPS)),
        stop_token_ids=tuple(draw.choices(range(257), k=draw.choice((0, 0, 20)))),
    )


def _check(cache: PagedKVCache) -> None:
    cache.check()
    assert cache.free + cache.used == cache.pages - 1


def _storm(engine: Engine, replies: Replies, draw: random.Random, count: int) -> list[Request]:
    """All requests, up to forty at once; between steps some are cancelled, as they wait, run, or have just ended."""
    prompts, requests = list(replies), list[Request]()
    while len(requests) < count or engine.busy:
        while len(requests) < count and len(engine.waiting) + len(engine.running) < CLIENTS:
            requests.append(engine.submit(draw.choice(prompts), _params(draw)))
        for request in draw.sample(requests[-60:], draw.choice((0, 0, 1, 3))):
            engine.cancel(request)
            _check(engine.cache)
        engine.step()
        _check(engine.cache)
    return requests


async def _clients(engine: Engine, replies: Replies, draw: random.Random, count: int) -> list[Request]:
    """All requests, by clients that have one after another answered, and often leave in the middle."""
    prompts, requests, left = list(replies), list[Request](), iter(range(count))

    async def client(loop: EngineLoop) -> None:
        for number in left:
            async with loop.open([(draw.choice(prompts), _params(draw))], f"request {number}") as stream:
                requests.extend(stream.requests)
                stays = draw.choice((0, MOST // 4, MOST, MOST))
                async for outputs in stream:
                    stays -= len(outputs)
                    if stays < 0:
                        break

    async with EngineLoop(engine) as loop:
        await asyncio.gather(*(client(loop) for _ in range(CLIENTS)))
    return requests


def _judge(requests: list[Request], replies: Replies, count: int) -> None:
    """Every reply is what it is undisturbed, or the beginning of that."""
    ends, preempted = Counter(request.finish for request in requests), sum(each.preemptions for each in requests)
    print(f"{dict(ends)}, {preempted} preemptions")
    assert len(requests) == count
    assert preempted > 0
    assert set(ends) == {"cancelled", "stop", "length"}
    assert min(ends.values()) > count / 20
    for request in requests:
        wanted, given = _cut(replies[request.prompt], request.params), tuple(request.generated)
        assert given == (wanted[: len(given)] if request.finish == "cancelled" else wanted), request


def served(**options: Any) -> LLM:
    return LLM(TINY, WEIGHTS, ByteTokenizer(), max_rows=96, page_size=PAGE, cache_tokens=120, device=CORE, **options)


def test_cancelled_requests_cost_no_page_and_change_no_token(replies: Replies, count: int) -> None:
    with served() as llm:
        requests = _storm(llm.engine, replies, random.Random(1), count)
        assert llm.cache.used == 0
    _judge(requests, replies, count)


def test_clients_that_leave_cost_no_page_and_change_no_token(replies: Replies, count: int) -> None:
    with served(preempt="swap", host_cache=200 * page_bytes(TINY, PAGE, torch.float32)) as llm:
        llm.engine.observers.append(lambda _: _check(llm.cache))
        requests = asyncio.run(_clients(llm.engine, replies, random.Random(2), count))
        assert llm.cache.used == 0
    _judge(requests, replies, count)
