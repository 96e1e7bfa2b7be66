"""Activity and Event: what is known of one launch, and when it ran."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Activity:
    """What is known of one launch before it runs.

    Attributes:
        name: the node and its piece, ``"layer0.q_proj/1"``.
        operator: what it computes, ``"linear"``.
        stream: the queue it runs on: ``"g0"``, ``"g0.1"``, ``"whole"``, ``"h2d"``, ``"d2h"``.
        group: the SM group of that stream; empty for copy engines.
        sms: SMs it may hold; lanes of one group share theirs.
        flops, hbm_bytes, h2d_bytes, d2h_bytes: its work.
        bound: what limits it alone: ``"compute"``, ``"memory"``, ``"pcie"``, ``"network"``, ``"launch"``; empty where
            nobody knows.
        alone: the seconds that it is predicted to take by itself on its SMs; 0 where nobody knows.
        shapes: what goes in and comes out, ``"(2048, 4096), (4096, 4096) -> (2048, 4096)"``.
        kernel: the implementation, ``"triton"``.
        piece: its nano-batch.
        scope: the user's labels, ``(("layer", 0),)``.
        needs: the activities, on any stream, that must have ended for it to start, whatever the schedule: the graph's
            edges. None where nobody knows, as in a trace of a program without a graph.
        waits: ``(index of the activity waited for on another stream, "data" | "state" | "resource" | "after")``.
        where: the line of the user's source, ``"model.py:12"``.
    """

    name: str
    operator: str
    stream: str
    group: str = ""
    sms: int = 0
    flops: float = 0.0
    hbm_bytes: float = 0.0
    h2d_bytes: float = 0.0
    d2h_bytes: float = 0.0
    bound: str = ""
    alone: float = 0.0
    shapes: str = ""
    kernel: str = ""
    piece: int = 0
    scope: tuple[tuple[str, Any], ...] = ()
    needs: tuple[int, ...] | None = None
    waits: tuple[tuple[int, str], ...] = ()
    where: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """One activity and when it ran, in seconds from the run's start; NaN where it never started or never ended."""

    activity: Activity
    start: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it ran."""
        return self.end - self.start
