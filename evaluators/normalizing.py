"""A JSON value as its schema means it, so that two spellings of the same thing are equal.

``"5"`` where an integer is asked for is 5, ``"True"`` a boolean, an enum's member in other case is the
member, a date is its ISO form, a property that is left out is its default, and null for a property
that need not be there is no property. Nothing else is forgiven: plain strings keep their case.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from datetime import date, datetime
from typing import Any

MAX_DEPTH = 32
MAX_REFERENCES = 16
MAX_LOOKS = 20_000

Schema = Mapping[str, Any]


def normalize(value: Any, schema: Any) -> Any:
    """The value as the schema means it; what the schema does not speak of stays as it is.

    Args:
        value: JSON; at most ``MAX_DEPTH`` levels and ``MAX_LOOKS`` values are looked into.
        schema: JSON Schema; ``$ref`` is followed inside the schema only. A broken one changes
            nothing. Never raises.
    """
    if not isinstance(schema, Mapping):
        return value
    return _normalize(value, schema, _Root(schema), 0)


class _Root(dict[str, Any]):
    """The whole schema, and how many more values are held against it: references may multiply."""

    left = MAX_LOOKS


def _normalize(value: Any, schema: Any, root: _Root, depth: int) -> Any:
    schema = _resolved(schema, root)
    root.left -= 1
    if schema is None or depth > MAX_DEPTH or root.left < 0:
        return value
    for word in ("anyOf", "oneOf"):
        options = schema.get(word)
        if isinstance(options, list):
            return _by_option(value, options, root, depth)
    members = schema.get("enum")
    if isinstance(members, list):
        return _member(value, members)
    for kind in _types(schema):
        read = _READERS.get(kind)
        if read is None:
            continue
        found = read(value)
        if found is not None:
            return _inside(found, schema, root, depth)
    return _inside(value, schema, root, depth)


def _by_option(value: Any, options: list[Any], root: _Root, depth: int) -> Any:
    """By the first option of the value's own type, else the first that it can be read as."""
    known = [found for option in options if (found := _resolved(option, root)) is not None]
    same = [option for option in known if _type_of(value) in _types(option)]
    for option in (*same, *known):
        found = _normalize(value, option, root, depth + 1)
        if _type_of(found) in _types(option) or found != value:
            return found
    return value


def _inside(value: Any, schema: Schema, root: _Root, depth: int) -> Any:
    if isinstance(value, dict):
        return _object(value, schema, root, depth)
    if isinstance(value, list):
        items = [_normalize(item, schema.get("items"), root, depth + 1) for item in value]
        if schema.get("uniqueItems") is True:
            # A set: the order says nothing.
            items.sort(key=repr)
        return items
    if isinstance(value, str):
        return _text(value, schema.get("format"))
    return value


def _object(value: dict[str, Any], schema: Schema, root: _Root, depth: int) -> dict[str, Any]:
    properties = schema.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    required = schema.get("required")
    required = required if isinstance(required, list) else []
    others = schema.get("additionalProperties")
    made = {}
    for name, item in value.items():
        inner = _resolved(properties.get(name, others), root)
        left_out = item is None and name not in required and name in properties
        if left_out and not _may_be_null(inner, root):
            continue
        made[name] = _normalize(item, inner, root, depth + 1)
    for name, inner in properties.items():
        inner = _resolved(inner, root)
        if name not in made and inner is not None and "default" in inner:
            made[name] = _normalize(inner["default"], inner, root, depth + 1)
    return made


def _resolved(schema: Any, root: Schema) -> Schema | None:
    """The schema behind its local references; None where there is none."""
    for _ in range(MAX_REFERENCES):
        if not isinstance(schema, Mapping):
            return None
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return schema
        if not reference.startswith("#"):
            return None
        place: Any = root
        for part in reference[1:].strip("/").split("/") if reference[1:] else []:
            key = part.replace("~1", "/").replace("~0", "~")
            place = place.get(key) if isinstance(place, Mapping) else None
        schema = place
    return None


def _types(schema: Schema) -> list[str]:
    kinds = schema.get("type")
    if isinstance(kinds, str):
        return [kinds]
    return [kind for kind in kinds if isinstance(kind, str)] if isinstance(kinds, list) else []


def _may_be_null(schema: Schema | None, root: Schema) -> bool:
    known = [schema, *(option for word in ("anyOf", "oneOf") for option in _list(schema, word))]
    return any("null" in _types(found) for item in known if (found := _resolved(item, root)))


def _list(schema: Schema | None, word: str) -> list[Any]:
    value = (schema or {}).get(word)
    return value if isinstance(value, list) else []


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    kinds = ((str, "string"), (list, "array"), (dict, "object"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "")


def _member(value: Any, members: list[Any]) -> Any:
    if any(type(value) is type(member) and value == member for member in members):
        return value
    said = _plain(str(value))
    alike = [member for member in members if _plain(str(member)) == said]
    return alike[0] if len(alike) == 1 else value


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip().casefold()


def _text(value: str, form: Any) -> str:
    value = unicodedata.normalize("NFC", value).strip()
    read: Callable[[str], Any] | None = {
        "date": date.fromisoformat,
        "date-time": datetime.fromisoformat,
    }.get(form if isinstance(form, str) else "")
    if read is None:
        return value
    try:
        return str(read(value).isoformat())
    except ValueError:
        return value


def _number(value: Any) -> int | float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return value
    if not isinstance(value, str) or len(value) > 64:
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if number - number == 0 else None


def _integer(value: Any) -> int | None:
    number = _number(value)
    if isinstance(number, float):
        return int(number) if number.is_integer() else None
    return number


def _boolean(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    return {"true": True, "false": False}.get(_plain(value)) if isinstance(value, str) else None


def _string(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


_READERS: dict[str, Callable[[Any], Any]] = {
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "string": _string,
    "array": lambda value: value if isinstance(value, list) else None,
    "object": lambda value: value if isinstance(value, dict) else None,
}
