"""Read what the decision rests on: from the registry, and from the object store what lies there."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import Connection, func, select

from infra.database.garbage import read_marks
from infra.database.tables import adapters, dataset_versions, events, rollouts, routes
from infra.objects.store import ObjectStore
from serving.registry.records import TEACHER
from serving.registry.retention.decision import DatasetStay, Inventory, Stay
from serving.registry.routes import left_routes, wanted_adapters
from serving.rollout.machine import OPEN

DRAIN_SECONDS = 3600.0
"""How long an adapter that left a route is left alone, whatever the settings say."""
PREFIXES = ("adapters/", "datasets/")


def stored_locations(store: ObjectStore) -> frozenset[str]:
    """Where adapters and data sets lie, registered or not. Raises ObjectStoreError."""
    return frozenset(_locations(store))


def read_inventory(
    connection: Connection,
    now: datetime,
    *,
    task_id: str | None = None,
    stored: frozenset[str] = frozenset(),
) -> Inventory:
    """What is there, in the caller's transaction.

    Args:
        task_id: of this task only; with the task's row locked, nothing of it can change meanwhile.
        stored: locations in the object store.
    """
    adapter_query = select(
        adapters.c.name,
        adapters.c.task_id,
        adapters.c.location,
        adapters.c.dataset_digest,
        adapters.c.state,
        adapters.c.created,
    )
    dataset_query = select(
        dataset_versions.c.digest,
        dataset_versions.c.task_id,
        dataset_versions.c.location,
        dataset_versions.c.created,
    )
    route_query = select(routes.c.task_id, routes.c.champion, routes.c.candidate)
    rollout_query = select(rollouts.c.id, rollouts.c.adapter, rollouts.c.state, rollouts.c.entered)
    event_query = (
        select(events.c.subject, func.max(events.c.id).label("id"))
        .where(events.c.what.startswith("adapter."))
        .group_by(events.c.subject)
    )
    if task_id is not None:
        names = select(adapters.c.name).where(adapters.c.task_id == task_id)
        adapter_query = adapter_query.where(adapters.c.task_id == task_id)
        dataset_query = dataset_query.where(dataset_versions.c.task_id == task_id)
        route_query = route_query.where(routes.c.task_id == task_id)
        rollout_query = rollout_query.where(rollouts.c.task_id == task_id)
        event_query = event_query.where(events.c.subject.in_(names))
    rows = connection.execute(adapter_query).all()
    last = {row.name: row.created for row in rows}

    def happened(name: str, time: datetime) -> None:
        if name in last:
            last[name] = max(last[name], time)

    newest = event_query.subquery()
    moved = select(events.c.subject, events.c.time).join(newest, newest.c.id == events.c.id)
    for row in connection.execute(moved):
        happened(row.subject, row.time)
    routed: dict[str, str] = {}
    past: dict[str, tuple[str, ...]] = {}
    for row in connection.execute(route_query).all():
        for role in ("champion", "candidate"):
            name = getattr(row, role)
            if name is not None and name != TEACHER:
                routed[name] = role
        left = left_routes(connection, row.task_id)
        past[row.task_id] = tuple(left.champions)
        for name, time in left.times.items():
            happened(name, time)
    rolling: dict[str, str] = {}
    for row in connection.execute(rollout_query):
        happened(row.adapter, row.entered)
        if row.state in OPEN:
            rolling[row.adapter] = row.id
    return Inventory(
        now=now,
        adapters=tuple(Stay(**row._mapping, last=last[row.name]) for row in rows),
        datasets=tuple(DatasetStay(**row._mapping) for row in connection.execute(dataset_query)),
        routed=routed,
        rolling=rolling,
        draining=frozenset(wanted_adapters(connection, now, DRAIN_SECONDS)),
        past_champions=past,
        stored=stored,
        marks={mark.location: mark.state for mark in read_marks(connection)},
    )


def _locations(store: ObjectStore) -> Iterator[str]:
    for prefix in PREFIXES:
        last = ""
        for item in store.list(prefix):
            parts = item.key.split("/")
            if len(parts) < 4:
                continue
            location = "/".join(parts[:3])
            if location != last:
                last = location
                yield location
