"""Take single values out of rows that other programs wrote: tolerant of form, strict of meaning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from infra.calls.codec import RecordError

MAX_DEPTH = 100
"""Levels of nesting in a row, or in JSON inside a string of it."""
MAX_COUNT = 2**53
_YEARS = (2000, 2200)
# Below this a number of seconds, then milliseconds, microseconds, nanoseconds since 1970.
_UNITS = ((1e11, 1.0), (1e14, 1e3), (1e17, 1e6), (1e20, 1e9))


def parse(text: bytes | str) -> Any:
    """A JSON value.

    Raises:
        RecordError: not JSON, not UTF-8, or nested too deep.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if "depth" in error.msg:
            raise RecordError(f"nested deeper than {MAX_DEPTH} levels") from None
        reason = "not valid UTF-8" if "UTF-8" in error.msg else "not valid JSON"
        raise RecordError(reason, f"column {error.colno}") from None
    except RecursionError:
        raise RecordError(f"nested deeper than {MAX_DEPTH} levels") from None
    check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """Raises RecordError for a value that is nested too deep. Does not recurse itself."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for outer in level
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise RecordError(f"nested deeper than {MAX_DEPTH} levels")


def embedded(value: Any) -> Any:
    """A value that may have been written as JSON text; other text stays what it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "[", '"'):
        try:
            return parse(value)
        except RecordError as error:
            if "nested" in error.reason:
                raise
    return value


def mapping(value: Any) -> dict[str, Any]:
    """The value as an object, out of JSON text or pairs where need be; else an empty one."""
    value = embedded(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list) and value and all(_is_pair(item) for item in value):
        return dict(value)
    return {}


def sequence(value: Any) -> list[Any]:
    value = embedded(value)
    return value if isinstance(value, list) else []


def first(value: Mapping[str, Any], *names: str) -> Any:
    """The first of the named fields that holds anything."""
    for name in names:
        found = value.get(name)
        if found is not None and found != "":
            return found
    return None


def text(value: Any) -> str | None:
    """Non-empty text, or the number as text."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return str(value)
    return value if isinstance(value, str) and value else None


def count(value: Any) -> int:
    """A number of tokens; what is none, or impossible, counts as 0."""
    if isinstance(value, str) and value.isdigit() and len(value) < 17:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0
    return int(value) if 0 <= value <= MAX_COUNT else 0


def number(value: Any) -> float | None:
    """A finite number, also one written as text; some loggers write "inf" for no limit."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
        value = int(value) if value.is_integer() else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def seconds(value: Any) -> float | None:
    """A duration; a negative one (clocks that were set) is 0, and nonsense is None."""
    found = number(value)
    return None if found is None else max(0.0, float(found))


def instant(value: Any, name: str) -> datetime:
    """A time: an ISO string (without a zone: UTC), or a number since 1970 in any usual unit.

    Raises:
        RecordError: none of these, or outside the years 2000 to 2200.
    """
    moment = _instant(value)
    if moment is None:
        raise RecordError("a time is missing or not in a known form", name)
    if not _YEARS[0] <= moment.year < _YEARS[1]:
        raise RecordError(f"a time outside the years {_YEARS[0]} to {_YEARS[1]}", name)
    return moment


def _instant(value: Any) -> datetime | None:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            try:
                value = datetime.fromisoformat(value.strip().removesuffix(" UTC"))
            except ValueError:
                return None
    if isinstance(value, datetime):
        try:
            return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
        except (OverflowError, ValueError):
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    for bound, unit in _UNITS:
        if abs(value) < bound:
            try:
                return datetime.fromtimestamp(value / unit, UTC)
            except (OverflowError, OSError, ValueError):
                return None
    return None


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], str)
