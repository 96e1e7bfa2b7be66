"""Request and Output: one prompt on its way through the engine, and what comes out of it step by step."""

from __future__ import annotations

from dataclasses import dataclass, field

from nanort.errors import NanortError
from nanort.serving.sampling import SamplingParams

STOP, LENGTH, CANCELLED, ERROR = "stop", "length", "cancelled", "error"
"""Why a request ended: by a token or text that ends it, by its length, by its client, or by an error of a step."""


@dataclass(slots=True, eq=False)
class Request:
    """A prompt, what has been generated after it, and where it stands.

    Attributes:
        id: what it is called in logs, traces and errors.
        prompt: its tokens.
        params: how what follows them is chosen.
        arrived: when it was submitted, in the engine's clock.
        generated: tokens after the prompt that the host knows.
        cached: tokens whose keys and values stand in the cache once all launched steps have run.
        pending: tokens that launched steps draw and the host does not know yet: 0 or 1 between two steps.
        seat: where on the device its last drawn token lies; None where it does not run.
        finish: why it ended ("stop", "length", "cancelled", "error"); None before.
        error: what it failed of.
        first_token, finished: when that was, in the engine's clock.
        preemptions: how often it lost its pages and started again.
        prefix_hits: tokens that it found in the cache, over all its starts.
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    arrived: float = 0.0
    generated: list[int] = field(default_factory=list)
    cached: int = 0
    pending: int = 0
    seat: int | None = None
    finish: str | None = None
    error: NanortError | None = None
    first_token: float | None = None
    finished: float | None = None
    preemptions: int = 0
    prefix_hits: int = 0

    @property
    def length(self) -> int:
        """Tokens that the host knows."""
        return len(self.prompt) + len(self.generated)

    @property
    def tokens(self) -> tuple[int, ...]:
        """The prompt and what the host knows of the reply."""
        return (*self.prompt, *self.generated)

    @property
    def rows(self) -> int:
        """Tokens, the pending one included, that are not cached yet: what it takes to draw the next one."""
        return self.length + self.pending - self.cached

    @property
    def drawn(self) -> bool:
        """Whether launched steps draw all that it may have."""
        return len(self.generated) + self.pending >= self.params.max_new_tokens

    def span(self, start: int, stop: int) -> list[int]:
        """The tokens from ``start`` up to ``stop``; the pending one is -1 minus its seat, as the device reads it."""
        split = len(self.prompt)
        known = [*self.prompt[start:stop], *self.generated[max(0, start - split) : max(0, stop - split)]]
        return known if len(known) == stop - start or self.seat is None else [*known, -1 - self.seat]

    def __repr__(self) -> str:
        return f"Request({self.id!r}, {len(self.prompt)} + {len(self.generated)} tokens)"


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The log-probability of a token that was drawn, and the likeliest ones there: (token, log-probability)."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Output:
    """What one step gave one request.

    Attributes:
        request: whose it is.
        tokens: new ones, the one that ends the reply included.
        text: what they add to the reply; it may lag behind them where a character or a stop string may go on.
        finish: why the reply ends here; None where it goes on.
        logprobs: of ``tokens``, where the request asks for them.
    """

    request: Request
    tokens: tuple[int, ...]
    text: str
    finish: str | None
    logprobs: tuple[TokenLogprobs, ...] | None = None
