"""Walk over a JSON value and replace what is personal, in every string, key and JSON in a string."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from infra.anonymize.credentials import is_secret_name
from infra.anonymize.finding import Finding
from infra.anonymize.json_text import looks_like_json, rewrite
from infra.anonymize.kinds import NAME_KINDS
from infra.anonymize.placeholders import MAX_DEPTH, REPLACED
from infra.settings.serving import Anonymizer as AnonymizerSettings

MIN_CHARACTERS = 4
MAX_JSON_NESTING = 4
MAX_COUNT = 10**11
"""Whole numbers below it are no card's."""

_BASE64 = re.compile(r"data:[\w.+/-]{0,100};base64,[A-Za-z0-9+/=_-]*+")
_PHONE_NAME = re.compile(r"(?i).{0,30}(?:phone|mobile|telephone|cell|fax|msisdn).{0,30}")

# The API's own words, of which every call is full.
# fmt: off
_API_KEYS = frozenset({
    "accepted_prediction_tokens", "additionalProperties", "annotations", "arguments", "audio",
    "audio_tokens", "cached_tokens", "choices", "completion_tokens", "completion_tokens_details",
    "content", "created", "description", "enum", "finish_reason", "function", "id", "index", "items",
    "json_schema", "logprobs", "max_completion_tokens", "max_tokens", "message", "messages", "model",
    "name", "object", "parallel_tool_calls", "parameters", "prompt_tokens", "prompt_tokens_details",
    "properties", "reasoning_tokens", "refusal", "rejected_prediction_tokens", "required",
    "response_format", "role", "schema", "seed", "service_tier", "stream", "strict",
    "system_fingerprint", "temperature", "text", "tool_call_id", "tool_calls", "tool_choice", "tools",
    "top_p", "total_tokens", "type", "usage",
})
# fmt: on

# What is the same in every session comes first, so that it gets the same numbers in each.
_CONSTANT_FIRST = ("tools", "functions", "response_format", "messages")


Counts = dict[str, int]
"""How often a value of each kind was replaced. Not a ``Counter``, whose making costs more than most calls
have to count."""


def add(counts: Counts, more: Mapping[str, int]) -> None:
    """Add ``more`` to ``counts``."""
    for kind, count in more.items():
        counts[kind] = counts.get(kind, 0) + count


class Rewriting:
    """One pass over one value: where to replace, and how often it was.

    Args:
        settings: how long a text may be, and which kinds stay.
        find: personal data in a text.
        placeholder: kind and value to what stands in its place.
    """

    def __init__(
        self,
        settings: AnonymizerSettings,
        find: Callable[[str], Sequence[Finding]],
        placeholder: Callable[[str, str], str],
    ) -> None:
        self.counts: Counts = {}
        self._settings = settings
        self._find = find
        self._placeholder = placeholder

    def value(self, value: Any, name: str = "", depth: int = 0) -> Any:
        if isinstance(value, str):
            return self._string(name, value)
        if isinstance(value, bool) or value is None:
            return value
        if isinstance(value, int):
            return self._number(name, value)
        if depth >= MAX_DEPTH:
            # Nobody nests this deep in earnest, and what is not looked at is not kept.
            add(self.counts, {"TOO_DEEP": 1})
            return None
        if isinstance(value, (dict, Mapping)):  # an abstract class alone is asked slowly
            if depth:
                return {
                    self.key(key): self.value(item, str(key), depth + 1)
                    for key, item in value.items()
                }
            changed = {
                key: (self.key(key), self.value(value[key], str(key), depth + 1))
                for key in constant_first(value)
            }
            return dict(changed[key] for key in value)
        if isinstance(value, (list, tuple)):
            return [self.value(item, name, depth + 1) for item in value]
        return value

    def key(self, key: Any) -> Any:
        if not isinstance(key, str) or key in _API_KEYS:
            return key
        return self._prose(key, names=False)  # a key is a word of a program, however it is spelt

    def _string(self, name: str, text: str, nesting: int = MAX_JSON_NESTING) -> str:
        if nesting and text.lstrip(" \t\r\n")[:1] in ("{", "[", '"') and looks_like_json(text):
            return rewrite(
                text,
                self.key,
                lambda key, item: self._string(key or name, item, nesting - 1),
                lambda key, number: self._number(key or name, number),
            )
        if text and is_secret_name(name) and REPLACED.fullmatch(text) is None:
            return self._replace("PASSWORD", text)
        return self._prose(text)

    def _prose(self, text: str, *, names: bool = True) -> str:
        if len(text) < MIN_CHARACTERS:
            return text
        limit = self._settings.max_text_characters
        if len(text) > limit:
            if _BASE64.fullmatch(text):
                return text
            # A cut through the middle of an address would leave half of it.
            cut = max(text.rfind(" ", limit - 1000, limit), text.rfind("\n", limit - 1000, limit))
            cut = cut if cut > 0 else limit - 1000
            add(self.counts, {"TOO_LONG": 1})
            return f"{self._prose(text[:cut])} [{len(text) - cut} characters left out]"
        if text.startswith("data:") and _BASE64.fullmatch(text):
            return text
        findings = self._find(text)
        if not names:
            findings = [finding for finding in findings if finding.kind not in NAME_KINDS]
        if not findings:
            return text
        parts, place = [], 0
        for finding in findings:
            parts += [
                text[place : finding.start],
                self._replace(finding.kind, text[finding.start : finding.end]),
            ]
            place = finding.end
        return "".join([*parts, text[place:]])

    def _number(self, name: str, number: int) -> Any:
        """A card number stays one when it is written as a number; so does a phone number."""
        if not 10**6 <= number < 10**19:
            return number
        text = str(number)
        kinds = {
            finding.kind for finding in self._find(text) if finding.end - finding.start == len(text)
        }
        if "CARD" in kinds:
            return self._replace("CARD", text)
        if "PHONE" in kinds and _PHONE_NAME.fullmatch(name):
            return self._replace("PHONE", text)
        return number

    def _replace(self, kind: str, value: str) -> str:
        if self._settings.policy_of(kind) == "keep":
            return value
        add(self.counts, {kind: 1})
        return self._placeholder(kind, value)


def is_count(key: str, item: Any) -> bool:
    """Whether a field of the API holds nothing but numbers that count: of tokens, of seconds."""
    if key not in _API_KEYS:
        return False
    if isinstance(item, int):
        return item < MAX_COUNT
    return (
        item is None
        or isinstance(item, float)
        or (type(item) is dict and all(is_count(name, one) for name, one in item.items()))
    )


def constant_first(value: Mapping[Any, Any]) -> list[Any]:
    """The keys of a request in the order in which its parts are given their numbers."""
    first = [key for key in _CONSTANT_FIRST if key in value]
    return [*first, *(key for key in value if key not in _CONSTANT_FIRST)]
