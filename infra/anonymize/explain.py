"""What anonymizing changed, place by place, told from the result: no value is ever shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from infra.anonymize.placeholders import MAX_DEPTH, REPLACED

CONTEXT_CHARACTERS = 30


@dataclass(frozen=True)
class Replacement:
    path: str
    """Of the field, e.g. ``request.messages.0.content``; keys as they are after."""
    kind: str
    placeholder: str
    count: int
    """How often it stands in this field."""
    context: str
    """The first of these places, with every value masked."""


def explain(before: Any, after: Any, path: str = "") -> Iterator[Replacement]:
    """The differences of a JSON value and what ``Scope`` made of it.

    Args:
        before: as it was; nothing of it is shown.
        after: the same value, anonymized.
    """
    yield from _explain(before, after, path, 0)


def _explain(before: Any, after: Any, path: str, depth: int) -> Iterator[Replacement]:
    if depth > MAX_DEPTH:
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        # The order stays, keys may not.
        for (old_key, old), (new_key, new) in zip(before.items(), after.items(), strict=False):
            where = f"{path}.{new_key}" if path else str(new_key)
            if old_key != new_key:
                yield from _text(str(old_key), str(new_key), f"{where} (key)")
            yield from _explain(old, new, where, depth + 1)
    elif isinstance(before, list) and isinstance(after, list):
        for number, (old, new) in enumerate(zip(before, after, strict=False)):
            yield from _explain(old, new, f"{path}.{number}", depth + 1)
    elif before != after:
        yield from _text(str(before), after if isinstance(after, str) else "", path)


def _text(before: str, after: str, path: str) -> Iterator[Replacement]:
    old = Counter(REPLACED.findall(before))
    found: dict[str, list[tuple[int, int]]] = {}
    for match in REPLACED.finditer(after):
        found.setdefault(match.group(), []).append(match.span())
    changed = False
    for placeholder, places in found.items():
        count = len(places) - old[placeholder]
        if count <= 0:
            continue
        changed = True
        start, end = places[0]
        context = after[max(0, start - CONTEXT_CHARACTERS) : end + CONTEXT_CHARACTERS]
        yield Replacement(path, kind_of(placeholder), placeholder, count, " ".join(context.split()))
    if not changed:
        # A name that became a keyed hash, a text that was cut, or what was nested too deep.
        yield Replacement(path, "WHOLE", after if len(after) <= 64 else "", 1, "")


def kind_of(placeholder: str) -> str:
    """``EMAIL`` of ``<EMAIL_1>``, ``<EMAIL_h0123456789abcdef>`` and ``<EMAIL>``."""
    name = placeholder.strip("<>")
    head, _, tail = name.rpartition("_")
    numbered = tail.isdigit() or (len(tail) == 17 and tail.startswith("h"))
    return head if head and numbered else name
