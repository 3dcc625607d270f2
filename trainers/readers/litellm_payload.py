"""LiteLLM's StandardLoggingPayload, as its S3 and other object-storage loggers write it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from infra.calls.codec import RecordError
from trainers.readers.completions import completion
from trainers.readers.fields import first, instant, mapping, seconds, text
from trainers.readers.making import (
    Parts,
    call,
    content_id,
    failure,
    own_id,
    request,
    tagged,
    usage,
)
from trainers.readers.reader import Item, Place, Skipped

_CHAT = frozenset({"completion", "acompletion", "anthropic_messages", "aanthropic_messages"})
_REDACTED = "redacted-by-litellm"


class LitellmPayload:
    name = "litellm"

    def recognizes(self, value: Mapping[str, Any]) -> bool:
        found = mapping(value.get("standard_logging_object")) or value
        return {"call_type", "model_parameters"} <= found.keys() or (
            {"call_type", "startTime"} <= found.keys()
        )

    def read(self, value: Mapping[str, Any], place: Place) -> Iterator[Item]:
        value = mapping(value.get("standard_logging_object")) or value
        kind = text(value.get("call_type"))
        if kind is None:
            raise RecordError("the kind of call is missing", "call_type")
        if kind not in _CHAT:
            yield Skipped("a call of another kind than chat")
            return
        said = value.get("messages")
        options = mapping(value.get("model_parameters"))
        metadata = mapping(value.get("metadata"))
        own = mapping(metadata.get("spend_logs_metadata"))
        asker = mapping(metadata.get("requester_metadata"))
        error = None
        if value.get("status") == "failure" or (
            value.get("error_str") and not value.get("response")
        ):
            told = mapping(value.get("error_information"))
            error = failure(
                first(told, "error_code", "error_class"),
                first(told, "error_message") or value.get("error_str"),
            )
        if _redacted(said) or (error is None and _redacted(value.get("response"))):
            raise RecordError("the logger wrote this call without what was said", "messages")
        model = text(value.get("model"))
        made = request(said, model, options)
        if value.get("stream") is not None:
            made["stream"] = bool(value["stream"])
        begun = instant(value.get("startTime"), "startTime")
        latency = seconds(value.get("response_time"))
        if latency is None and value.get("endTime") is not None:
            latency = max(0.0, (instant(value["endTime"], "endTime") - begun).total_seconds())
        foreign = text(value.get("id"))
        yield call(
            Parts(
                identity=own_id(self.name, foreign)
                if foreign
                else content_id(self.name, value, place),
                request=made,
                response={} if error else completion(value.get("response")),
                error=error,
                model=model or "unknown",
                time=begun,
                session=text(
                    first(own, "session_id")
                    or first(asker, "session_id")
                    or first(metadata, "session_id")
                    or value.get("trace_id")
                ),
                tag=tagged(value.get("request_tags"), own.get("task"), asker.get("task")),
                usage=usage(value, mapping(value.get("response")).get("usage")),
                latency_seconds=latency or 0.0,
            ),
            place,
        )


def _redacted(value: Any) -> bool:
    """Whether the logger was told to leave out what was said."""
    if isinstance(value, str):
        return value == _REDACTED
    if isinstance(value, list):
        return bool(value) and all(_redacted(item) for item in value)
    if isinstance(value, Mapping):
        inner = value.get("choices", value.get("message", value.get("content", value.get("text"))))
        return inner is not None and _redacted(inner)
    return False
