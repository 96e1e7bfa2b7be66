"""SamplingParams: how the next token is chosen from the logits."""

from __future__ import annotations

from dataclasses import dataclass

from nanort.errors import RequestError


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen; the defaults are greedy.

    Args:
        temperature: 0 takes the most likely token; otherwise logits are divided by it.
        top_k: only the k most likely tokens are drawn from; 0 is all of them.
        top_p: only the most likely tokens that together have this probability are drawn from.
        max_new_tokens: tokens generated at most.
        ignore_eos: go on after the end of the text.
        seed: equal seeds draw equal tokens for the same prompts.

    Raises:
        RequestError: a figure is out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 64
    ignore_eos: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
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

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0
