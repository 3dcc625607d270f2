"""What the gateway counts, for Prometheus. Labels are bounded: ids of tasks, and words of ours."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """One registry per gateway object, so that several may live in one process (tests do)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._answers = 0
        # Looking a child up by its labels costs more than counting.
        self._answered: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}
        self._small_answers = 0
        self.calls = self._counter(
            "nightschool_calls", "Answered calls", "task", "answerer", "escalation"
        )
        self.errors = self._counter("nightschool_errors", "Calls answered by an error", "status")
        self.latency = Histogram(
            "nightschool_call_seconds",
            "From the request's last byte to the answer's last byte",
            ["answerer"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.appended = self._counter("nightschool_records_appended", "Records safe in the spool")
        self.lost = self._counter(
            "nightschool_records_lost", "Records that could not be logged: ALERT on any", "reason"
        )
        self.left_out = self._counter(
            "nightschool_records_left_out", "Records not stored, by [anonymizer] kinds", "kinds"
        )
        self.refused = self._counter(
            "nightschool_spool_refused", "Times that the spool took no record: ALERT on any"
        )
        self.ahead = self._counter(
            "nightschool_answers_before_log", "Answers given while their record was in memory only"
        )
        self.dropped = self._counter(
            "nightschool_background_dropped", "Shadow answers and audits left out", "purpose"
        )
        self.background = self._counter(
            "nightschool_background", "Shadow answers and audits made", "purpose", "outcome"
        )
        self.shipped = self._counter("nightschool_objects_shipped", "Log objects shipped")
        self.saved_tokens = self._counter(
            "nightschool_small_model_tokens",
            "Tokens that the teacher did not have to read or write",
            "task",
        )
        self.saved_cost = self._counter(
            "nightschool_cost_saved",
            "What those tokens cost at teacher.cost_per_million_tokens",
            "task",
        )
        self.kills = self._counter("nightschool_kills", "Candidates stopped at once", "task")
        self.store_reached = Gauge(
            "nightschool_store_reached",
            "1 when the last round reached the object store",
            registry=self.registry,
        )
        self._gauge("nightschool_small_model_share", "Of all answers", self.small_model_share)

    def answered(
        self, task: str, answerer: str, escalation: str | None, latency_seconds: float
    ) -> None:
        """Count one answer. ``answerer``: teacher, champion or canary."""
        family = (escalation or "none").partition(":")[0]
        key = (task or "none", answerer, family)
        children = self._answered.get(key)
        if children is None:
            children = self.calls.labels(*key), self.latency.labels(answerer)
            self._answered[key] = children
        children[0].inc()
        children[1].observe(latency_seconds)
        self._answers += 1
        self._small_answers += answerer != "teacher"

    def saved(self, task: str, tokens: int, cost: float) -> None:
        """An answer of the small model. ``cost``: what the teacher would have cost."""
        self.saved_tokens.labels(task or "none").inc(tokens)
        self.saved_cost.labels(task or "none").inc(cost)

    def small_model_share(self) -> float:
        return self._small_answers / self._answers if self._answers else 0.0

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        self._gauge(name, text, read)

    def page(self) -> bytes:
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        Gauge(name, text, registry=self.registry).set_function(read)
