"""Pages of the registry's tables: bounded, and in an order that new rows do not shift.

A cursor names the last row of a page, so the next page begins after it, whatever was added meanwhile.
Callers pass it back as it is; one that was not made here is refused.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Integer, Row, Select, and_, or_

from infra.database.times import UtcDateTime
from serving.registry.documents import Document

MAX_LIMIT = 200
DEFAULT_LIMIT = 50
MAX_ID = 2**63 - 1
MAX_CURSOR = 2000
MAX_NAME = 200
MAX_KEY = 1000
"""Characters of an object's key, or of whatever else lineage is asked of."""


class BadRequest(ValueError):
    """A parameter that cannot be used; the message says what it must be."""


@dataclass(frozen=True)
class Order:
    """Columns that no two rows share, and whether the highest come first."""

    columns: tuple[Column[Any], ...]
    descending: bool = True


def page(
    connection: Connection,
    query: Select[Any],
    order: Order,
    make: Callable[[Row[Any]], Document],
    *,
    after: str | None,
    limit: int,
) -> Document:
    """``{"items": [...], "next": cursor or null}``. Raises BadRequest for another's cursor."""
    if after is not None:
        query = query.where(_beyond(order, _decode(after, order.columns)))
    columns = [column.desc() if order.descending else column.asc() for column in order.columns]
    rows = connection.execute(query.order_by(*columns).limit(limit + 1)).all()
    shown = rows[:limit]
    cursor = None
    if len(rows) > limit:
        cursor = _encode([shown[-1]._mapping[column.name] for column in order.columns])
    return {"items": [make(row) for row in shown], "next": cursor}


def clean_text(name: str, value: str, longest: int = MAX_NAME) -> str:
    """A text that every database takes. Raises BadRequest."""
    if not value or len(value) > longest:
        raise BadRequest(f"{name} has 1 to {longest} characters")
    # A database in UTF-8 takes neither of these.
    if "\0" in value or any(0xD800 <= ord(letter) <= 0xDFFF for letter in value):
        raise BadRequest(f"{name} holds a character that no name has")
    return value


def clean_limit(value: str | None) -> int:
    """Raises BadRequest."""
    if value is None:
        return DEFAULT_LIMIT
    if not value.isascii() or not value.isdigit() or len(value) > 4:
        raise BadRequest(f"limit is a whole number from 1 to {MAX_LIMIT}")
    limit = int(value)
    if not 1 <= limit <= MAX_LIMIT:
        raise BadRequest(f"limit is a whole number from 1 to {MAX_LIMIT}")
    return limit


def _beyond(order: Order, values: Sequence[Any]) -> ColumnElement[bool]:
    """Rows after ``values``: (a, b) < (x, y) spelled out, which every database understands."""
    alternatives = []
    for position, column in enumerate(order.columns):
        same = [order.columns[n] == values[n] for n in range(position)]
        value = values[position]
        alternatives.append(and_(*same, column < value if order.descending else column > value))
    return or_(*alternatives)


def _encode(values: Sequence[Any]) -> str:
    plain = [value.isoformat() if isinstance(value, datetime) else value for value in values]
    return (
        base64.urlsafe_b64encode(json.dumps(plain, ensure_ascii=False).encode())
        .decode()
        .rstrip("=")
    )


def _decode(cursor: str, columns: Sequence[Column[Any]]) -> list[Any]:
    refused = BadRequest("after is no cursor of this list: pass what next said, as it is")
    if len(cursor) > MAX_CURSOR:
        raise refused
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        values = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        raise refused from None
    if not isinstance(values, list) or len(values) != len(columns):
        raise refused
    try:
        return [_value(value, column) for value, column in zip(values, columns, strict=True)]
    except ValueError:
        raise refused from None


def _value(value: Any, column: Column[Any]) -> Any:
    if isinstance(column.type, UtcDateTime):
        if not isinstance(value, str):
            raise ValueError
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            raise ValueError
        return moment
    if isinstance(column.type, Integer):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_ID:
            raise ValueError
        return value
    if not isinstance(value, str):
        raise ValueError
    return clean_text("after", value, MAX_KEY)
