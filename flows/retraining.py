"""Which tasks must be trained again because an adapter of theirs learned from what was forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from flows.wiring import Context
from infra.database.events import Event, list_events, record_event
from serving.registry.records import Adapter

DUE = "retraining.due"
MAX_DUE = 10_000


def mark_due(context: Context, adapter: Adapter, now: datetime) -> bool:
    """Note, once for each adapter, that an adapter's task is due."""
    with context.database.begin() as connection:
        known = list_events(connection, subject=adapter.name, what=DUE, limit=1)
        if known:
            return False
        record_event(
            connection,
            actor="forget",
            what=DUE,
            subject=adapter.name,
            why="it learned from what was to be forgotten",
            evidence={"task": adapter.task_id, "dataset": adapter.dataset_digest},
            time=now,
        )
    return True


def due_tasks(context: Context, released: Sequence[Event]) -> frozenset[str]:
    """Tasks without an adapter that was brought to its end since, on a data set free of it.

    Args:
        released: the events that end an adapter's night.
    """
    with context.database.read() as connection:
        due = list_events(connection, what=DUE, limit=MAX_DUE, newest_first=True)
    tainted = {event.evidence["dataset"] for event in due}
    clean = {
        adapter.name: adapter.task_id
        for adapter in context.registry.adapters()
        # A drill's adapter replaces nothing.
        if adapter.dataset_digest not in tainted
        and not adapter.manifest.get("spec", {}).get("shuffle_answers")
    }
    last: dict[str, int] = {}
    for event in released:
        task = clean.get(event.subject)
        if task is not None:
            last[task] = max(last.get(task, 0), event.id)
    return frozenset(
        event.evidence["task"] for event in due if event.id > last.get(event.evidence["task"], 0)
    )
