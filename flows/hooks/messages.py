"""What a message asks for, in the words of each kind of sender. Pure: bytes in, a wish out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_plus

from flows.hooks.senders import Refused
from infra.settings.operating import HookSender

MAX_REASON = 500
MAX_TASK = 64
MAX_PARAMETERS = 20
MAX_RECORDS = 1000
OWN = frozenset({"task", "reason", "asked_by", "gate_override", "drill"})
"""Parameters of the flow that a message does not set: said elsewhere in it, or not for a webhook."""


@dataclass(frozen=True)
class Wish:
    """What a message asks for."""

    body: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the flow run; for feedback what was said of the call."""
    ignored: str = ""
    """Why nothing is to be done, where that is so."""


def wish(
    hook: str, how: HookSender, headers: Mapping[str, str], body: bytes, watched: Sequence[str]
) -> Wish:
    """What the message asks for.

    Args:
        how: the sender; GitHub says things in its own words.
        watched: ``bucket/prefix`` of the places whose new objects are logs.

    Raises Refused: 400, with what is not understood.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON") from None
    if not isinstance(value, dict):
        raise Refused(400, 'the body must be a JSON object such as {"task": "..."}')
    if hook == "objects":
        return _objects(value, watched)
    if how.scheme == "github":
        event = headers.get("X-GitHub-Event", "")
        if event == "ping":
            return Wish(ignored="GitHub asks whether somebody is there")
        if event == "repository_dispatch" and isinstance(value.get("client_payload"), dict):
            value = value["client_payload"]
        else:
            value = _github(value, event, how.task)
    if hook == "feedback":
        return Wish(value)
    return Wish(_asked(hook, value))


def _asked(hook: str, value: Mapping[str, Any]) -> dict[str, Any]:
    unknown = set(value) - {"task", "reason", "parameters"}
    if unknown:
        raise Refused(400, f"unknown fields: {', '.join(sorted(unknown))[:200]}")
    task, reason = value.get("task"), value.get("reason", "asked for by webhook")
    parameters = value.get("parameters", {})
    if not isinstance(reason, str) or not 0 < len(reason) <= MAX_REASON or not _storable(reason):
        raise Refused(400, f"reason must be text of at most {MAX_REASON} characters")
    if task == "all":
        task = None
    if task is not None and not (
        isinstance(task, str) and 0 < len(task) <= MAX_TASK and _storable(task)
    ):
        raise Refused(400, "task must be the id of a task, or all")
    if hook == "rollback" and task is None:
        raise Refused(400, "a rollback needs the id of a task")
    if not isinstance(parameters, dict) or len(parameters) > MAX_PARAMETERS:
        raise Refused(400, f"parameters must be an object of at most {MAX_PARAMETERS} names")
    taken = OWN & set(parameters)
    if taken:
        raise Refused(400, f"not to be set by a webhook's parameters: {', '.join(sorted(taken))}")
    if not _storable(json.dumps(parameters, ensure_ascii=False)):
        raise Refused(400, "parameters hold characters that cannot be stored")
    return {**parameters, "task": task, "reason": reason}


def _github(value: Mapping[str, Any], event: str, task: str | None) -> dict[str, Any]:
    """An event of GitHub's, as a reason to retrain."""
    repository = value.get("repository")
    name = repository.get("full_name") if isinstance(repository, dict) else None
    words = ["GitHub", event or "event", value.get("action"), "of", name or "a repository"]
    return {"task": task, "reason": " ".join(str(word) for word in words if word)[:MAX_REASON]}


def _objects(value: Mapping[str, Any], watched: Sequence[str]) -> Wish:
    """S3's event notification as AWS and MinIO send it, or EventBridge's; which of it is new logs."""
    if isinstance(value.get("detail"), dict):
        named = [(str(value.get("detail-type", "")).replace(" ", ""), value["detail"])]
    elif isinstance(value.get("Records"), list) and len(value["Records"]) <= MAX_RECORDS:
        named = [
            (str(record.get("eventName", "")), record.get("s3"))
            for record in value["Records"]
            if isinstance(record, dict)
        ]
    elif value.get("Event") == "s3:TestEvent":
        return Wish(ignored="S3 tries the address")
    else:
        raise Refused(400, "no object-store notification: it has neither Records nor detail")
    keys = []
    for event, where in named:
        bucket, key = _object_of(where)
        if not event.removeprefix("s3:").startswith("ObjectCreated"):
            continue
        if any(f"{bucket}/{key}".startswith(place) for place in watched):
            keys.append(key)
    if not keys:
        return Wish(ignored="no new log object among them")
    return Wish({"objects": len(keys), "first": keys[0][:MAX_REASON]})


def _object_of(where: Any) -> tuple[str, str]:
    try:
        bucket, key = where["bucket"]["name"], unquote_plus(where["object"]["key"])
        if isinstance(bucket, str) and _storable(key):
            return bucket, key
    except (KeyError, TypeError, AttributeError):
        pass
    raise Refused(400, "a notification without a bucket's name and an object's key")


def _storable(text: str) -> bool:
    """Neither half a character nor NUL, which PostgreSQL refuses."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in text and "\\u0000" not in text
