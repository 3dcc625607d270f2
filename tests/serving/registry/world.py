"""A small registry to test with: tasks, data sets and adapters with real rows."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

from sqlalchemy import insert

from infra.database.open import Database
from infra.database.tables import tasks
from serving.registry.records import Adapter
from serving.registry.registry import Registry

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def add_task(database: Database, task_id: str, policy: str = "specialize") -> str:
    with database.begin() as connection:
        connection.execute(
            insert(tasks).values(
                id=task_id,
                name=f"Task {task_id}",
                state="candidate",
                policy=policy,
                tag=None,
                signature=digest(task_id),
                centroid=[0.6, 0.8],
                radius=0.5,
                size=100,
                details={"kind": "label"},
                version=1,
                created=NOW,
                updated=NOW,
            )
        )
    return task_id


def add_adapter(
    registry: Registry,
    task_id: str,
    number: int,
    verdict: str | None = "pass",
    *,
    now: datetime = NOW,
) -> Adapter:
    """Adapter ``number`` of a task, judged with ``verdict`` (None: not judged)."""
    data = digest(f"data {task_id}")
    registry.record_dataset(
        digest=data,
        task_id=task_id,
        location=f"datasets/{task_id}/{data}",
        manifest={"parents": {"log_objects": ["logs/v1/a", "logs/v1/b"]}},
        now=now,
    )
    weights = digest(f"weights {task_id} {number}")
    adapter = registry.register_adapter(
        name=f"{task_id}@{weights[:16]}",
        task_id=task_id,
        digest=weights,
        dataset_digest=data,
        spec_digest=digest("spec"),
        location=f"adapters/{task_id}/{weights}",
        manifest={"base_model": "base", "base_digest": digest("base")},
        threshold=-0.25,
        now=now,
    )
    if verdict is not None:
        registry.record_scorecard(
            digest=digest(f"card {task_id} {number} {verdict} {now}"),
            adapter=adapter.name,
            dataset_digest=data,
            body={"adapter": 0.9},
            gate={"verdict": verdict},
            now=now,
        )
    return adapter
