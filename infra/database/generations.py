"""Counters that tell of a change: who decided on an older count must look again.

They are rows of ``leases`` that nobody holds; only their fence counts.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, select, update

from infra.database.tables import leases
from infra.database.writes import compare_and_swap, insert_if_absent

TASKS = "discovery"
"""Rises with every discovery and with whatever a person says of which calls are whose."""


def generation(connection: Connection, name: str, now: datetime) -> int:
    """The count; 0 for one that was never advanced."""
    insert_if_absent(connection, leases, {"name": name, "holder": name, "fence": 0, "expires": now})
    query = select(leases.c.fence).where(leases.c.name == name)
    return int(connection.execute(query).scalar_one())


def advance(connection: Connection, name: str, now: datetime, expected: int | None = None) -> bool:
    """Count one further; False (and no effect) when it is no longer ``expected``."""
    if expected is None:
        generation(connection, name, now)
        raised = update(leases).where(leases.c.name == name)
        connection.execute(raised.values(fence=leases.c.fence + 1, expires=now))
        return True
    values = {"fence": expected + 1, "expires": now}
    return compare_and_swap(connection, leases, {"name": name, "fence": expected}, values)
