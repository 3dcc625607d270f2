"""How many steps a caller's JSON Schema can take: references that multiply must not hold up others.

Without references a schema is checked in about as many steps as it is long, at each place of a value.
With them it may name the same part twice, and that part another twice: thirty lines stand for a billion
steps. So references are counted out before anything is checked, each part once, and not followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

MAX_STEPS = 20_000
"""Of a schema with its references written out; and of a recursive one on a value. Some milliseconds."""
MAX_PAIRS = 4000
"""Parts of a recursive schema at places of a value that are looked at: some milliseconds too."""
MAX_DEPTH = 100
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "dependentSchemas")
_SINGLE = (
    *("not", "if", "then", "else", "items", "contains", "additionalItems", "unevaluatedItems"),
    *("additionalProperties", "unevaluatedProperties", "propertyNames"),
)
_IN_PLACE = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas")
_OF_ITEMS = ("items", "prefixItems", "contains", "additionalItems", "unevaluatedItems")
_OF_FIELDS = ("patternProperties", "additionalProperties", "unevaluatedProperties")
_MOVING = ("$dynamicRef", "$recursiveRef")


class TooDear(ValueError):
    """Checking it may take more steps than anybody can be made to wait for."""


class Recursive(Exception):
    """A part of the schema contains itself: what it takes depends on the value."""


def expanded(schema: Any) -> int:
    """Parts of the schema with all references written out.

    Raises:
        TooDear: more than ``MAX_STEPS``, or a reference that is not a plain one into the schema itself.
        Recursive: there is no end to it.
    """
    known: dict[int, int] = {}
    open_parts: set[int] = set()

    def count(part: Any, depth: int) -> int:
        if not isinstance(part, Mapping):
            return 1
        if depth > MAX_DEPTH:
            raise TooDear
        if id(part) in open_parts:
            raise Recursive
        if id(part) not in known:
            open_parts.add(id(part))
            steps = 1
            for _, inner in _parts(schema, part):
                steps += count(inner, depth + 1)
                if steps > MAX_STEPS:
                    raise TooDear
            open_parts.discard(id(part))
            known[id(part)] = steps
        return known[id(part)]

    return count(schema, 0)


def check_affordable(schema: Any, value: Any) -> None:
    """Raises TooDear where checking this value against a recursive schema may take too many steps."""
    known: dict[tuple[int, int], int] = {}

    def count(part: Any, here: Any, depth: int) -> int:
        if not isinstance(part, Mapping):
            return 1
        key = (id(part), id(here))
        if key not in known:
            if depth > MAX_DEPTH or len(known) > MAX_PAIRS:
                raise TooDear
            known[key] = (
                1  # a part that comes back to itself at the same place is checked no further
            )
            steps = 1
            for word, inner in _parts(schema, part):
                for place in _places(word, part, inner, here):
                    steps += count(inner, place, depth + 1)
                    if steps > MAX_STEPS:
                        raise TooDear
            known[key] = steps
        return known[key]

    count(schema, value, 0)


def _parts(schema: Any, part: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The keyword and the schema of everything directly inside a part."""
    for word in _LISTS:
        inside = part.get(word)
        yield from ((word, inner) for inner in (inside if isinstance(inside, list) else ()))
    for word in _NAMED:
        inside = part.get(word)
        yield from ((word, i) for i in (inside.values() if isinstance(inside, Mapping) else ()))
    for word in _SINGLE:
        inside = part.get(word)
        if isinstance(inside, Mapping):
            yield word, inside
        elif isinstance(inside, list):  # ``items`` of older drafts
            yield from ((word, inner) for inner in inside)
    if "$ref" in part:
        yield "$ref", _resolved(schema, part["$ref"])
    # A name of its own would change what the references inside of it mean.
    if any(word in part for word in _MOVING) or ("$id" in part and part is not schema):
        raise TooDear


def _places(word: str, part: Mapping[str, Any], inner: Any, here: Any) -> Iterator[Any]:
    """Where in a value a schema inside of a part may be applied: rather too often than too seldom."""
    if word == "$ref" or word in _IN_PLACE:
        yield here
    elif isinstance(here, Mapping):
        if word == "properties":
            named = part["properties"]
            yield from (here[n] for n, own in named.items() if own is inner and n in here)
        elif word in _OF_FIELDS:
            yield from here.values()
        elif word == "propertyNames":
            yield from here
    elif isinstance(here, list) and word in _OF_ITEMS:
        yield from here


def _resolved(schema: Any, reference: Any) -> Any:
    """The part that a reference names. Raises TooDear for one that is no path from the schema's top."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        raise TooDear
    found = schema
    for step in unquote(reference).split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and step in found:
            found = found[step]
        elif isinstance(found, list) and step.isdecimal() and int(step) < len(found):
            found = found[int(step)]
        else:
            raise TooDear
    return found
