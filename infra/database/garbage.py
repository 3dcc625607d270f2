"""What may be thrown away, and how far that is: a mark per location in the object store.

``marked``: it may go, and goes once it was marked for long enough; until then whoever needs it takes
the mark off. ``condemned``: it goes now; its objects are being deleted, or were when somebody died.
``removed``: they are gone. Only the collector moves a mark forward, each step a compare-and-swap.

Whoever is about to write objects under a location calls ``reserve`` before and ``require_kept`` in
the transaction that makes them count.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection, delete, select

from infra.database.tables import garbage
from infra.database.writes import compare_and_swap, insert_if_absent

Kind = Literal["adapter", "dataset"]
MarkState = Literal["marked", "condemned", "removed"]
STALE = timedelta(hours=1)
"""No collector lives this long on one location: a condemned one this old belongs to a dead one."""


class BeingRemoved(Exception):
    """The location is being cleared away at this moment; the same again soon will do."""


@dataclass(frozen=True)
class Mark:
    location: str
    kind: Kind
    subject: str
    why: str
    state: MarkState
    since: datetime


def read_marks(connection: Connection) -> list[Mark]:
    rows = connection.execute(select(garbage).order_by(garbage.c.location))
    return [Mark(**row._mapping) for row in rows]


def find_mark(connection: Connection, location: str) -> Mark | None:
    row = connection.execute(select(garbage).where(garbage.c.location == location)).one_or_none()
    return Mark(**row._mapping) if row else None


def add_mark(
    connection: Connection, location: str, kind: Kind, subject: str, why: str, now: datetime
) -> bool:
    """Mark a location; False when it has a mark already."""
    values: dict[str, Any] = {
        "location": location,
        "kind": kind,
        "subject": subject[:200],
        "why": why,
        "state": "marked",
        "since": now,
    }
    return insert_if_absent(connection, garbage, values)


def move_mark(connection: Connection, mark: Mark, state: MarkState, now: datetime) -> bool:
    """False when the mark is no longer as it was read."""
    expected = {"location": mark.location, "state": mark.state, "since": mark.since}
    return compare_and_swap(connection, garbage, expected, {"state": state, "since": now})


def drop_mark(connection: Connection, mark: Mark) -> bool:
    """Take a mark off that is as it was read."""
    same = delete(garbage).where(
        garbage.c.location == mark.location,
        garbage.c.state == mark.state,
        garbage.c.since == mark.since,
    )
    return connection.execute(same).rowcount == 1


def reserve(connection: Connection, location: str, now: datetime) -> None:
    """Say that objects are about to be written (or found) here: any mark of before is void.

    Raises BeingRemoved while somebody deletes there.
    """
    mark = find_mark(connection, location)
    if mark is None:
        return
    if mark.state == "condemned" and now - mark.since < STALE:
        raise BeingRemoved(
            f"{location} is just being cleared away: do it again in a moment, "
            "or let nightschool gc finish"
        )
    if not drop_mark(connection, mark):
        raise BeingRemoved(f"{location} is just being looked at: do it again in a moment")


def require_kept(connection: Connection, location: str) -> None:
    """In the transaction that refers to a location: raises BeingRemoved unless its objects stay.

    A mere mark is taken off.
    """
    mark = find_mark(connection, location)
    if mark is None:
        return
    if mark.state != "marked" or not drop_mark(connection, mark):
        raise BeingRemoved(f"{location} was cleared away meanwhile: write it again")
