"""Turn a request body into something the rest may rely on: parsed, bounded, with a session and a tag.

Nothing here is lenient about shape, because everything behind it (anonymizer, signature, renderer)
walks these structures; and nothing here is strict about options, because the teacher knows more of
them than we do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage

from infra.anonymize.session_names import SessionNames
from serving.gateway.problems import GatewayError, bad_request, too_large, too_slow

MAX_DEPTH = 64
MAX_MESSAGES = 10_000
MAX_TOOLS = 1024
MAX_TAG_CHARACTERS = 200
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
SESSION_HEADER = "x-session-id"
TASK_HEADER = "x-task"
# What names a session or a task for us and means nothing to the teacher.
OUR_METADATA = frozenset({"session_id", "task"})
# OpenAI's own fields that identify the end user.
END_USER_FIELDS = ("user", "safety_identifier", "prompt_cache_key")


@dataclass(frozen=True)
class ChatRequest:
    """A chat-completion request that passed the limits."""

    body: dict[str, Any]
    session: str
    """Safe to log: either a plain identifier or a hash."""
    tag: str | None
    size_bytes: int

    @property
    def stream(self) -> bool:
        return self.body.get("stream") is True

    @property
    def model(self) -> str:
        return str(self.body.get("model") or "")

    def logged(self) -> dict[str, Any]:
        """The request without what identifies the end user beside the text itself."""
        body = {name: value for name, value in self.body.items() if name not in END_USER_FIELDS}
        return _without_our_metadata(body)

    def forwarded(self, model: str | None) -> dict[str, Any]:
        """What goes to the teacher; ``model`` replaces the caller's where it named one of ours."""
        body = _without_our_metadata(dict(self.body))
        if model is not None:
            body["model"] = model
        return body


async def read_body(request: web.Request, limit_bytes: int, timeout_seconds: float) -> bytes:
    """The whole body. Raises GatewayError: too large, too slow, or not what its head says."""
    if (request.content_length or 0) > limit_bytes:
        raise too_large(limit_bytes)
    content = request.content
    try:
        # Nothing to wait for is the common case, and a timer is not free.
        if content.is_eof():
            body = content.read_nowait()
            if len(body) > limit_bytes:
                raise too_large(limit_bytes)
            return body
        async with asyncio.timeout(timeout_seconds):
            return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise too_large(limit_bytes) from None
    except (web.RequestPayloadError, BadHttpMessage):
        raise bad_request("the body is not what its head says it is", "invalid_body") from None
    except TimeoutError:
        raise too_slow(timeout_seconds) from None


def parse_object(raw: bytes) -> dict[str, Any]:
    """A JSON object of bounded depth. Raises GatewayError 400 on anything else.

    Strict: NaN, numbers beyond a double, broken UTF-8 and half a surrogate pair are refused, because
    what parses here is written again, to the teacher and to the log.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if error.msg.startswith("depth limit"):
            raise _too_deep() from None
        raise bad_request("the body is not valid JSON in UTF-8", "invalid_json") from None
    if not isinstance(value, dict):
        raise bad_request("the body must be a JSON object", "invalid_json")
    # As many levels as brackets at most, which are counted faster than levels.
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
        _check_depth(value)
    return value


def parse_chat(
    raw: bytes, headers: Mapping[str, str], tenant: str, names: SessionNames
) -> ChatRequest:
    """Parse and bound a chat-completion body. Raises GatewayError 400 with what to change."""
    body = parse_object(raw)
    check_chat(body)
    return ChatRequest(
        body=body,
        session=session_of(body, headers, tenant, names),
        tag=_tag(body, headers),
        size_bytes=len(raw),
    )


def check_chat(body: Mapping[str, Any]) -> None:
    """The shape that the renderer, the signature and the anonymizer rely on."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad_request("'messages' must be a list with at least one message")
    if len(messages) > MAX_MESSAGES:
        raise bad_request(f"more than {MAX_MESSAGES} messages")
    for index, message in enumerate(messages):
        _check_message(message, index)
    tools = body.get("tools")
    if tools is not None:
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise bad_request("'tools' must be a list of objects")
        if len(tools) > MAX_TOOLS:
            raise bad_request(f"more than {MAX_TOOLS} tools")
        for tool in tools:
            _check_tool(tool)
    for name in ("metadata", "response_format", "stream_options"):
        if body.get(name) is not None and not isinstance(body[name], dict):
            raise bad_request(f"'{name}' must be an object")
    if body.get("stream") not in (None, True, False):
        raise bad_request("'stream' must be true or false")
    if not isinstance(body.get("model"), (str, type(None))):
        raise bad_request("'model' must be a string")


def session_of(
    body: Mapping[str, Any], headers: Mapping[str, str], tenant: str, names: SessionNames
) -> str:
    """The session: header, ``metadata.session_id``, ``user``, else a hash of the first messages."""
    given = headers.get(SESSION_HEADER) or (body.get("metadata") or {}).get("session_id")
    if isinstance(given, str) and given:
        return names.safe(given, tenant)
    user = body.get("user")
    if isinstance(user, str) and user:
        return names.of_user(user, tenant)
    opening: list[Any] = []
    for message in body["messages"]:
        opening.append([message.get("role"), message.get("content")])
        if message.get("role") == "user":
            break
    return names.hashed(orjson.dumps(opening, option=orjson.OPT_SORT_KEYS).decode(), tenant)


def _tag(body: Mapping[str, Any], headers: Mapping[str, str]) -> str | None:
    tag = headers.get(TASK_HEADER) or (body.get("metadata") or {}).get("task")
    if tag is None or tag == "":
        return None
    if not isinstance(tag, str) or len(tag) > MAX_TAG_CHARACTERS or not tag.isprintable():
        raise bad_request(
            f"a task tag is printable text of at most {MAX_TAG_CHARACTERS} characters"
        )
    return tag


def _without_our_metadata(body: dict[str, Any]) -> dict[str, Any]:
    metadata = body.get("metadata")
    if isinstance(metadata, dict) and OUR_METADATA & metadata.keys():
        kept = {name: value for name, value in metadata.items() if name not in OUR_METADATA}
        body = {name: value for name, value in body.items() if name != "metadata"}
        if kept:
            body["metadata"] = kept
    return body


def _check_message(message: Any, index: int) -> None:
    where = f"messages[{index}]"
    if not isinstance(message, dict):
        raise bad_request(f"{where} must be an object")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise bad_request(f"{where}.role must be one of {', '.join(sorted(ROLES))}")
    content = message.get("content")
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict):
                raise bad_request(f"{where}.content must be text or a list of parts")
            if not isinstance(part.get("text"), (str, type(None))):
                raise bad_request(f"{where}.content has a part whose text is not a string")
    elif not isinstance(content, (str, type(None))):
        raise bad_request(f"{where}.content must be text or a list of parts")
    calls = message.get("tool_calls")
    if calls is None:
        return
    if not isinstance(calls, list):
        raise bad_request(f"{where}.tool_calls must be a list")
    for call in calls:
        if not isinstance(call, dict):
            raise bad_request(f"{where}.tool_calls must be a list of objects")
        function = call.get("function")
        if call.get("type", "function") == "function" and not (
            isinstance(function, dict)
            and isinstance(function.get("name"), str)
            and isinstance(function.get("arguments", ""), str)
        ):
            raise bad_request(f"{where}.tool_calls need function.name and function.arguments")


def _check_tool(tool: Mapping[str, Any]) -> None:
    if tool.get("type", "function") != "function":
        return
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise bad_request("every function tool needs function.name")
    parameters = function.get("parameters")
    if not isinstance(parameters, (dict, type(None))):
        raise bad_request("a tool's function.parameters must be a JSON Schema object")


_NESTED = frozenset({dict, list})


def _check_depth(value: Any) -> None:
    layer: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        layer = [
            child
            for node in layer
            for child in (node.values() if type(node) is dict else node)
            if type(child) in _NESTED
        ]
        if not layer:
            return
    raise _too_deep()


def _too_deep() -> GatewayError:
    return bad_request(f"the body is nested deeper than {MAX_DEPTH} levels", "too_deep")
