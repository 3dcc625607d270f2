"""Which tasks must be trained again because an adapter of theirs learned from what was forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from flows.wiring import Context
from infra.database.events import Event, list_events, record_event
from serving.registry.records import Adapter
from serving.registry.retention.forgetting import forgotten
from trainers.data_sets.versions import DatasetVersion

DUE = "retraining.due"
MAX_DUE = 10_000


def learned_from(context: Context, dataset: DatasetVersion) -> list[Adapter]:
    """The adapters trained on a data set, also those that had it mixed in as an old one."""
    return [
        adapter
        for adapter in context.registry.adapters(dataset.task_id)
        if dataset.digest in _taught_by(adapter)
    ]


def mark_due(context: Context, adapter: Adapter, dataset: str, now: datetime) -> bool:
    """Note, once for each adapter, that an adapter's task is due.

    Args:
        dataset: digest of the data set that holds what it should not have learned.
    """
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
            evidence={"task": adapter.task_id, "dataset": dataset},
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
    tainted = {event.evidence["dataset"] for event in due} | forgotten(context.database)
    clean = {
        adapter.name: adapter.task_id
        for adapter in context.registry.adapters()
        # A drill's adapter replaces nothing.
        if not tainted & _taught_by(adapter)
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


def _taught_by(adapter: Adapter) -> frozenset[str]:
    """Digests of the data sets that an adapter learned from."""
    old = adapter.manifest.get("spec", {}).get("old_datasets", ())
    return frozenset({adapter.dataset_digest, *old})
