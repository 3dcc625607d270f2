"""Who works on which log object: claim, hold, commit; each a compare-and-swap on one row.

The committed row *is* the result: it names the files that count. Files of an object that was never
committed are invisible to every reader, so a crash between any two writes leaves nothing behind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, or_, select, update

from infra.database.events import record_event
from infra.database.open import Database
from infra.database.tables import ingested_objects
from infra.database.writes import compare_and_swap, insert_if_absent
from infra.objects.store import ObjectInfo

CLAIMED, DONE = "claimed", "done"
SUPERSEDED = "superseded"
"""The object under that key has other content now, which was committed: these files count no more."""
IMPORTED = "import:"
"""How the keys of other systems' objects begin (``trainers/importing``); they have no files."""
MAX_KEY_CHARACTERS = 500
_TICK = timedelta(microseconds=1)


@dataclass(frozen=True)
class Claim:
    key: str
    etag: str
    holder: str
    until: datetime

    @property
    def _row(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "etag": self.etag,
            "state": CLAIMED,
            "holder": self.holder,
            "claimed_until": self.until,
        }


def row_key(key: str) -> str:
    """The key as the table keeps it; one that is too long is cut and told apart by its digest."""
    if len(key) <= MAX_KEY_CHARACTERS:
        return key
    return f"{key[:400]}#{hashlib.sha256(key.encode()).hexdigest()}"


def unfinished(database: Database, objects: Sequence[ObjectInfo]) -> list[ObjectInfo]:
    """Those of a page of objects that no one has committed."""
    keys = [row_key(item.key) for item in objects]
    with database.read() as connection:
        query = (
            select(ingested_objects.c.key, ingested_objects.c.etag)
            .where(ingested_objects.c.key.in_(keys))
            .where(ingested_objects.c.state == DONE)
        )
        done = {(row.key, row.etag) for row in connection.execute(query)}
    return [item for item in objects if (row_key(item.key), item.etag) not in done]


def claim(
    database: Database, item: ObjectInfo, holder: str, ttl_seconds: float, now: datetime
) -> Claim | None:
    """Take the object, or None: it is done, or another holds it.

    A claim that ran out is free for all; a holder's own earlier one is taken over at once, so that a
    night that died and is run again under the same name does not wait.
    """
    wanted = Claim(row_key(item.key), item.etag, holder, now + timedelta(seconds=ttl_seconds))
    table = ingested_objects
    with database.begin() as connection:
        if insert_if_absent(connection, table, {**wanted._row, "counts": {}, "finished": None}):
            return wanted
        found = connection.execute(
            select(table.c.state, table.c.holder, table.c.claimed_until).where(
                table.c.key == wanted.key, table.c.etag == wanted.etag
            )
        ).one()
        if found.state != CLAIMED or (found.claimed_until > now and found.holder != holder):
            return None
        # Always another until than before: it tells two runs of one holder apart.
        until = max(wanted.until, found.claimed_until + _TICK)
        taken = replace(wanted, until=until)
        before = replace(wanted, holder=found.holder, until=found.claimed_until)
        values = {"holder": holder, "claimed_until": until}
        return taken if compare_and_swap(connection, table, before._row, values) else None


def hold(database: Database, held: Claim, ttl_seconds: float, now: datetime) -> Claim | None:
    """The claim for another while, or None: it was taken over."""
    until = max(now + timedelta(seconds=ttl_seconds), held.until + _TICK)
    with database.begin() as connection:
        renewed = compare_and_swap(
            connection, ingested_objects, held._row, {"claimed_until": until}
        )
    return replace(held, until=until) if renewed else None


def commit(database: Database, held: Claim, counts: Mapping[str, Any], now: datetime) -> bool:
    """Make the object's files count. False: it was taken over, and the other's commit counts.

    What was made of other content under the same key ends in the same transaction, so that an object
    which was replaced counts once.
    """
    with database.begin() as connection:
        done = compare_and_swap(
            connection,
            ingested_objects,
            held._row,
            {"state": DONE, "counts": dict(counts), "finished": now},
        )
        if done:
            table = ingested_objects
            connection.execute(
                update(table)
                .where(table.c.key == held.key, table.c.etag != held.etag)
                .where(table.c.state.in_((CLAIMED, DONE)))
                .values(state=SUPERSEDED)
            )
        if done and counts.get("quarantined"):
            record_event(
                connection,
                actor=f"ingest:{held.holder}"[:100],
                what="ingest.quarantined",
                subject=held.key[:200],
                why=f"{counts['quarantined']} of {counts['lines']} lines could not be read",
                evidence={"quarantine": counts.get("quarantine")},
            )
    return done


def release(database: Database, held: Claim, now: datetime) -> None:
    """Give the object back unfinished, for the next run."""
    with database.begin() as connection:
        compare_and_swap(connection, ingested_objects, held._row, {"claimed_until": now})


def committed(
    database: Database, *, before: tuple[str, str] | None = None, limit: int = 500
) -> list[tuple[str, str, dict[str, Any]]]:
    """A page of (key, etag, counts) of committed objects, newest key first."""
    table = ingested_objects
    query = select(table.c.key, table.c.etag, table.c.counts).where(table.c.state == DONE)
    query = query.where(table.c.key.not_like(f"{IMPORTED}%"))
    if before is not None:
        key, etag = before
        query = query.where(or_(table.c.key < key, and_(table.c.key == key, table.c.etag < etag)))
    query = query.order_by(table.c.key.desc(), table.c.etag.desc()).limit(limit)
    with database.read() as connection:
        return [(row.key, row.etag, row.counts) for row in connection.execute(query)]


def every_committed(database: Database) -> Iterable[tuple[str, str, dict[str, Any]]]:
    """All committed objects, newest key first, a page at a time."""
    before: tuple[str, str] | None = None
    while page := committed(database, before=before):
        yield from page
        before = page[-1][0], page[-1][1]
