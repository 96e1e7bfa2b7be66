"""Runner: what carries batches out, a model on a device or a simulation of one; Result: what comes of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from nanort.serving.batching import Batch
from nanort.serving.requests import TokenLogprobs
from nanort.timeline.events import Timeline


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one batch.

    Attributes:
        tokens: what each share of the batch drew, in their order; None for those that do not draw.
        seconds: how long the device took.
        logprobs: of each of these tokens, where the request asks for them.
        timeline: what ran when, where the runner traces.
    """

    tokens: tuple[int | None, ...]
    seconds: float
    logprobs: tuple[TokenLogprobs | None, ...] = ()
    timeline: Timeline | None = None


class Runner(Protocol):
    """Carries out batches in the order in which they are launched; at most two are in flight."""

    @property
    def in_flight(self) -> int:
        """Batches launched and not collected yet."""
        ...

    @property
    def layers(self) -> int:
        """Layers of the model."""
        ...

    def launch(self, batch: Batch) -> None:
        """Queues a batch, and waits for nothing."""
        ...

    def collect(self) -> Result:
        """What came of the batch that was launched first; waits for its end.

        Raises:
            ExecutionError: it failed.
        """
        ...

    def predict(self, batch: Batch) -> float:
        """Seconds that the plan of such a batch says."""
        ...

    def close(self) -> None:
        """Ends what it holds; what is in flight is finished first."""
        ...
