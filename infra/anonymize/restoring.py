"""Values back in the place of their placeholders, also in JSON inside of strings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.anonymize.json_text import looks_like_json, rewrite
from infra.anonymize.placeholders import PLACEHOLDER, map_strings
from infra.anonymize.rewriting import MAX_JSON_NESTING


def restored(value: Any, values: Mapping[str, str]) -> Any:
    """The value with what its placeholders stand for; unknown ones stay.

    Args:
        values: placeholder to value.
    """

    def plain(text: str) -> str:
        return PLACEHOLDER.sub(lambda match: values.get(match.group(), match.group()), text)

    def inside(text: str, nesting: int) -> str:
        if PLACEHOLDER.search(text) is None:
            return text
        if nesting and looks_like_json(text):
            return rewrite(
                text, plain, lambda _, item: inside(item, nesting - 1), lambda _, number: number
            )
        return plain(text)

    return map_strings(value, plain, lambda text: inside(text, MAX_JSON_NESTING))


def placeholders(value: Any) -> set[str]:
    """Every placeholder in the strings of a JSON value."""
    found: set[str] = set()
    waiting = [value]
    while waiting:
        node = waiting.pop()
        if isinstance(node, str):
            if "<" in node:
                found.update(match.group() for match in PLACEHOLDER.finditer(node))
        elif isinstance(node, Mapping):
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
    return found
