"""SamplingParams: how the next token is chosen from the logits."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from numbers import Real

from nanort.errors import RequestError

MOST_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen; the defaults are greedy.

    Args:
        temperature: 0 takes the most likely token; otherwise logits are divided by it.
        top_k: only the k most likely tokens are drawn from; 0 is all of them.
        top_p: only the most likely tokens that together have this probability are drawn from.
        max_new_tokens: tokens generated at most.
        ignore_eos: go on after the end of the text.
        seed: of the draws, which depend on it and on the position of the token alone.
        stop: texts that end the reply, which then stops before them.
        stop_token_ids: tokens that end the reply.
        include_stop: whether the reply's text holds the stop text as well.
        logprobs: how many of the likeliest tokens are told with their log-probabilities, beside that of the token
            itself; 0 to 20, None tells nothing.

    Raises:
        RequestError: a figure is out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 64
    ignore_eos: bool = False
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):
            if not isinstance(getattr(self, name), Real):
                raise RequestError(f"{name}={getattr(self, name)!r}: give a number")
        for name in ("top_k", "max_new_tokens", "seed"):
            if type(getattr(self, name)) is not int:
                raise RequestError(f"{name}={getattr(self, name)!r}: give a whole number")
        if not 0.0 <= self.temperature <= 1e6:
            raise RequestError(f"temperature={self.temperature}: give 0 (greedy) to a million")
        if not 0 <= self.top_k < 2**31 or not 0.0 < self.top_p <= 1.0:
            raise RequestError(
                f"top_k={self.top_k}, top_p={self.top_p}: give top_k >= 0 (0 is off), 0 < top_p <= 1 (1 is off)"
            )
        if not -(2**63) <= self.seed < 2**63:
            raise RequestError(f"seed={self.seed}: give a whole number of 64 bits")
        if self.max_new_tokens < 1:
            raise RequestError(f"max_new_tokens={self.max_new_tokens}: give at least 1")
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) and text for text in self.stop):
            raise RequestError(f"stop={self.stop!r}: give a tuple of texts, none of them empty")
        if not isinstance(self.stop_token_ids, tuple) or not all(type(token) is int for token in self.stop_token_ids):
            raise RequestError(f"stop_token_ids={self.stop_token_ids!r}: give a tuple of token ids")
        if self.logprobs is not None and not (type(self.logprobs) is int and 0 <= self.logprobs <= MOST_LOGPROBS):
            raise RequestError(f"logprobs={self.logprobs}: give 0 to {MOST_LOGPROBS}, or None")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0

    def uniform(self, position: int) -> float:
        """The number in [0, 1) that draws the token at ``position`` of a request, whatever runs beside it.

        >>> SamplingParams(seed=7).uniform(3) == SamplingParams(seed=7).uniform(3) != SamplingParams(seed=8).uniform(3)
        True
        """
        key = self.seed.to_bytes(8, "little", signed=True) + position.to_bytes(8, "little")
        # 24 bits: what float32 holds exactly, so that rounding never gives 1.
        return int.from_bytes(blake2b(key, digest_size=3).digest(), "little") / (1 << 24)
