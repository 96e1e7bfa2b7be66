"""Storms: requests that come, are cancelled and stop at random, through an engine on the symbolic device."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nanort.checkpoints.tokenizer import ByteTokenizer
from nanort.clock import VirtualClock
from nanort.serving.engine import Engine
from nanort.serving.kv_cache import PagedKVCache
from nanort.serving.requests import Output, Request
from nanort.serving.sampling import SamplingParams
from symbolic_device import VOCAB, SymbolicRunner, reply

LONGEST = 60
"""Tokens of a prompt."""
MOST = 20
"""Tokens of a reply."""
BYTES = ByteTokenizer()


@dataclass(slots=True)
class Followed:
    """A request, what it should give, and what has come of it."""

    request: Request
    wanted: list[int]
    text: str
    finish: str
    outputs: list[Output] = field(default_factory=list)

    def check(self) -> None:
        """What came is what should come: all of it, or its beginning where the request was cancelled or failed."""
        tokens = [token for output in self.outputs for token in output.tokens]
        text, ended = "".join(output.text for output in self.outputs), [o.finish for o in self.outputs if o.finish]
        assert tokens == self.request.generated == self.wanted[: len(tokens)], (
            f"{self.request} gave {tokens}, wanted {self.wanted}: {self.request.params}"
        )
        if self.request.finish in ("stop", "length"):
            assert tokens == self.wanted, f"{self.request} ended early"
            assert (self.request.finish, ended) == (self.finish, [self.finish]), self.request
            assert text == self.text, f"{self.request} gave another text"
        else:
            assert self.text.startswith(text), f"{self.request} gave another text"
            assert ended == (["error"] if self.request.finish == "error" else []), self.request


def expected(prompt: list[int], params: SamplingParams) -> tuple[list[int], str, str]:
    """Tokens, text and finish of a request that nobody disturbs."""
    tokens = reply(prompt, params.max_new_tokens)
    for end, token in enumerate(tokens, 1):
        if token in params.stop_token_ids or (token in BYTES.eos_ids and not params.ignore_eos):
            shown = end if params.include_stop else end - 1
            return tokens[:end], BYTES.decode(tokens[:shown]), "stop"
        text = BYTES.decode(tokens[:end])
        if found := [(text.index(stop), stop) for stop in params.stop if stop in text]:
            at, stop = min(found)
            return tokens[:end], text[: at + len(stop) if params.include_stop else at], "stop"
    return tokens, BYTES.decode(tokens), "length"


@dataclass(slots=True)
class Storm:
    """``count`` requests, of which each step ends one with the chance ``cancels``; ``options`` are the engine's."""

    seed: int
    count: int
    pages: int = 40
    page_size: int = 4
    host_pages: int = 0
    sharing: bool = True
    layers: int = 1
    cancels: float = 0.2
    fails: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)

    def run(self) -> dict[str, int]:
        """Sends all, checks the accounts after every step and every reply at the end; what happened, counted."""
        chance = random.Random(self.seed)
        cache = PagedKVCache(self.pages, self.page_size, host_pages=self.host_pages, sharing=self.sharing)
        room = min(LONGEST + MOST, (self.pages - 1) * self.page_size)
        options = {"max_rows": 32, "seats": 16, **self.options}
        width = room // self.page_size + 2
        runner = SymbolicRunner(cache, options["seats"], width, chance, self.layers, self.fails)
        engine = Engine(
            runner,
            cache,
            max_tokens=room,
            clock=VirtualClock(),
            vocab=VOCAB,
            tokenizer=BYTES,
            eos_ids=BYTES.eos_ids,
            **options,
        )
        followed = dict[Request, Followed]()
        coming = self._requests(chance, room, followed)
        while len(followed) < self.count or engine.busy:
            for _ in range(min(self.count - len(followed), chance.choice((0, 0, 1, 2, 5)))):
                prompt, params = next(coming)
                request = engine.submit(prompt, params)
                followed[request] = Followed(request, *expected(prompt, params))
            if followed and chance.random() < self.cancels:
                engine.cancel(chance.choice((*engine.waiting, *engine.running, *list(followed)[-20:])))
                cache.check()
            for output in engine.step():
                followed[output.request].outputs.append(output)
            cache.check()
            assert cache.free + cache.used == self.pages - 1
        for each in followed.values():
            each.check()
        assert cache.used == 0, "pages are lost"
        ends = [request.finish for request in followed]
        return runner.counts | {
            "preempted": sum(request.preemptions for request in followed),
            "shared": sum(request.prefix_hits for request in followed),
            **{end: ends.count(end) for end in ("stop", "length", "cancelled", "error")},
        }

    def _requests(
        self, chance: random.Random, room: int, known: dict[Request, Followed]
    ) -> Iterator[tuple[list[int], SamplingParams]]:
        """Prompts of which some begin alike, or go on from a reply, and how each is to end."""
        starts = [chance.choices(range(VOCAB), k=chance.randint(1, 30)) for _ in range(8)]
        while True:
            start = chance.choice(starts)
            prompt = start[: chance.randint(1, len(start))] + chance.choices(range(VOCAB), k=chance.choice((0, 1, 9)))
            if known and chance.random() < 0.2:
                earlier = chance.choice(list(known)[-50:])
                prompt = [*earlier.tokens, *prompt[:3]]
            params = SamplingParams(
                max_new_tokens=chance.randint(1, MOST),
                ignore_eos=chance.random() < 0.5,
                stop=chance.choice(((), (), ("e",), ("t", "ab"))),
                stop_token_ids=tuple(chance.choices(range(VOCAB), k=chance.choice((0, 0, 9)))),
                include_stop=chance.random() < 0.3,
            )
            yield prompt[: min(LONGEST, room - params.max_new_tokens)], params


def drawn(seed: int, count: int, *, fails: float = 0.0) -> Storm:
    """A storm of any sizes."""
    chance = random.Random(seed)
    sharing, layers = chance.random() < 0.8, chance.choice((1, 1, 4))
    host = chance.choice((0, 3, 20, 200)) if sharing else 0
    options: dict[str, Any] = {"max_rows": chance.choice((1, 4, 16, 32, 64)), "seats": chance.choice((1, 4, 16, 64))}
    options["preempt"] = "swap" if host and chance.random() < 0.5 else "recompute"
    if layers > 1:
        options["slo_tpot"] = chance.choice((2e-3, 3e-3))
    return Storm(
        seed,
        count,
        pages=chance.choice((22, 25, 40, 100)),
        page_size=chance.choice((1, 2, 4, 8)),
        host_pages=host,
        sharing=sharing,
        layers=layers,
        cancels=chance.choice((0.0, 0.2, 0.6)),
        fails=fails,
        options=options,
    )
