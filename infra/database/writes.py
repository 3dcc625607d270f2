"""The two writes that races are settled with: insert if absent, and compare-and-swap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Table, and_, update
from sqlalchemy.dialects import postgresql, sqlite


def insert_if_absent(connection: Connection, table: Table, values: Mapping[str, Any]) -> bool:
    """Insert a row unless its key (or a unique column) is taken; True when this call inserted it.

    Of any number of callers at once exactly one gets True, and none gets an error.
    """
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).values(**values).on_conflict_do_nothing()
    # A row count is not kept for inserts by every driver; a returned row is.
    inserted = connection.execute(statement.returning(*table.primary_key))
    return inserted.one_or_none() is not None


def compare_and_swap(
    connection: Connection,
    table: Table,
    expected: Mapping[str, Any],
    values: Mapping[str, Any],
) -> bool:
    """Update the one row whose columns still are ``expected``; False when it has changed or gone.

    Args:
        expected: column to value, the primary key and what must not have changed (often version).
        values: column to new value.

    Raises:
        ValueError: ``expected`` does not hold the whole primary key, so more than one row could
            match.
    """
    missing = [column.name for column in table.primary_key if column.name not in expected]
    if missing:
        raise ValueError(f"compare_and_swap on {table.name} needs {', '.join(missing)}")
    # IS NOT DISTINCT FROM: a null expected is a null found.
    same = and_(*(table.c[name].is_not_distinct_from(value) for name, value in expected.items()))
    return connection.execute(update(table).where(same).values(**values)).rowcount == 1
