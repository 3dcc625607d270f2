"""Leases with fencing: who may act alone, and how a late one is kept from acting.

A lease ends by itself when its holder dies. A holder that only *believes* it still holds (a long
pause, a slow disk) is stopped by its fence: every new hold has a higher one, and guarded writes
compare it in their own transaction (``guard``, or a ``fence`` column).
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection, or_, select, update

from infra.calls.record import utc_now
from infra.database.open import Database
from infra.database.tables import leases
from infra.database.writes import insert_if_absent


class LeaseLost(Exception):
    """Somebody else holds the lease now, or it ran out: stop, and change nothing."""


def acquire(
    database: Database, name: str, holder: str, ttl_seconds: float, now: datetime | None = None
) -> int | None:
    """Take the lease if it is free, run out, or this holder's own; the fence, or None.

    The same holder asking again gets a new fence: an earlier run under the same name, killed or
    merely stuck, is fenced off at once instead of after the time to live.

    Args:
        name: what is leased, e.g. ``rollout-controller``.
        holder: unique per process, e.g. host and process id.
        ttl_seconds: how long without ``renew``.
    """
    now = now or utc_now()
    expires = now + _ttl(ttl_seconds)
    with database.begin() as connection:
        if insert_if_absent(
            connection, leases, {"name": name, "holder": holder, "fence": 1, "expires": expires}
        ):
            return 1
        statement = (
            update(leases)
            .where(leases.c.name == name)
            .where(or_(leases.c.expires <= now, leases.c.holder == holder))
            .values(holder=holder, fence=leases.c.fence + 1, expires=expires)
            .returning(leases.c.fence)
        )
        return connection.execute(statement).scalar_one_or_none()


def renew(
    database: Database,
    name: str,
    holder: str,
    fence: int,
    ttl_seconds: float,
    now: datetime | None = None,
) -> bool:
    """Hold on for another time to live; False when the lease has run out or is another's."""
    now = now or utc_now()
    statement = (
        update(leases)
        .where(leases.c.name == name, leases.c.holder == holder, leases.c.fence == fence)
        .where(leases.c.expires > now)
        .values(expires=now + _ttl(ttl_seconds))
    )
    with database.begin() as connection:
        return connection.execute(statement).rowcount == 1


def release(
    database: Database, name: str, holder: str, fence: int, now: datetime | None = None
) -> bool:
    """Give the lease back early; False when it was no longer this holder's. The fence remains."""
    statement = (
        update(leases)
        .where(leases.c.name == name, leases.c.holder == holder, leases.c.fence == fence)
        .values(expires=now or utc_now())
    )
    with database.begin() as connection:
        return connection.execute(statement).rowcount == 1


def guard(connection: Connection, name: str, fence: int, now: datetime | None = None) -> None:
    """Make the rest of this transaction happen only under the lease.

    The row stays locked until the transaction ends, so nobody can take the lease in between.

    Raises:
        LeaseLost: the lease has another fence, has run out, or does not exist.
    """
    row = connection.execute(
        select(leases.c.fence, leases.c.expires).where(leases.c.name == name).with_for_update()
    ).one_or_none()
    if row is None or row.fence != fence or row.expires <= (now or utc_now()):
        raise LeaseLost(f"the lease {name!r} with fence {fence} is no longer held")


def _ttl(seconds: float) -> timedelta:
    if not seconds > 0:
        raise ValueError("a lease needs a time to live above 0 seconds")
    return timedelta(seconds=seconds)
