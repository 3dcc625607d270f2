"""Take a data set away at once, whatever is kept, unless an adapter that learned from it answers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection

from infra.database.events import Event, list_events, record_event
from infra.database.garbage import add_mark, find_mark
from infra.database.open import Database
from infra.objects.store import ObjectStore
from serving.registry.catalogue import read_dataset
from serving.registry.retention.collecting import ACTOR, Done, Outcome, clear, clock_from, own
from serving.registry.retention.inventory import read_inventory
from serving.registry.task_rows import read_task

FORGETTING = "dataset.forgetting"
"""The event that orders it; a data set that is still in use waits, and housekeeping asks again."""
MAX_ORDERS = 10_000
WHY = "it holds what was to be forgotten"


def order(database: Database, digest: str, now: datetime) -> None:
    """Note, once, that a data set is to go. Raises UnknownDataset."""
    with database.begin() as connection:
        read_task(connection, read_dataset(connection, digest).task_id, lock=True)
        if not list_events(connection, subject=digest, what=FORGETTING, limit=1):
            record_event(
                connection, actor=ACTOR, what=FORGETTING, subject=digest, why=WHY, time=now
            )


def forgotten(database: Database) -> frozenset[str]:
    """Digests of the data sets that are to go, or have gone: nothing more is learned from them."""
    with database.read() as connection:
        return frozenset(event.subject for event in _orders(connection))


def forget_ordered(
    database: Database, store: ObjectStore, now: datetime, *, dry_run: bool = False
) -> list[Done]:
    """Take away every data set that is to go, is still there, and is not in use any more.

    Raises ObjectStoreError.
    """
    with database.read() as connection:
        digests = sorted({event.subject for event in _orders(connection)})
    done = []
    for digest in digests:
        outcome, why = _take(database, store, digest, now, dry_run)
        if outcome is not None:
            done.append(Done("dataset", digest, outcome, why))
    return done


def _take(
    database: Database, store: ObjectStore, digest: str, now: datetime, dry_run: bool
) -> tuple[Outcome | None, str]:
    with database.read() as connection:
        dataset = read_dataset(connection, digest)
    if next(store.list(f"{dataset.location}/"), None) is None:
        return None, ""
    with database.begin() as connection:
        read_task(connection, dataset.task_id, lock=True)
        inventory = read_inventory(connection, now, task_id=dataset.task_id)
        used = {*inventory.routed, *inventory.rolling, *inventory.draining}
        for adapter in inventory.adapters:
            if adapter.dataset_digest == digest and adapter.name in used:
                return "waiting", f"{WHY}; {adapter.name}, which learned from it, is in use"
        if dry_run:
            return "would go", WHY
        add_mark(connection, dataset.location, "dataset", digest, WHY, now)
        mark = find_mark(connection, dataset.location)
        owned = own(connection, mark, now) if mark is not None else None
    if owned is None:
        return "not now", WHY
    return clear(database, store, owned, clock_from(now), lambda _: None), WHY


def _orders(connection: Connection) -> Sequence[Event]:
    return list_events(connection, what=FORGETTING, limit=MAX_ORDERS, newest_first=True)
