"""A message in Slack's Block Kit, within its limits. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from infra.notify.message import Action, Message

# https://api.slack.com/reference/block-kit/blocks
HEADER_CHARACTERS = 150
SECTION_CHARACTERS = 3000
FIELD_CHARACTERS = 2000
FIELDS_PER_SECTION = 10
URL_CHARACTERS = 3000
MAX_BLOCKS = 50
MAX_STEPS = 8
"""Of a thread, told in its first message, newest last."""
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_BUTTONS = {
    "approve": "Approve",
    "pause": "Pause",
    "resume": "Resume",
    "abort": "Keep the champion",
    "rollback": "Roll back",
}

Block = dict[str, Any]
Links = Callable[[Action], str | None]
"""The address at which an action can be taken, or None where there is none."""


def no_links(_: Action) -> str | None:
    return None


def blocks(message: Message, links: Links = no_links, steps: Sequence[str] = ()) -> list[Block]:
    """The message in Block Kit: title, what, who is exposed, why, evidence, link, undo, buttons.

    Args:
        steps: titles of what happened in the thread so far, for its first message.
    """
    tail: list[Block] = []
    if message.link.startswith(("https://", "http://")) and len(message.link) <= FIELD_CHARACTERS:
        address = message.link.replace("|", "%7C").replace(">", "%3E").replace(" ", "%20")
        tail.append(_section(f"<{address}|Open the evidence>"))
    if message.undo:
        # A command to be copied, or words where there is none.
        tick = "`" if message.undo.startswith("nightschool ") else ""
        undo = _escaped(message.undo, SECTION_CHARACTERS - 20, f"*Undo:* {tick}", tick)
        tail.append(_section(undo))
    if len(steps) > 1:
        shown = " → ".join(_escaped(step, 200) for step in steps[-MAX_STEPS:])
        tail.append({"type": "context", "elements": [{"type": "mrkdwn", "text": shown}]})
    buttons = _buttons(message.actions, links)
    if buttons:
        tail.append({"type": "actions", "elements": buttons})
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
        for label, text in (("", message.what), ("", message.exposed), ("*Why:* ", message.why))
        if text
    ]
    return head + _evidence(message.evidence, MAX_BLOCKS - len(head) - len(tail)) + tail


def fallback(message: Message) -> str:
    """What a notification on a telephone shows."""
    return _escaped(f"{message.title}: {message.what}", SECTION_CHARACTERS)


def _buttons(actions: Sequence[Action], links: Links) -> list[Block]:
    """Buttons that open a page which asks before it acts."""
    found = []
    for action in actions:
        url = links(action)
        if url is not None and len(url) <= URL_CHARACTERS:
            button: Block = {
                "type": "button",
                "action_id": action.what,
                "text": {"type": "plain_text", "text": _BUTTONS[action.what], "emoji": False},
                "url": url,
            }
            if action.what == "approve":
                button["style"] = "primary"
            if action.what == "rollback":
                button["style"] = "danger"
            found.append(button)
    return found


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
