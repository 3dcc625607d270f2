"""OpenTelemetry spans of calls to models, in OTLP's JSON encoding, by the GenAI conventions.

Four generations of the conventions are in use: ``gen_ai.input.messages`` and
``gen_ai.output.messages`` on the span or on its event
``gen_ai.client.inference.operation.details``; before that an event per message
(``gen_ai.user.message`` ... ``gen_ai.choice``); and ``gen_ai.prompt.N.role`` and so on as flat
attributes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from infra.calls.codec import Problem, RecordError
from trainers.readers.completions import completion
from trainers.readers.fields import embedded, first, instant, mapping, sequence, text
from trainers.readers.making import Parts, call, failure, own_id, request, tagged, usage
from trainers.readers.otlp import attributes, flat_list, get, parts_of
from trainers.readers.reader import Item, Place, Skipped

DETAILS = "gen_ai.client.inference.operation.details"
_CHAT = frozenset({"chat", "text_completion", "generate_content"})
_MARKS = (
    "gen_ai.input.messages",
    "gen_ai.prompt.0.role",
    "gen_ai.prompt",
    "gen_ai.prompt.0.content",
)
_OPTIONS = ("temperature", "top_p", "max_tokens", "seed", "presence_penalty", "frequency_penalty")


class GenAiSpans:
    """One row is one export request with any number of spans; a bad span is one problem."""

    name = "otel"

    def recognizes(self, value: Mapping[str, Any]) -> bool:
        return bool(
            value.keys() & {"resourceSpans", "resource_spans", "resourceLogs", "resource_logs"}
        )

    def read(self, value: Mapping[str, Any], place: Place) -> Iterator[Item]:
        number = -1
        for number, (span, scope) in enumerate(_spans(value)):
            try:
                yield self._span(span, scope, place)
            except RecordError as error:
                where = f"span {number}"
                yield Problem(
                    error.reason, f"{where}, {error.position}" if error.position else where
                )
        if number < 0 and not self.recognizes(value):
            raise RecordError("neither resourceSpans nor resourceLogs")

    def _span(self, span: Any, resource: Mapping[str, Any], place: Place) -> Item:
        if not isinstance(span, Mapping):
            raise RecordError("a span is not an object")
        own = attributes(span)
        events = [event for event in sequence(span.get("events")) if isinstance(event, Mapping)]
        name = text(first(span, "eventName", "event_name")) or text(own.get("event.name"))
        operation = text(own.get("gen_ai.operation.name"))
        if name is not None and name != DETAILS:
            return Skipped("a log event that is no call's details")
        if operation is not None and operation not in _CHAT:
            return Skipped("a span of another operation than chat")
        if operation is None and not any(mark in own for mark in _MARKS):
            return Skipped("a span without a model's call")
        for event in events:
            if event.get("name") in (DETAILS, "gen_ai.content.prompt", "gen_ai.content.completion"):
                own = {**attributes(event), **own}
        trace, span_id = text(get(span, "traceId")), text(get(span, "spanId"))
        if trace is None or span_id is None:
            raise RecordError("a span without traceId and spanId")
        error = _error(span, own)
        said = _conversation(own, events)
        answer = None if error else _answer(own, events)
        begun = first(span, "startTimeUnixNano", "start_time_unix_nano", "timeUnixNano")
        start = instant(begun or span.get("observedTimeUnixNano"), "startTimeUnixNano")
        ended = first(span, "endTimeUnixNano", "end_time_unix_nano")
        latency = 0.0
        if ended is not None:
            latency = max(0.0, (instant(ended, "endTimeUnixNano") - start).total_seconds())
        model = text(first(own, "gen_ai.response.model", "gen_ai.request.model"))
        options = {n: own[f"gen_ai.request.{n}"] for n in _OPTIONS if f"gen_ai.request.{n}" in own}
        if stop := own.get("gen_ai.request.stop_sequences"):
            options["stop"] = stop
        return call(
            Parts(
                identity=own_id(self.name, f"{trace}:{span_id}"),
                request=request(
                    said,
                    text(own.get("gen_ai.request.model")) or model,
                    options,
                    own.get("gen_ai.tool.definitions") or flat_list(own, "llm.request.functions"),
                ),
                response=completion(answer, "output") if answer is not None else {},
                error=error,
                model=model or "unknown",
                time=start,
                session=text(first(own, "gen_ai.conversation.id", "session.id")) or trace,
                tag=tagged(None, own.get("nightschool.task"), resource.get("nightschool.task")),
                usage=usage(
                    {k.removeprefix("gen_ai.usage."): v for k, v in own.items() if "usage" in k}
                ),
                latency_seconds=latency,
            ),
            place,
        )


def _spans(value: Mapping[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    for kind, inner, leaf in (
        ("resourceSpans", "scopeSpans", "spans"),
        ("resourceLogs", "scopeLogs", "logRecords"),
    ):
        for group in sequence(get(value, kind)):
            resource = attributes(mapping(get(mapping(group), "resource")))
            for scope in sequence(get(mapping(group), inner)):
                for span in sequence(get(mapping(scope), leaf)):
                    yield span, resource


def _error(span: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any] | None:
    status = mapping(span.get("status"))
    failed = status.get("code") in (2, "STATUS_CODE_ERROR") or own.get("error.type") is not None
    return failure(own.get("error.type"), status.get("message")) if failed else None


def _conversation(own: Mapping[str, Any], events: list[Mapping[str, Any]]) -> list[Any]:
    said = embedded(own.get("gen_ai.input.messages"))
    if isinstance(said, list) and said:
        system = embedded(own.get("gen_ai.system_instructions"))
        if isinstance(system, list):
            return [{"role": "system", "parts": system}, *said]
        return [{"role": "system", "content": system}, *said] if system else said
    spoken = []
    for event in events:
        kind = text(event.get("name")) or ""
        if kind.startswith("gen_ai.") and kind.endswith(".message"):
            role = kind.removeprefix("gen_ai.").removesuffix(".message")
            spoken.append({"role": role, **_body(event)})
    if spoken:
        return spoken
    flat = flat_list(own, "gen_ai.prompt")
    if flat:
        return flat
    whole = embedded(own.get("gen_ai.prompt"))
    if isinstance(whole, list):
        return whole
    if isinstance(whole, str) and whole:
        return [{"role": "user", "content": whole}]
    raise RecordError("the span was recorded without what was said", "gen_ai.input.messages")


def _answer(own: Mapping[str, Any], events: list[Mapping[str, Any]]) -> Any:
    said = embedded(own.get("gen_ai.output.messages"))
    if said:
        return said
    choices = [_body(event) for event in events if event.get("name") == "gen_ai.choice"]
    if choices:
        return [
            {"role": "assistant", "finish_reason": body.get("finish_reason")}
            | (mapping(body.get("message")) or body)
            for body in choices
        ]
    flat = [{"role": "assistant", **item} for item in flat_list(own, "gen_ai.completion")]
    if flat:
        return flat
    if whole := own.get("gen_ai.completion"):
        return whole
    raise RecordError("the span was recorded without the answer", "gen_ai.output.messages")


def _body(event: Mapping[str, Any]) -> dict[str, Any]:
    """An event's fields: in one JSON attribute, or each its own."""
    own = attributes(event)
    whole = mapping(own.get("gen_ai.event.content"))
    fields = whole or {name: embedded(item) for name, item in own.items()}
    if not whole and "content" in own:
        fields["content"] = parts_of(own["content"])
    return fields
