"""Langfuse exports: observations and scores, from blob storage (snake_case) or the UI (camelCase)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from infra.calls.codec import RecordError, explained
from infra.calls.record import FeedbackRecord
from trainers.readers.completions import completion
from trainers.readers.fields import embedded, first, instant, mapping, seconds, text
from trainers.readers.making import Parts, call, failure, own_id, request, tagged, usage
from trainers.readers.messages import tools
from trainers.readers.reader import Item, Place, Skipped

_CAPITAL = re.compile(r"(?<=[a-z0-9])([A-Z])")


class LangfuseExport:
    """Generations are calls; scores of one generation are feedback on it.

    Rows of ``observations_v2/`` know their session; those of the older ``observations/`` only their
    trace, which then stands for the session.
    """

    name = "langfuse"

    def recognizes(self, value: Mapping[str, Any]) -> bool:
        names = _snake(value).keys()
        if "trace_id" in names and {"observation_id", "value"} <= names:
            return True
        return {"trace_id", "start_time"} <= names and bool(
            {"provided_model_name", "parent_observation_id", "usage_details", "status_message"}
            & names
        )

    def read(self, value: Mapping[str, Any], place: Place) -> Iterator[Item]:
        value = _snake(value)
        if "start_time" in value:
            yield from self._observation(value, place)
        elif "value" in value or "string_value" in value:
            yield self._score(value, place)
        elif "timestamp" in value:
            yield Skipped("a trace: its calls are among the observations")
        else:
            raise RecordError("neither an observation nor a score nor a trace")

    def _observation(self, value: Mapping[str, Any], place: Place) -> Iterator[Item]:
        kind = text(value.get("type"))
        if kind is None:
            raise RecordError("the type of observation is missing", "type")
        if kind != "GENERATION":
            yield Skipped("an observation that is no generation")
            return
        foreign = text(value.get("id"))
        if foreign is None:
            raise RecordError("a generation without an id", "id")
        said, offered = _without_tools(embedded(value.get("input")))
        asked = said if isinstance(said, Mapping) and "messages" in said else {}
        metadata = mapping(value.get("metadata"))
        options = {**mapping(value.get("model_parameters")), **asked}
        model = text(first(value, "provided_model_name", "model")) or text(asked.get("model"))
        offered = first(value, "tool_definitions") or first(metadata, "tools") or offered
        error = None
        if value.get("level") == "ERROR" and not value.get("output"):
            error = failure("provider_error", value.get("status_message"))
        begun = instant(value.get("start_time"), "start_time")
        latency = seconds(value.get("latency"))
        if value.get("end_time"):
            latency = max(0.0, (instant(value["end_time"], "end_time") - begun).total_seconds())
        output = embedded(value.get("output"))
        yield call(
            Parts(
                identity=own_id(self.name, foreign),
                request=request(said, model, options, offered),
                response={} if error else completion(output, "output"),
                error=error,
                model=model or "unknown",
                time=begun,
                session=text(first(value, "session_id", "trace_id")),
                tag=tagged(first(value, "tags", "trace_tags"), metadata.get("task")),
                usage=usage(
                    value.get("usage_details"),
                    value.get("usage"),
                    value,
                    output.get("usage") if isinstance(output, Mapping) else None,
                ),
                latency_seconds=latency or 0.0,
            ),
            place,
        )

    def _score(self, value: Mapping[str, Any], place: Place) -> Item:
        about = text(value.get("observation_id"))
        if about is None:
            return Skipped("a score of a whole trace")
        given = value.get("value")
        kind = value.get("data_type")
        label = text(value.get("string_value"))
        score = None
        if kind != "CATEGORICAL" and isinstance(given, int | float) and 0 <= given <= 1:
            score = float(given)
        elif label is None:
            return Skipped("a score outside 0 to 1, whose scale is not known")
        try:
            return FeedbackRecord(
                id=own_id(
                    f"{self.name}:score", text(value.get("id")) or f"{about}:{label}:{given}"
                ),
                time=instant(first(value, "timestamp", "created_at"), "timestamp"),
                tenant=place.tenant,
                call_id=own_id(self.name, about),
                score=score,
                label=label[:256] if label and score is None else None,
            )
        except ValidationError as error:
            raise explained(error) from None


def _without_tools(said: Any) -> tuple[Any, list[Any]]:
    """The messages, and the tools that its LangChain handler puts after them as messages of tools."""
    said = list(said) if isinstance(said, list) else said
    offered: list[Any] = []
    while isinstance(said, list) and said and (tool := _tool_of(said[-1])) is not None:
        offered.insert(0, tool)
        said.pop()
    return said, offered


def _tool_of(message: Any) -> Mapping[str, Any] | None:
    if not isinstance(message, Mapping) or message.get("role") != "tool":
        return None
    content = message.get("content")
    is_tool = isinstance(content, Mapping) and "tool_call_id" not in message and tools([content])
    return content if is_tool else None


def _snake(value: Mapping[str, Any]) -> dict[str, Any]:
    return {
        _CAPITAL.sub(lambda m: f"_{m.group(1).lower()}", str(key)): v for key, v in value.items()
    }
