"""OpenTelemetry spans in the forms that the conventions had over time."""

from __future__ import annotations

import json
from typing import Any

import pytest

from infra.calls.codec import Problem
from tests.trainers.readers import run_of_agent as agent
from tests.trainers.readers.one_row import one, read
from tests.trainers.readers.samples import SAMPLES
from tests.trainers.readers.span_samples import attribute, document, span
from trainers.readers.formats import reader_named, reader_of
from trainers.readers.reader import Skipped


def test_an_event_for_each_message():
    def event(name: str, **fields: Any) -> dict[str, Any]:
        given = [
            attribute(k, v if isinstance(v, str) else json.dumps(v)) for k, v in fields.items()
        ]
        return {"name": name, "timeUnixNano": "1", "attributes": given}

    events = [
        event("gen_ai.system.message", content=agent.SYSTEM),
        event("gen_ai.user.message", content=agent.USER),
        event("gen_ai.assistant.message", tool_calls=[agent.CALL]),
        event("gen_ai.tool.message", content=agent.RESULT, id="call_a"),
        event("gen_ai.choice", index=0, finish_reason="stop", message=agent.SAID),
    ]
    record = one("otel", document(span(1, agent.TIME, {}, events=events)))
    assert record.answer == agent.SAID
    assert record.messages == agent.SECOND


def test_the_details_in_a_log_event_have_the_spans_id():
    (whole,) = SAMPLES["otel"].rows[0]["resourceSpans"]
    (found,) = whole["scopeSpans"][0]["spans"]
    event = {
        "timeUnixNano": found["startTimeUnixNano"],
        "eventName": "gen_ai.client.inference.operation.details",
        "traceId": found["traceId"],
        "spanId": found["spanId"],
        "attributes": found["attributes"],
    }
    row = {"resourceLogs": [{"scopeLogs": [{"logRecords": [event]}]}]}
    assert reader_of(row) is reader_named("otel")
    assert one("otel", row).id == one("otel", SAMPLES["otel"].rows[0]).id


def test_other_spans_are_skipped_and_silent_ones_named():
    http = span(1, agent.TIME, {})
    http["attributes"] = [attribute("http.method", "GET")]
    tool = span(2, agent.TIME, {"gen_ai.operation.name": "execute_tool"})
    silent = span(3, agent.TIME, {})
    found = read("otel", document(http, tool, silent))
    assert [type(item) for item in found] == [Skipped, Skipped, Problem]
    assert found[2].reason == "the span was recorded without what was said"
    assert found[2].position.startswith("span 2")


def test_structured_values():
    structured = {
        "key": "gen_ai.input.messages",
        "value": {
            "arrayValue": {
                "values": [
                    {
                        "kvlistValue": {
                            "values": [
                                attribute("role", "user"),
                                attribute("content", "hello"),
                            ]
                        }
                    }
                ]
            }
        },
    }
    made = span(1, agent.TIME, {"gen_ai.completion.0.content": "hi"})
    made["attributes"].append(structured)
    record = one("otel", document(made))
    assert record.messages == [{"role": "user", "content": "hello"}]
    assert record.answer == {"role": "assistant", "content": "hi"}


def test_what_the_protocols_own_encoder_writes():
    json_format = pytest.importorskip("google.protobuf.json_format")
    encoder = pytest.importorskip("opentelemetry.exporter.otlp.proto.common.trace_encoder")
    export = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    processing = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = export.InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(processing.SimpleSpanProcessor(memory))
    with provider.get_tracer("t").start_as_current_span("chat m") as active:
        active.set_attribute("gen_ai.operation.name", "chat")
        active.set_attribute("gen_ai.request.model", "m")
        active.set_attribute("gen_ai.usage.input_tokens", 12)
        for side, role, said in (("input", "user", "hello"), ("output", "assistant", "hi")):
            message = {"role": role, "parts": [{"type": "text", "content": said}]}
            active.set_attribute(f"gen_ai.{side}.messages", json.dumps([message]))
    encoded = encoder.encode_spans(memory.get_finished_spans())
    record = one("otel", json_format.MessageToDict(encoded))
    assert record.messages == [{"role": "user", "content": "hello"}]
    assert record.answer == {"role": "assistant", "content": "hi"}
    assert record.usage.prompt_tokens == 12
    assert record.latency_seconds > 0
