"""What the embedded engine counts, in Prometheus text."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.engines.embedded.batcher import Step

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)


class Metrics:
    """One engine's counters, in a registry of their own."""

    def __init__(self, waiting: Callable[[], int], adapters: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "nightschool_engine_requests",
            "Completion requests by HTTP status",
            ["status"],
            registry=self._registry,
        )
        self._tokens = Counter(
            "nightschool_engine_tokens",
            "Tokens read (prefill) and generated (decode)",
            ["kind"],
            registry=self._registry,
        )
        self._rows = Histogram(
            "nightschool_engine_batch_rows",
            "Rows in one pass of the model",
            ["kind"],
            buckets=_ROWS,
            registry=self._registry,
        )
        self._seconds = Histogram(
            "nightschool_engine_pass_seconds",
            "Time of one pass of the model",
            ["kind"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        queue = Gauge("nightschool_engine_waiting", "Requests that wait", registry=self._registry)
        queue.set_function(waiting)
        held = Gauge("nightschool_engine_adapters", "Adapters loaded", registry=self._registry)
        held.set_function(adapters)

    def observe(self, step: Step) -> None:
        """Count one pass of the model. Safe from any thread."""
        self._tokens.labels(step.kind).inc(step.tokens)
        self._rows.labels(step.kind).observe(step.rows)
        self._seconds.labels(step.kind).observe(step.seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)
