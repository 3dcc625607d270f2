"""Clear old log objects away, and what ingest made of them: whole days, each object once.

Order per object: its row says ``expired`` (from then on no reader looks for its files, and no ingest takes
it in again), its Parquet files and its quarantine list go, then the object itself. As long as the object
is there, the work is not done; a run that is killed anywhere is simply done again.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Row, select

from infra.calls.codec import LOG_PREFIX
from infra.calls.record import utc_now
from infra.database.events import record_event
from infra.database.open import Database
from infra.database.tables import ingested_objects
from infra.database.writes import compare_and_swap
from infra.objects.store import ObjectInfo, ObjectStore
from trainers.ingest.claims import DONE, SUPERSEDED, row_key
from trainers.ingest.sinks import CALLS_PREFIX, FEEDBACK_PREFIX

EXPIRED = "expired"
ACTOR = "retention"
PAGE = 500
MARGIN = timedelta(days=1)
"""An open rollout may look this far behind its own beginning."""
_DAY = re.compile(re.escape(LOG_PREFIX) + r"dt=(\d{4}-\d{2}-\d{2})/")


@dataclass(frozen=True)
class Expiry:
    """What one run cleared away, or (dry) would."""

    first_kept: date | None
    """The oldest day that stays; None: everything stays."""
    why: str
    removed: int
    kept: Mapping[str, int]
    """Objects of older days that stay, by reason."""
    done: bool
    """False: the time was up before the end."""


def first_kept_day(
    now: datetime, log_seconds: float, open_since: Sequence[datetime]
) -> tuple[date | None, str]:
    """The oldest day of the log that stays, and why that one. Pure.

    Args:
        log_seconds: how long a log is kept; 0 for good.
        open_since: when each open rollout began: its evidence is read from the log.
    """
    if not log_seconds:
        return None, "logs are kept for good ([retention] log_seconds)"
    by_age = (now - timedelta(seconds=log_seconds)).astimezone(UTC).date()
    needed = min(((since - MARGIN).astimezone(UTC).date() for since in open_since), default=by_age)
    if needed < by_age:
        return needed, "an open rollout's evidence begins there"
    return by_age, "older days are past [retention] log_seconds"


def expire_logs(
    store: ObjectStore,
    database: Database,
    first_kept: date | None,
    why: str,
    *,
    now: datetime | None = None,
    dry_run: bool = False,
    within_seconds: float = 3600.0,
) -> Expiry:
    """Clear the log objects of the days before ``first_kept``; those not taken in yet stay.

    Args:
        within_seconds: no further object is begun after so long.

    Raises ObjectStoreError.
    """
    if first_kept is None:
        return Expiry(None, why, 0, {}, True)
    now, ends = now or utc_now(), time.monotonic() + within_seconds
    removed, kept = 0, Counter[str]()
    last_day = ""
    for page in _pages(_older(store, first_kept)):
        rows = _rows(database, page)
        for item in page:
            row = rows.get((row_key(item.key), item.etag))
            if row is None or row.state not in (DONE, EXPIRED):
                kept["not taken in yet"] += 1
                continue
            if dry_run:
                removed += 1
                continue
            if time.monotonic() > ends:
                return Expiry(first_kept, why, removed, dict(kept), False)
            last_day = _clear(store, database, item, row, now, why, last_day)
            removed += 1
    return Expiry(first_kept, why, removed, dict(kept), True)


def clear_superseded(store: ObjectStore, database: Database) -> int:
    """Delete what was made of content that its log object no longer has; of how many objects.

    Killed anywhere, it is simply done again. Raises ObjectStoreError.
    """
    table = ingested_objects
    query = select(table.c.key, table.c.etag, table.c.counts).where(table.c.state == SUPERSEDED)
    cleared = 0
    while True:
        with database.read() as connection:
            rows = connection.execute(query.limit(PAGE)).all()
            kept = _quarantines(connection, {row.key for row in rows})
        for row in rows:
            for key in {*_made_of(row.counts), *_files_of(store, row.key, row.etag)} - kept:
                store.delete(key)
            expected = {"key": row.key, "etag": row.etag, "state": SUPERSEDED}
            with database.begin() as connection:
                compare_and_swap(connection, table, expected, {"state": EXPIRED, "counts": {}})
            cleared += 1
        if not rows:
            return cleared


def _quarantines(connection: Connection, keys: set[str]) -> set[str]:
    """The lists of bad lines that what counts now names: the same key as before."""
    table = ingested_objects
    query = select(table.c.counts).where(table.c.key.in_(keys), table.c.state == DONE)
    named = (row.counts.get("quarantine") for row in connection.execute(query))
    return {str(key) for key in named if key}


def _files_of(store: ObjectStore, key: str, etag: str) -> Iterator[str]:
    """Also those that an ingest wrote and never committed."""
    source = hashlib.sha256(f"{key}\0{etag}".encode()).hexdigest()
    for prefix in (CALLS_PREFIX, FEEDBACK_PREFIX):
        for item in store.list(f"{prefix}{source}-"):
            yield item.key


def _clear(
    store: ObjectStore,
    database: Database,
    item: ObjectInfo,
    row: Row[Any],
    now: datetime,
    why: str,
    last_day: str,
) -> str:
    day = _day_of(item.key) or ""
    if row.state == DONE:
        expected = {"key": row.key, "etag": row.etag, "state": DONE}
        with database.begin() as connection:
            moved = compare_and_swap(connection, ingested_objects, expected, {"state": EXPIRED})
            if moved and day != last_day:
                record_event(
                    connection,
                    actor=ACTOR,
                    what="logs.expired",
                    subject=f"{LOG_PREFIX}dt={day}",
                    why=why,
                    time=now,
                )
    for key in _made_of(row.counts):
        store.delete(key)
    store.delete(item.key)
    return day


def _made_of(counts: Mapping[str, Any]) -> list[str]:
    files = [*counts.get("call_files", ()), *counts.get("feedback_files", ())]
    quarantine = counts.get("quarantine")
    return [str(file["key"]) for file in files] + ([str(quarantine)] if quarantine else [])


def _older(store: ObjectStore, first_kept: date) -> Iterator[ObjectInfo]:
    """Objects of the days before; keys are in order, so the listing ends there."""
    for item in store.list(LOG_PREFIX):
        day = _day_of(item.key)
        if day is None:
            continue
        if day >= first_kept.isoformat():
            return
        yield item


def _day_of(key: str) -> str | None:
    found = _DAY.match(key)
    return found.group(1) if found else None


def _rows(database: Database, page: Sequence[ObjectInfo]) -> dict[tuple[str, str], Row[Any]]:
    table = ingested_objects
    keys = [row_key(item.key) for item in page]
    query = select(table.c.key, table.c.etag, table.c.state, table.c.counts).where(
        table.c.key.in_(keys)
    )
    with database.read() as connection:
        return {(row.key, row.etag): row for row in connection.execute(query)}


def _pages(objects: Iterator[ObjectInfo]) -> Iterator[list[ObjectInfo]]:
    while page := list(islice(objects, PAGE)):
        yield page
