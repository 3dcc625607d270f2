"""Traces as a collector gets them, over OTLP; and calls that do not notice when there is none."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from infra.database.open import Database
from infra.objects.store import ObjectStore
from infra.settings.model import Settings
from serving.gateway.clients import open_tracing
from tests.serving.gateway.conftest import Running, Start
from tests.serving.gateway.upstreams import EngineServer, TeacherServer, listening
from tests.serving.gateway.world import add_adapter, add_task, chat, open_rollout, ready, set_route

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


class Collector:
    """An OTLP/HTTP receiver. ``mode``: ok, error."""

    def __init__(self) -> None:
        self.mode = "ok"
        self.raw = b""
        self.spans: list[Span] = []
        self.resources: list[dict[str, Any]] = []
        self.url = ""

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/traces", self._traces)
        return app

    async def _traces(self, request: web.Request) -> web.Response:
        raw = await request.read()
        self.raw += raw
        if self.mode == "error":
            return web.Response(status=500)
        assert request.content_type == "application/x-protobuf"
        for resource in ExportTraceServiceRequest.FromString(raw).resource_spans:
            self.resources.append(values(resource.resource))
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return web.Response(content_type="application/x-protobuf")

    def of(self, kind: int) -> list[Span]:
        return [span for span in self.spans if span.kind == kind]

    @property
    def calls(self) -> list[Span]:
        return self.of(Span.SPAN_KIND_SERVER)

    @property
    def asked(self) -> list[Span]:
        return self.of(Span.SPAN_KIND_CLIENT)


def values(holder: Any) -> dict[str, Any]:
    return {
        item.key: getattr(item.value, item.value.WhichOneof("value")) for item in holder.attributes
    }


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    made = Collector()
    async with listening(made.app()) as made.url:
        yield made


@asynccontextmanager
async def traced(start: Start, collector: Collector, **more: Any) -> AsyncIterator[Running]:
    section = {"endpoint": f"{collector.url}/v1/traces", "timeout_seconds": 2, **more}
    async with start(telemetry=section) as running:
        yield running


async def test_a_teachers_answer_is_two_spans_of_the_callers_trace(
    start: Start, collector: Collector, teacher: TeacherServer
) -> None:
    async with traced(start, collector) as running:
        _, _, headers = await running.ask(
            chat("my mail is ann@example.com"),
            {"traceparent": f"00-{TRACE}-{PARENT}-01", "Authorization": "Bearer sk-secret"},
        )
    (call,), (asked,) = collector.calls, collector.asked
    assert call.trace_id.hex() == asked.trace_id.hex() == TRACE
    assert call.parent_span_id.hex() == PARENT
    assert asked.parent_span_id == call.span_id
    assert teacher.headers[0]["traceparent"] == f"00-{TRACE}-{asked.span_id.hex()}-01"
    assert call.name == "chat big"
    told = values(call)
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.model"] == told["gen_ai.response.model"] == "big"
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (11, 7)
    assert told["nightschool.answered_by"] == "teacher"
    assert told["nightschool.call_id"] == headers["x-nightschool-call-id"]
    assert told["http.route"] == "/v1/chat/completions"
    assert told["http.response.status_code"] == 200
    assert "nightschool.task" not in told
    assert values(asked)["gen_ai.provider.name"] == "openai"
    assert collector.resources[0]["service.name"] == "nightschool-gateway"
    for secret in (b"ann@example.com", b"sk-secret", b"my mail"):
        assert secret not in collector.raw


async def test_a_small_models_answer_and_its_escalation(
    start: Start,
    collector: Collector,
    teacher: TeacherServer,
    engine: EngineServer,
    database: Database,
    store: ObjectStore,
    tmp_path: Path,
) -> None:
    add_task(database)
    adapter = add_adapter(database, store, tmp_path)
    rollout = open_rollout(database, adapter)
    set_route(database, candidate=adapter, rollout_id=rollout, stage="canary", weight=1.0)
    async with traced(start, collector) as running:
        await ready(running.http, running.url, adapter)
        parent = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        for stream in (False, True):
            async with running.http.post(
                f"{running.url}/v1/chat/completions",
                json=chat("on", stream=stream),
                headers=parent,
            ) as response:
                await response.read()
        engine.confidence = -9
        await running.ask(chat("off"), parent)
    first, streamed, escalated = collector.calls
    for call in (first, streamed):
        told = values(call)
        assert told["nightschool.task"] == "lights"
        assert (told["nightschool.arm"], told["nightschool.rollout"]) == ("canary", rollout)
        assert told["nightschool.answered_by"] == told["gen_ai.response.model"] == adapter
        assert "nightschool.escalation" not in told
    told = values(escalated)
    assert (told["nightschool.answered_by"], told["nightschool.escalation"]) == (
        "teacher",
        "confidence",
    )
    below = [span for span in collector.asked if span.parent_span_id == escalated.span_id]
    assert [span.name for span in below] == ["chat small model", "chat teacher"]
    assert values(below[0])["nightschool.accepted"] is False
    # The engine continues the same trace.
    assert {header["traceparent"].split("-")[1] for header in engine.headers} == {TRACE}
    sent = {header["traceparent"].split("-")[2] for header in engine.headers}
    assert sent == {span.span_id.hex() for span in collector.asked if "small" in span.name}


async def test_failures_are_marked_and_made_up_names_left_out(
    start: Start, collector: Collector, teacher: TeacherServer
) -> None:
    teacher.mode = "error"
    async with traced(start, collector) as running:
        await running.ask(chat("x", model="my name is ann@example.com, hello"))
        await running.ask(b"rubbish")
    failed, refused = collector.calls
    assert failed.status.code == Status.STATUS_CODE_ERROR
    assert "gen_ai.request.model" not in values(failed)
    assert b"ann@example.com" not in collector.raw
    assert values(refused)["http.response.status_code"] == 400
    assert values(refused)["error.type"] == "invalid_json"
    assert refused.status.code == Status.STATUS_CODE_UNSET


async def test_who_decides_what_is_traced(
    start: Start, collector: Collector, teacher: TeacherServer
) -> None:
    async with traced(start, collector, sample_share=0) as running:
        await running.ask(chat("not traced"))
        await running.ask(chat("x"), {"traceparent": f"00-{TRACE}-{PARENT}-00"})
        await running.ask(chat("x"), {"traceparent": f"00-{TRACE}-{PARENT}-01"})
        await running.ask(chat("x"), {"traceparent": "00-nonsense", "tracestate": "=" * 600})
    assert [call.trace_id.hex() for call in collector.calls] == [TRACE]
    # A caller who does not record still finds its trace continued.
    assert teacher.headers[1]["traceparent"].startswith(f"00-{TRACE}-")
    assert teacher.headers[1]["traceparent"].endswith("-00")


@pytest.mark.parametrize("mode", ["error", "away"])
async def test_without_a_collector_calls_are_answered_and_the_end_is_bounded(
    start: Start, collector: Collector, teacher: TeacherServer, mode: str
) -> None:
    collector.mode = mode
    url = "http://127.0.0.1:9" if mode == "away" else collector.url
    section = {"endpoint": f"{url}/v1/traces", "timeout_seconds": 1, "queue": 8}
    async with start(telemetry=section) as running:
        for _ in range(40):
            assert (await running.ask(chat("x")))[0] == 200
        ended = time.monotonic()
    assert time.monotonic() - ended < 15


def test_nothing_is_loaded_where_nothing_is_traced(settings: Settings) -> None:
    assert open_tracing(settings) is None
    code = (
        "import sys, serving.gateway.__main__; "
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
