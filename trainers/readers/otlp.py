"""OTLP's JSON encoding: typed attribute values, and names in either case."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainers.readers.fields import embedded, sequence

MAX_VALUE_DEPTH = 50
MAX_ITEMS = 10_000
_PLAIN = ("stringValue", "boolValue", "doubleValue", "bytesValue")


def get(value: Mapping[str, Any], name: str) -> Any:
    """A field by its JSON name, or as the protocol's own file spells it."""
    if name in value:
        return value[name]
    return value.get("".join(f"_{c.lower()}" if c.isupper() else c for c in name))


def attributes(value: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes by name, out of the list of keys and typed values (or a plain object)."""
    given = value.get("attributes")
    if isinstance(given, Mapping):
        return dict(given)
    found = {}
    for item in sequence(given):
        if isinstance(item, Mapping) and isinstance(item.get("key"), str):
            found[item["key"]] = plain(item.get("value"))
    return found


def plain(value: Any, depth: int = 0) -> Any:
    """An AnyValue as plain JSON; an unknown one is None."""
    if not isinstance(value, Mapping) or depth > MAX_VALUE_DEPTH:
        return None
    for name in _PLAIN:
        if (found := get(value, name)) is not None:
            return found
    whole = get(value, "intValue")
    if isinstance(whole, str):  # 64-bit numbers are written as text
        return int(whole) if whole.lstrip("-").isdigit() and len(whole) < 21 else None
    if isinstance(whole, int):
        return whole
    if isinstance(items := get(value, "arrayValue"), Mapping):
        return [plain(item, depth + 1) for item in sequence(items.get("values"))]
    if isinstance(items := get(value, "kvlistValue"), Mapping):
        return {
            item["key"]: plain(item.get("value"), depth + 1)
            for item in sequence(items.get("values"))
            if isinstance(item, Mapping) and isinstance(item.get("key"), str)
        }
    return None


def flat_list(own: Mapping[str, Any], prefix: str) -> list[dict[str, Any]]:
    """``prefix.0.role``, ``prefix.0.tool_calls.0.name``, ... as a list of objects."""
    found: dict[int, dict[str, Any]] = {}
    for name, value in own.items():
        number, _, rest = name.removeprefix(f"{prefix}.").partition(".")
        if not name.startswith(f"{prefix}.") or not rest:
            continue
        if not number.isdigit() or len(number) > 5 or int(number) >= MAX_ITEMS:
            continue
        place = found.setdefault(int(number), {})
        inner, _, field = rest.partition(".")
        if inner == "tool_calls" and field:
            place.setdefault("_calls", {})[f"tool_calls.{field}"] = value
        elif inner == "function_call" and field:
            place.setdefault("function_call", {})[field] = value
        else:
            place[rest] = parts_of(value) if rest == "content" else value
    for item in found.values():
        calls = flat_list(item.pop("_calls", {}), "tool_calls")
        if calls:
            item["tool_calls"] = calls
    return [found[number] for number in sorted(found)]


def parts_of(value: Any) -> Any:
    """Content that was written as JSON text: a list of parts. A tool's result in JSON stays text."""
    parts = embedded(value)
    if isinstance(parts, list) and parts:
        known = all(isinstance(part, Mapping) and "type" in part for part in parts)
        return parts if known else value
    return value
