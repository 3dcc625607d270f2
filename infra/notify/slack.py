"""Slack, by an incoming webhook and Block Kit, within its limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.error import URLError

from slack_sdk.errors import SlackRequestError
from slack_sdk.webhook import WebhookClient

from infra.notify.http import retry_after
from infra.notify.message import DeliveryFailed, Message

# https://api.slack.com/reference/block-kit/blocks
HEADER_CHARACTERS = 150
SECTION_CHARACTERS = 3000
FIELD_CHARACTERS = 2000
FIELDS_PER_SECTION = 10
MAX_BLOCKS = 50
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}

Block = dict[str, Any]


class SlackChannel:
    """``Channel`` to one Slack incoming webhook, whose address is the secret."""

    def __init__(self, url: str, timeout_seconds: float = 10) -> None:
        # Retries are the outbox's: it survives a restart and knows the order.
        self._client = WebhookClient(url, timeout=max(1, int(timeout_seconds)), retry_handlers=[])

    def send(self, message: Message) -> None:
        try:
            response = self._client.send(text=fallback(message), blocks=blocks(message))
        except (OSError, URLError, SlackRequestError) as error:
            raise DeliveryFailed(f"Slack cannot be reached ({type(error).__name__})") from None
        if response.status_code == 200:
            return
        if response.status_code == 429:
            wish = retry_after(response.headers)
            raise DeliveryFailed("Slack asks to slow down", retry_after_seconds=wish)
        raise DeliveryFailed(
            f"Slack refused with status {response.status_code}: "
            "check [notify] slack_webhook_url and the channel it belongs to",
            # Slack says so of a payload it does not understand, and will say it again.
            permanent=response.status_code == 400,
        )


def blocks(message: Message) -> list[Block]:
    """The message in Block Kit: title, what, why, evidence, link, how to undo."""
    tail: list[Block] = []
    if message.link.startswith(("https://", "http://")) and len(message.link) <= FIELD_CHARACTERS:
        address = message.link.replace("|", "%7C").replace(">", "%3E").replace(" ", "%20")
        tail.append(_section(f"<{address}|Open the evidence>"))
    if message.undo:
        tail.append(_section(_escaped(message.undo, SECTION_CHARACTERS - 20, "*Undo:* `", "`")))
    head = [
        {
            "type": "header",
            "text": {
                "type": "plain_text",
                "text": _cut(message.title, HEADER_CHARACTERS),
                "emoji": False,
            },
        }
    ]
    head += [
        _section(_escaped(text, SECTION_CHARACTERS - 20, label))
        for label, text in (("", message.what), ("*Why:* ", message.why))
        if text
    ]
    return head + _evidence(message.evidence, MAX_BLOCKS - len(head) - len(tail)) + tail


def fallback(message: Message) -> str:
    """What a notification on a telephone shows."""
    return _escaped(f"{message.title}: {message.what}", SECTION_CHARACTERS)


def _evidence(evidence: Mapping[str, Any], room: int) -> list[Block]:
    fields = [
        {
            "type": "mrkdwn",
            "text": _escaped(str(name), 200, "*", "*\n")
            + (_escaped(_shown(value), FIELD_CHARACTERS - 300) or "-"),
        }
        for name, value in evidence.items()
    ]
    groups = [fields[n : n + FIELDS_PER_SECTION] for n in range(0, len(fields), FIELDS_PER_SECTION)]
    return [{"type": "section", "fields": group} for group in groups[:room]]


def _section(text: str) -> Block:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text}}


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _escaped(text: str, limit: int, before: str = "", after: str = "") -> str:
    """Escaped for Slack and at most ``limit`` long without cutting an escape in two."""
    size, parts = 0, []
    for character in text:
        part = _ESCAPES.get(character, character)
        size += len(part.encode("utf-16-le", "replace")) // 2
        if size > limit - 1:
            parts.append("…")
            break
        parts.append(part)
    return before + "".join(parts) + after


def _cut(text: str, limit: int) -> str:
    # Slack counts as JavaScript does, where a character beyond the basic plane is two.
    while len(text.encode("utf-16-le", "replace")) // 2 > limit:
        text = text[: limit - 2 if len(text) > limit else -2].rstrip() + "…"
    return text
