"""Text of the small model that reaches a streaming caller before the answer is complete.

Only plain text, only once enough of it is confident, and with a way back: until the first part is
released the teacher can still answer instead; after that, a text that turns bad ends the stream with
an error, never with a wrong answer that looks whole.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from infra.anonymize.placeholders import PLACEHOLDER

# What may still become a placeholder: an opening bracket not closed yet.
_OPEN_END = re.compile(r"<[A-Za-z0-9_|]{0,64}\Z")
_CONTROL = "<|"
_JSON_STARTS = ("{", "[")


class TextTurnedBad(Exception):
    """A text that the caller has begun to read must not be finished. ``reason``: ours, for the log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def may_stream(request: Mapping[str, Any], hold_tokens: int) -> bool:
    """Whether the answer may be released in parts: asked for so, and with no form to check it by."""
    form = request.get("response_format")
    plain = form is None or form.get("type") == "text"
    return (
        hold_tokens > 0
        and request.get("stream") is True
        and plain
        and request.get("tool_choice") != "required"
    )


class EarlyText:
    """Decides, step by step, how much of a growing text may be released.

    Args:
        hold_tokens: tokens that must stand before the first release.
        threshold: least confidence, as for a whole answer; None: no threshold.
        known: placeholders of the prompt; any other one must not be shown.
        restore: puts the values back for placeholders.
        send: gives text to the caller.
    """

    def __init__(
        self,
        hold_tokens: int,
        threshold: float | None,
        known: frozenset[str],
        restore: Callable[[str], str],
        send: Callable[[str], Awaitable[None]],
    ) -> None:
        self._hold = hold_tokens
        self._threshold = threshold
        self._known = known
        self._restore = restore
        self._send = send
        self.sent = ""
        """What the caller has, values restored."""

    @property
    def begun(self) -> bool:
        return bool(self.sent)

    async def grown(self, text: str, tokens: int, confidence: float) -> None:
        """Release what may be released of the text so far.

        Raises TextTurnedBad when some of it is out and the rest may not follow.
        """
        problem = self._problem(text, confidence)
        if problem:
            if self.begun:
                raise TextTurnedBad(problem)
            return
        if tokens >= self._hold:
            await self._release(self._restore(_settled(text)))

    async def finish(self, content: str) -> None:
        """Release the rest of the accepted answer, values restored. Raises TextTurnedBad."""
        if not content.startswith(self.sent):
            raise TextTurnedBad("the text changed while it was read")
        await self._release(content)

    async def _release(self, whole: str) -> None:
        more = whole.removeprefix(self.sent)
        if more and whole.startswith(self.sent):
            await self._send(more)
            self.sent = whole

    def _problem(self, text: str, confidence: float) -> str:
        if text.lstrip().startswith(_JSON_STARTS):
            return "looks like JSON"
        if _CONTROL in text:
            return "has a control token"
        if self._threshold is not None and not confidence >= self._threshold:
            return "confidence"
        if any(match.group() not in self._known for match in PLACEHOLDER.finditer(text)):
            return "names a placeholder that the prompt does not have"
        return ""


def _settled(text: str) -> str:
    """The part that will not change: stripped as an answer is, and no placeholder cut in two."""
    text = text.strip()
    opened = _OPEN_END.search(text)
    return text[: opened.start()].rstrip() if opened else text
