"""Metrics: what a server counts, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nanort.http.loop import Load
from nanort.serving.requests import CANCELLED, Request

if TYPE_CHECKING:
    from nanort.serving.engine import StepRecord

LATENCIES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper ends of the histograms' buckets, in seconds."""


class Metrics:
    """Counters, gauges and histograms of one server, in a registry of its own.

    Args:
        client: the package prometheus_client.
        load: what the engine holds now.
        pages: pages of its cache.
    """

    def __init__(self, client: Any, load: Callable[[], Load], pages: int) -> None:
        self._client, self._registry = client, client.CollectorRegistry()

        def counter(name: str, about: str, labels: tuple[str, ...] = ()) -> Any:
            return client.Counter(f"nanort_{name}", about, labels, registry=self._registry)

        def histogram(name: str, about: str) -> Any:
            return client.Histogram(f"nanort_{name}", about, buckets=LATENCIES, registry=self._registry)

        def gauge(name: str, about: str, value: Callable[[], float]) -> None:
            client.Gauge(f"nanort_{name}", about, registry=self._registry).set_function(value)

        self._ended = counter("requests", "Requests that ended, by what ended them.", ("finish",))
        self._refused = counter("refused", "Requests that were refused, by HTTP status.", ("status",))
        self._prompts = counter("prompt_tokens", "Tokens of prompts.")
        self._hits = counter("prefix_hit_tokens", "Tokens of prompts that stood in the cache.")
        self._generated = counter("generated_tokens", "Tokens generated.")
        self._preempted = counter("preemptions", "Times that a request had to make room.")
        self._rows = counter("rows", "Rows that steps processed.", ("kind",))
        self._steps = histogram("step_seconds", "The device's time of a step.")
        self._first = histogram("time_to_first_token_seconds", "From a request's arrival to its first token.")
        self._each = histogram("time_per_output_token_seconds", "Between tokens of a request after its first.")
        gauge("requests_waiting", "Requests in the queue.", lambda: load().waiting)
        gauge("requests_running", "Requests that hold pages.", lambda: load().running)
        gauge("cache_pages_used", "Pages of the KV cache in use.", lambda: load().used)
        gauge("cache_pages", "Pages of the KV cache.", lambda: pages)

    def ended(self, request: Request) -> None:
        """Counts a request that ended, or is about to since its client has gone."""
        self._ended.labels(request.finish or CANCELLED).inc()
        self._prompts.inc(len(request.prompt))
        self._hits.inc(request.prefix_hits)
        self._generated.inc(len(request.generated))
        self._preempted.inc(request.preemptions)
        if request.first_token is None or request.finished is None:
            return
        self._first.observe(request.first_token - request.arrived)
        if (later := len(request.generated) - 1) > 0:
            self._each.observe((request.finished - request.first_token) / later)

    def stepped(self, record: StepRecord) -> None:
        """Counts a step; called in the engine's thread."""
        if record.result is None:  # it failed
            return
        self._steps.observe(record.result.seconds)
        layout = record.batch.layout
        self._rows.labels("decode").inc(layout.decode)
        self._rows.labels("prefill").inc(layout.rows - layout.decode)

    def refused(self, status: int) -> None:
        """Counts a request that was refused."""
        self._refused.labels(str(status)).inc()

    def text(self) -> tuple[bytes, str]:
        """All of it in Prometheus' text format, and that format's content type."""
        text: bytes = self._client.generate_latest(self._registry)
        return text, self._client.CONTENT_TYPE_LATEST
