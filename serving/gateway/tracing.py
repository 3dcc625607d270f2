"""OpenTelemetry traces: a span per call, and one below it for each model that was asked.

Named by the semantic conventions for generative AI. Attributes hold names, numbers and words of ours;
never a prompt, an answer, a key, or a name that a caller made up. Only loaded when ``[telemetry]`` names
an endpoint; what cannot be delivered is dropped, in a queue with a bound and a thread of its own.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from infra.settings.serving import Telemetry
from serving.gateway.call import Call, usage_of
from serving.gateway.cascade import Small
from serving.gateway.problems import GatewayError
from serving.gateway.routes import AdapterRoute
from serving.gateway.small_calls import SmallCalls
from serving.gateway.upstream import Answer, Teacher
from serving.small_model import Growing

EXPORT_SECONDS = 1.0
BATCH = 512
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}")
_OPERATIONS = {
    "/chat/completions": "chat",
    "/completions": "text_completion",
    "/embeddings": "embeddings",
}


class Tracing:
    """One per gateway. Spans are made in the event loop and sent from a thread."""

    def __init__(self, settings: Telemetry, version: str = "") -> None:
        assert settings.endpoint is not None
        self._timeout_seconds = settings.timeout_seconds
        self._exporter = OTLPSpanExporter(
            endpoint=settings.endpoint, timeout=settings.timeout_seconds
        )
        self._provider = TracerProvider(
            # A caller that traces decides for its calls; of the others a share is taken.
            sampler=ParentBased(TraceIdRatioBased(settings.sample_share)),
            resource=Resource.create(
                {"service.name": settings.service_name, "service.version": version}
            ),
            span_limits=SpanLimits(max_attributes=64, max_attribute_length=256, max_events=8),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._exporter,
                max_queue_size=settings.queue,
                max_export_batch_size=min(BATCH, settings.queue),
                schedule_delay_millis=EXPORT_SECONDS * 1000,
            )
        )
        self._tracer = self._provider.get_tracer("nightschool.gateway", version)
        self._propagator = TraceContextTextMapPropagator()
        # A collector that is away is no news each second.
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)

    def close(self) -> None:
        """Send what waits, for a bounded time."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(self._timeout_seconds)
        if ending.is_alive():
            self._exporter.shutdown()

    def traced(self, handler: Handler) -> Handler:
        """The handler inside a span that continues the caller's."""

        async def inside(request: web.Request) -> web.StreamResponse:
            resource = request.match_info.route.resource
            route = resource.canonical if resource is not None else ""
            with self._tracer.start_as_current_span(
                f"{request.method} {route}",
                context=self._propagator.extract(request.headers),
                kind=SpanKind.SERVER,
                attributes={"http.request.method": request.method, "http.route": route},
                record_exception=False,
                set_status_on_exception=False,
            ) as span:
                try:
                    response = await handler(request)
                except GatewayError as error:
                    _ended(span, error.status, error.code or error.kind)
                    raise
                except Exception as error:
                    _ended(span, 0, type(error).__name__)
                    raise
                _ended(span, response.status)
                return response

        return inside

    def describe(self, call: Call) -> None:
        """What became of the call, on the span of the present context."""
        span = trace.get_current_span()
        if not span.is_recording():
            return
        usage = usage_of(call.response)
        model = call.response.get("model")
        escalation = (call.escalation or "").partition(":")[0]
        shown = call.headers()["x-nightschool-answered-by"]
        span.update_name("chat" if not _named(call.chat.model) else f"chat {call.chat.model}")
        _set(
            span,
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": _named(call.chat.model),
                "gen_ai.request.stream": call.chat.stream or None,
                "gen_ai.response.model": _named(model) if isinstance(model, str) else None,
                "gen_ai.usage.input_tokens": usage["prompt_tokens"] or None,
                "gen_ai.usage.output_tokens": usage["completion_tokens"] or None,
                "nightschool.call_id": call.id,
                "nightschool.task": call.task_id,
                "nightschool.arm": call.assignment.arm,
                "nightschool.rollout": call.assignment.rollout,
                "nightschool.answered_by": shown,
                "nightschool.escalation": escalation or None,
            },
        )

    def start(self, name: str, attributes: Mapping[str, Any]) -> Span | None:
        """A span below the present one, for a model that is asked; None outside of a call."""
        if not trace.get_current_span().get_span_context().is_valid:
            return None
        given = {key: value for key, value in attributes.items() if value is not None}
        return self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=given)

    def headers(self, span: Span | None = None) -> dict[str, str]:
        """What continues the trace at the other end: of the span, else of the present one."""
        carrier: dict[str, str] = {}
        context = trace.set_span_in_context(span) if span is not None else None
        self._propagator.inject(carrier, context)
        return carrier


class TracedTeacher(Teacher):
    """The teacher, each request to it a span."""

    tracing: Tracing

    @asynccontextmanager
    async def open(
        self, method: str, path: str, data: bytes | None, headers: Mapping[str, str]
    ) -> AsyncIterator[Answer]:
        operation = _OPERATIONS.get(path)
        span = self.tracing.start(
            f"{operation or method} teacher",
            {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "openai" if operation else None,
                "http.request.method": method,
            },
        )
        if span is None:
            async with super().open(method, path, data, headers) as response:
                yield response
            return
        try:
            sent = {**headers, **self.tracing.headers(span)}
            async with super().open(method, path, data, sent) as response:
                _ended(span, response.status)
                yield response
        except GatewayError as error:
            _ended(span, error.status, error.code or error.kind)
            raise
        finally:
            span.end()


class TracedSmallCalls(SmallCalls):
    """The small model, each request to it a span."""

    tracing: Tracing

    async def ask(
        self, adapter: AdapterRoute, request: Mapping[str, Any], growing: Growing | None = None
    ) -> Small:
        span = self.tracing.start(
            "chat small model",
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "nightschool",
                "gen_ai.request.model": adapter.name,
            },
        )
        if span is None:
            return await super().ask(adapter, request, growing)
        with trace.use_span(
            span, end_on_exit=True, record_exception=False, set_status_on_exception=False
        ):
            small = await super().ask(adapter, request, growing)
            _set(
                span,
                {
                    "gen_ai.usage.input_tokens": small.usage.prompt_tokens or None,
                    "gen_ai.usage.output_tokens": small.usage.completion_tokens or None,
                    "nightschool.accepted": small.accepted,
                    "nightschool.confidence": small.confidence,
                    "nightschool.escalation": (small.escalation or "").partition(":")[0] or None,
                },
            )
            if small.hard_failure:
                span.set_status(StatusCode.ERROR)
            return small


def _named(model: str) -> str | None:
    """A model's name that plainly is one; a caller may have written anything there."""
    return model if _MODEL.fullmatch(model) else None


def _ended(span: Span, status: int, kind: str = "") -> None:
    """How an exchange ended. ``status``: 0 when there was none; ``kind``: a word of ours."""
    if status:
        span.set_attribute("http.response.status_code", status)
    if kind or status >= 500:
        span.set_attribute("error.type", kind or str(status))
    if status >= 500 or not status:
        span.set_status(StatusCode.ERROR)


def _set(span: Span, attributes: Mapping[str, Any]) -> None:
    # At once: each setting takes the span's lock.
    span.set_attributes({name: value for name, value in attributes.items() if value is not None})
