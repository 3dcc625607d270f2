"""Freeze one task's calls into a data set version.

Effects, in order: the split files, the manifest (written once: it makes the version), the database
row with its event. Each is found done when it is done again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import select

from infra.calls.record import utc_now
from infra.database.events import record_event
from infra.database.garbage import require_kept, reserve
from infra.database.open import Database
from infra.database.sources import insert_sources
from infra.database.tables import dataset_versions, tasks
from infra.database.writes import insert_if_absent
from infra.objects.store import ObjectStore
from infra.settings.model import Settings
from infra.tasks.signature import signature
from trainers.data_sets.golden import golden_cases
from trainers.data_sets.labels import Example, Label, agreement, label_of, prompt_key
from trainers.data_sets.splits import SPLITS, prompt_format, split_by_session
from trainers.data_sets.versions import DatasetVersion, content_digest, location_of, write_version
from trainers.discover import assignments
from trainers.ingest.duplicates import exchange, group, weights
from trainers.ingest.reading import call_files, feedback_files, read_calls, read_feedback

ACTOR = "datasets"
MAX_FEEDBACK_ROWS = 500_000


class EmptyDataset(Exception):
    """None of the task's calls has an answer to learn from; the message counts the reasons."""


def freeze(
    store: ObjectStore,
    database: Database,
    settings: Settings,
    task_id: str,
    now: datetime | None = None,
) -> DatasetVersion:
    """The data set version of a task as of the latest discovery. The same calls: the same version.

    Raises:
        EmptyDataset: no such task, or no call of it has a usable label.
        ObjectStoreError: the store cannot be read or written.
        BeingRemoved: the same examples are being cleared away at this moment: try again.
        AssignmentsCorrupt: run discovery again.
    """
    now = now or utc_now()
    with database.read() as connection:
        task = (
            connection.execute(select(tasks).where(tasks.c.id == task_id)).mappings().one_or_none()
        )
    pointer = assignments.latest(database)
    if task is None or pointer is None:
        raise EmptyDataset(f"there is no task {task_id!r}: run discovery first")
    members = [call for call, owner in assignments.read(store, pointer).items() if owner == task_id]
    # The assignments are in order of time; calls without a label make room for older ones.
    examples, parents, dropped = _examples(store, database, settings, members)
    examples = _without_golden(store, task_id, examples, dropped)
    if not examples:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
        raise EmptyDataset(f"no call of {task_id} has a usable answer ({reasons or 'no calls'})")
    examples = _weighted(examples, settings.ingest.near_duplicate_similarity)
    splits = split_by_session(examples)
    properties = {
        "task_id": task_id,
        "format": prompt_format(examples).to_dict(),
        "kind": task["details"].get("kind", "text"),
    }
    digest = content_digest(splits, properties)
    trained = {prompt_key(example.request) for example in splits["train"]}
    manifest: dict[str, Any] = {
        **properties,
        "counts": {name: len(splits[name]) for name in SPLITS},
        "sessions": {name: len({e.session for e in splits[name]}) for name in SPLITS},
        "sources": dict(sorted(Counter(example.source for example in examples).items())),
        "dropped": dict(sorted(dropped.items())),
        "agreement": agreement(examples),
        "test_prompts_in_train": sum(prompt_key(e.request) in trained for e in splits["test"]),
        "signatures": sorted({example.signature for example in examples}),
        "seen": [examples[0].time.isoformat(), examples[-1].time.isoformat()],
        "parents": {"log_objects": parents, "assignments": pointer.key},
    }
    with database.begin() as connection:
        reserve(connection, location_of(task_id, digest), now)
    version = write_version(store, task_id, digest, splits, manifest)
    _register(database, version, now)
    return version


def _examples(
    store: ObjectStore, database: Database, settings: Settings, members: list[str]
) -> tuple[list[Example], list[str], Counter[str]]:
    """Labelled calls, oldest first; the log objects they came from; why the others were left out."""
    files = call_files(database, settings.discovery.max_calls)
    said = read_feedback(store, feedback_files(database, MAX_FEEDBACK_ROWS), members)
    found: dict[str, tuple[Example, str]] = {}
    dropped: Counter[str] = Counter()
    for record, source in read_calls(store, files, members):
        # Whoever knows a call's id may report on it, but only its own tenant teaches from it.
        reports = [item for item in said.get(record.id, ()) if item.tenant == record.tenant]
        label = label_of(record, reports)
        if not isinstance(label, Label):
            dropped[label] += 1
            continue
        found[record.id] = _example(record, label), source
    kept = sorted(found.values(), key=lambda item: (item[0].time, item[0].call_id))
    limit = settings.training.max_examples
    if len(kept) > limit:
        dropped["older"] += len(kept) - limit
        kept = kept[-limit:]
    return [example for example, _ in kept], sorted({source for _, source in kept}), dropped


def _without_golden(
    store: ObjectStore, task_id: str, examples: list[Example], dropped: Counter[str]
) -> list[Example]:
    """A golden case tells something of an adapter only if it was never shown to it."""
    pinned = {prompt_key(case.request) for case in golden_cases(store, task_id)}
    kept = [example for example in examples if prompt_key(example.request) not in pinned]
    if len(kept) < len(examples):
        dropped["golden"] += len(examples) - len(kept)
    return kept


def _example(record: Any, label: Label) -> Example:
    return Example(
        call_id=record.id,
        session=f"{record.tenant}/{record.session}",
        time=record.time,
        request=record.request,
        answer=label.answer,
        weight=1.0,
        source=label.source,
        signature=signature(record.request).digest,
    )


def _weighted(examples: list[Example], similarity: float) -> list[Example]:
    leaders = group([exchange(e.request, e.answer, e.signature) for e in examples], similarity)
    return [
        replace(example, weight=weight)
        for example, weight in zip(examples, weights(leaders), strict=True)
    ]


def _register(database: Database, version: DatasetVersion, now: datetime) -> None:
    counts: Mapping[str, int] = version.manifest["counts"]
    with database.begin() as connection:
        row = {
            "digest": version.digest,
            "task_id": version.task_id,
            "location": version.location,
            "manifest": dict(version.manifest),
            "created": now,
        }
        require_kept(connection, version.location)
        if insert_if_absent(connection, dataset_versions, row):
            insert_sources(connection, version.digest, version.manifest)
            record_event(
                connection,
                actor=ACTOR,
                what="dataset.frozen",
                subject=version.task_id,
                why=f"{sum(counts.values())} examples of the teacher's answers",
                evidence={
                    "digest": version.digest,
                    "counts": dict(counts),
                    "agreement": version.manifest["agreement"],
                },
                current={"location": version.location},
                time=now,
            )
