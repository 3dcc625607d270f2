"""Where an adapter comes from, and everything that happened to a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, or_, select

from infra.database.events import Event
from infra.database.tables import adapters, events, rollouts
from serving.registry.catalogue import read_adapter, read_dataset, read_scorecards
from serving.registry.openings import read_rollouts
from serving.registry.records import Lineage

MAX_HISTORY = 10_000


def trace(connection: Connection, adapter: str) -> Lineage:
    """Raises UnknownAdapter."""
    found = read_adapter(connection, adapter)
    dataset = read_dataset(connection, found.dataset_digest)
    return Lineage(
        adapter=found,
        dataset=dataset,
        source_objects=_sources(dataset.manifest),
        base_model=found.manifest.get("base_model"),
        base_digest=found.manifest.get("base_digest"),
        scorecards=tuple(read_scorecards(connection, adapter)),
        rollouts=tuple(read_rollouts(connection, adapter=adapter)),
    )


def task_history(connection: Connection, task_id: str, limit: int) -> list[Event]:
    """The newest ``limit`` events of a task, its adapters and its rollouts; newest first."""
    query = (
        select(events)
        .where(
            or_(
                events.c.subject == task_id,
                events.c.subject.in_(select(adapters.c.name).where(adapters.c.task_id == task_id)),
                events.c.subject.in_(select(rollouts.c.id).where(rollouts.c.task_id == task_id)),
            )
        )
        .order_by(events.c.id.desc())
        .limit(min(limit, MAX_HISTORY))
    )
    return [Event(**row._mapping) for row in connection.execute(query)]


def _sources(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    parents = manifest.get("parents")
    listed = parents.get("log_objects") if isinstance(parents, Mapping) else None
    return tuple(str(key) for key in listed or ())
