"""The form of placeholders, and a walk over the strings of a JSON value."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from infra.anonymize.finding import Finding

MAX_DEPTH = 60
NOTHING = ""
"""The kind of what is already replaced."""

PLACEHOLDER = re.compile(r"<([A-Z][A-Z0-9_]{1,30})_([0-9]{1,9}|h[0-9a-f]{16})>")
"""``<EMAIL_1>``, or ``<EMAIL_h0123456789abcdef>`` under the policy hash."""
REPLACED = re.compile(r"<[A-Z][A-Z0-9_]{1,30}(?:_[0-9]{1,9}|_h[0-9a-f]{16})?>")
"""A placeholder of any policy; ``<EMAIL>`` is that of drop."""


def find_placeholders(text: str) -> list[Finding]:
    """Placeholders as findings of no kind: the most trusted ones, so that nothing cuts them."""
    return [Finding(NOTHING, *match.span()) for match in PLACEHOLDER.finditer(text)]


def map_strings(
    value: Any, key: Callable[[str], str], string: Callable[[str], str], depth: int = 0
) -> Any:
    """The value with ``key`` applied to its keys and ``string`` to its strings."""
    if isinstance(value, str):
        return string(value)
    if depth >= MAX_DEPTH:
        return value
    if isinstance(value, Mapping):
        return {
            key(name) if isinstance(name, str) else name: map_strings(item, key, string, depth + 1)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [map_strings(item, key, string, depth + 1) for item in value]
    return value
