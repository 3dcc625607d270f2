"""The append-only record of who changed what, and why. The database itself refuses to edit it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select

from infra.calls.record import utc_now
from infra.database.tables import events

MAX_PAGE = 10_000


@dataclass(frozen=True)
class Event:
    id: int
    time: datetime
    actor: str
    what: str
    subject: str
    why: str
    evidence: Any
    previous: Any
    current: Any


def record_event(
    connection: Connection,
    *,
    actor: str,
    what: str,
    subject: str,
    why: str,
    evidence: Mapping[str, Any] | None = None,
    previous: Any = None,
    current: Any = None,
    time: datetime | None = None,
) -> int:
    """Add an event in the caller's transaction, so that a change and its event are one; its id.

    Args:
        actor: who, e.g. ``rollout-controller`` or a person's name.
        what: dotted verb, e.g. ``route.changed``.
        subject: the task, adapter or rollout.
        why: one sentence, without personal data.
        evidence: the numbers that led to it, as JSON; no NaN.
        previous, current: the value before and after, as JSON.

    Raises:
        ValueError: a name is empty or longer than its column (SQLite would not notice).
    """
    for name, value in (("actor", actor), ("what", what), ("subject", subject)):
        limit = events.c[name].type.length  # type: ignore[attr-defined]
        if not value or len(value) > limit:
            raise ValueError(f"an event's {name} has 1 to {limit} characters, not {len(value)}")
    statement = insert(events).values(
        time=time or utc_now(),
        actor=actor,
        what=what,
        subject=subject,
        why=why,
        evidence=dict(evidence or {}),
        previous=previous,
        current=current,
    )
    key = connection.execute(statement).inserted_primary_key
    assert key is not None
    return int(key[0])


def list_events(
    connection: Connection,
    *,
    subject: str | None = None,
    what: str | None = None,
    after: int = 0,
    limit: int = 1000,
    newest_first: bool = False,
) -> Sequence[Event]:
    """Events with an id above ``after``, oldest first unless asked otherwise; at most ``limit``."""
    query = select(events).where(events.c.id > after).limit(min(limit, MAX_PAGE))
    if subject is not None:
        query = query.where(events.c.subject == subject)
    if what is not None:
        query = query.where(events.c.what == what)
    query = query.order_by(events.c.id.desc() if newest_first else events.c.id)
    return [Event(**row._mapping) for row in connection.execute(query)]
