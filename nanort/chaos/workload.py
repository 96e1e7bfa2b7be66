"""Asked: the requests of a world, with their times, how each ends, and what it should say."""

from __future__ import annotations

import random
from dataclasses import dataclass

from nanort.chaos.house import LONGEST, MOST, House, replies
from nanort.serving.sampling import SamplingParams

STARTS = 6
"""Texts that prompts begin with, so that some share pages."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request to come.

    Attributes:
        at: when, in seconds of the world's time.
        prompt, params: what is asked.
        leaves: the steps after which its client leaves; None where it stays.
        wanted: what it should say.
    """

    at: float
    prompt: tuple[int, ...]
    params: SamplingParams
    leaves: int | None
    wanted: tuple[int, ...]


def asked(chance: random.Random, house: House, count: int, cancels: float) -> list[Asked]:
    """So many requests by the time they come, of which the part ``cancels`` leaves."""
    prompts = _prompts(chance, house, count)
    rate, at, found = chance.choice((1e3, 1e4, 1e5)), 0.0, []
    for prompt, reply in zip(prompts, replies(house.config, prompts), strict=True):
        at += chance.expovariate(rate)
        stops = (chance.choice(reply),) if chance.random() < 0.2 else ()
        most = min(chance.randint(1, MOST), house.room - len(prompt))
        params = SamplingParams(max_new_tokens=most, ignore_eos=True, stop_token_ids=stops)
        leaves = chance.randrange(12) if chance.random() < cancels else None
        found.append(Asked(at, prompt, params, leaves, _cut(reply, params)))
    return found


def _prompts(chance: random.Random, house: House, count: int) -> list[tuple[int, ...]]:
    """Prompts of which some begin alike, and some go on from a reply to another."""
    longest, pool = min(LONGEST, house.room - 1), random.Random(f"prompts {house}")
    starts = [tuple(pool.choices(range(house.config.vocab), k=pool.randint(2, longest))) for _ in range(STARTS)]
    texts = [start + reply for start, reply in zip(starts, replies(house.config, starts), strict=True)]
    found = []
    for _ in range(count):
        text = chance.choice(texts)
        own = tuple(chance.choices(range(house.config.vocab), k=chance.choice((0, 0, 1, 3))))
        found.append((text[: chance.randint(1, len(text))] + own)[-longest:])
    return found


def _cut(reply: tuple[int, ...], params: SamplingParams) -> tuple[int, ...]:
    """As many tokens of a reply as the params let pass."""
    for end, token in enumerate(reply[: params.max_new_tokens], 1):
        if token in params.stop_token_ids:
            return reply[:end]
    return reply[: params.max_new_tokens]
