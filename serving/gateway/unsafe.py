"""What an adapter must never say, whatever it was asked: credentials, and what a deny list forbids.

An answer that holds such a thing is not shown, and one of them from a canary stops it. The anonymizer
keeps credentials out of what adapters learn, so one in an answer was made up or came through a hole;
either way nobody should get it. A placeholder that the prompt does not have is refused as well
(``cascade.judged``), as one hard failure among others: it names nobody.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from infra.anonymize.credentials import find_private_keys, find_tokens, find_url_credentials

MAX_CHARACTERS = 100_000
"""Of an answer; what is longer was not made by a small model."""


class UnsafeOutput:
    """Looks through answers. Microseconds for a short one; safe to share between threads.

    Args:
        patterns: regular expressions of the deny list; case does not matter.

    Raises:
        ValueError: a pattern is none.
    """

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        self._denied: re.Pattern[str] | None = None
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        if patterns:
            self._denied = re.compile("|".join(f"(?:{one})" for one in patterns), re.IGNORECASE)

    def found(self, message: Mapping[str, Any], request: Mapping[str, Any]) -> str | None:
        """What is wrong with an answer, without repeating it; None for nearly every answer.

        Args:
            message: the assistant message.
            request: what it answers: a credential that the caller sent may be named again.
        """
        for text in strings(message):
            text = text[:MAX_CHARACTERS]
            if self._denied is not None and self._denied.search(text):
                return "text on the deny list"
            kind = self._credential(text, request)
            if kind is not None:
                return f"a credential ({kind})"
        return None

    def _credential(self, text: str, request: Mapping[str, Any]) -> str | None:
        asked: str | None = None
        for find in (find_private_keys, find_tokens, find_url_credentials):
            for finding in find(text):
                if asked is None:
                    asked = "\n".join(strings(request))
                if text[finding.start : finding.end] not in asked:
                    return str(finding.kind)
        return None


def strings(value: Any) -> Iterable[str]:
    """Every string of a JSON value; arguments of tool calls also as what they decode to."""
    waiting = [value]
    while waiting:
        node = waiting.pop()
        if isinstance(node, str):
            yield node
            if node.startswith(("{", "[")) and "\\" in node:
                # JSON in a string may spell any character by its number.
                try:
                    waiting.append(orjson.loads(node))
                except orjson.JSONDecodeError:
                    continue
        elif isinstance(node, Mapping):
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
