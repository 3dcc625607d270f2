"""What every reader ends with: one call record, or the reason why there is none."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from pydantic import ValidationError

from infra.calls.codec import explained
from infra.calls.record import AnsweredBy, CallRecord, Usage
from trainers.readers.fields import count, embedded, first, mapping, number, sequence, text
from trainers.readers.messages import messages, normal, tools
from trainers.readers.reader import Place

MAX_ERROR_CHARACTERS = 2000
MAX_NAME_CHARACTERS = 256
_NAMESPACE = uuid.UUID("6f0c5bd1-6c0a-5b43-9a5a-2f6f2b1f6c77")
_UNDATED = datetime(1970, 1, 1, tzinfo=UTC)
_UNDATED_STEPS = 10**11
_NUMBERS = (
    *("temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", "n"),
    *("presence_penalty", "frequency_penalty"),
)
_OPTIONS = (
    *("stop", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort"),
    *("logit_bias", "user", "stream"),
)


@dataclass(frozen=True)
class Parts:
    """A call as a reader found it; ``call`` makes a record of it."""

    identity: str
    request: dict[str, Any]
    model: str
    time: datetime
    response: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    """Why there is no answer: such a call is kept, and is nobody's example."""
    session: str | None = None
    """The session, thread or trace that the format knows; None: told by how the talk begins."""
    tag: str | None = None
    usage: Usage = field(default_factory=Usage)
    latency_seconds: float = 0.0
    more: Mapping[str, Any] = field(default_factory=dict)
    """Fields beyond our own that are worth keeping."""


def call(parts: Parts, place: Place) -> CallRecord:
    """The record.

    Raises:
        RecordError: a value is out of bounds.
    """
    response = parts.response
    if parts.error is not None:
        response = {"error": parts.error}
    try:
        return CallRecord(
            **parts.more,
            id=parts.identity,
            time=parts.time,
            tenant=place.tenant,
            session=_name(parts.session) or chain(parts.request),
            task_tag=_name(parts.tag),
            request=parts.request,
            response=response,
            usage=parts.usage,
            latency_seconds=parts.latency_seconds,
            answered_by=AnsweredBy(model=parts.model),
        )
    except ValidationError as error:
        raise explained(error) from None


def own_id(reader: str, foreign: str) -> str:
    """The id of a call that the other system names; the same in every export of it."""
    return str(uuid.uuid5(_NAMESPACE, f"{reader}\0{foreign}"))


def content_id(reader: str, value: Any, place: Place, step: int = 0) -> str:
    """The id of a call without one: by what it says and where in its file it stands."""
    said = orjson.dumps(value, option=orjson.OPT_SORT_KEYS, default=str)
    digest = hashlib.sha256(said).hexdigest()
    return own_id(reader, f"{digest}\0{place.position}\0{step}")


def chain(request: Mapping[str, Any]) -> str:
    """A session for calls that name none: the steps of one conversation begin alike."""
    begun = []
    for message in request.get("messages", []):
        begun.append(message)
        if message.get("role") == "user":
            break
    said = orjson.dumps(begun, option=orjson.OPT_SORT_KEYS, default=str)
    return f"chain-{hashlib.sha256(said).hexdigest()[:32]}"


def request(
    said: Any, model: str | None, options: Mapping[str, Any], offered: Any = None
) -> dict[str, Any]:
    """An OpenAI request.

    Args:
        said: the conversation, in any dialect.
        options: sampling options and the like; those that OpenAI's requests have are taken, and
            ``system``, where Anthropic's requests say what OpenAI's say in the first message.
        offered: tool definitions; None: those among the options.
    """
    made: dict[str, Any] = {"model": model} if model else {}
    spoken = messages(said)
    if options.get("system") and spoken[0]["role"] not in ("system", "developer"):
        spoken = (
            normal({"role": "system", "content": embedded(options["system"])}, "system") + spoken
        )
    made["messages"] = spoken
    found = tools(offered) or tools(options.get("tools")) or tools(options.get("functions"))
    if found:
        made["tools"] = found
    made.update({name: options[name] for name in _OPTIONS if options.get(name) is not None})
    numbers = {name: number(options.get(name)) for name in _NUMBERS}
    return made | {name: value for name, value in numbers.items() if value is not None}


def usage(*given: Any) -> Usage:
    """Tokens of the first of several places that has any, under any of their usual names."""
    for value in given:
        fields = mapping(value)
        asked = count(first(fields, "prompt_tokens", "input_tokens", "input", "promptTokens"))
        said = count(
            first(fields, "completion_tokens", "output_tokens", "output", "completionTokens")
        )
        if asked or said:
            return Usage(prompt_tokens=asked, completion_tokens=said)
    return Usage()


def failure(code: Any, message: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"code": (text(code) or "error")[:MAX_NAME_CHARACTERS]}
    said = message if isinstance(message, str) else None
    if said:
        made["message"] = said[:MAX_ERROR_CHARACTERS]
    return made


def undated(step: int) -> datetime:
    """The time of a call that has none: older than every dated one, in the order of its file."""
    return _UNDATED + timedelta(milliseconds=min(step, _UNDATED_STEPS))


def is_dated(time: datetime) -> bool:
    """Whether a call's time is one, and not its place in a file."""
    return time > undated(_UNDATED_STEPS)


def tagged(tags: Any, *named: Any) -> str | None:
    """The task that the caller named: a field of its own, or a tag ``task:NAME``."""
    for value in named:
        if (found := text(value)) is not None:
            return found
    for tag in sequence(tags):
        if isinstance(tag, str) and tag.startswith("task:") and len(tag) > len("task:"):
            return tag.removeprefix("task:")
    return None


def number_in(position: str) -> int:
    digits = "".join(letter for letter in position.split(".")[0] if letter.isdigit())
    return int(digits[:12]) if digits else 0


def _name(value: str | None) -> str | None:
    """A name without control characters; a long one keeps its beginning and its digest."""
    if value is None:
        return None
    clean = "".join(letter for letter in value if letter.isprintable()).strip()
    if not clean:
        return None
    if len(clean) <= MAX_NAME_CHARACTERS:
        return clean
    return f"{clean[:180]}#{hashlib.sha256(clean.encode()).hexdigest()[:32]}"
