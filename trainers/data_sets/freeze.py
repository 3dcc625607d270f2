"""Freeze one task's calls into a data set version.

Effects, in order: the split files, the manifest (written once: it makes the version), the database
row with its event. Each is found done when it is done again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import select

from infra.calls.record import CallRecord, utc_now
from infra.calls.tool_results import is_error, tool_call_ids
from infra.database.events import record_event
from infra.database.garbage import require_kept, reserve
from infra.database.open import Database
from infra.database.sources import insert_sources
from infra.database.tables import dataset_versions, tasks
from infra.database.writes import insert_if_absent
from infra.objects.store import ObjectStore
from infra.settings.model import Settings
from infra.tasks.joined import PLACES
from infra.tasks.signature import items, role_of, signature
from trainers.data_sets.consistency import consistency
from trainers.data_sets.golden_places import untaught_cases
from trainers.data_sets.labels import Example, Label, label_of, own, prompt_key
from trainers.data_sets.near_copies import repeating
from trainers.data_sets.splits import (
    SPLITS,
    SplitName,
    prompt_format,
    separated,
    split_by_session,
)
from trainers.data_sets.versions import DatasetVersion, content_digest, location_of, write_version
from trainers.discover import assignments
from trainers.ingest.duplicates import exchange, group
from trainers.ingest.reading import call_files, feedback_files, read_calls, read_feedback

ACTOR = "datasets"


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
    similarity = settings.ingest.near_duplicate_similarity
    examples = _without_golden(store, database, task_id, examples, dropped, similarity)
    if not examples:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
        raise EmptyDataset(f"no call of {task_id} has a usable answer ({reasons or 'no calls'})")
    leaders = _leaders(examples, similarity)
    splits, tied = separated(split_by_session(examples), _tied(examples, leaders))
    dropped.update(tied)
    splits = _weighted(splits, leaders)
    examples = [example for name in SPLITS for example in splits[name]]
    properties = {
        "task_id": task_id,
        "format": prompt_format(examples).to_dict(),
        "kind": task["details"].get("kind", "text"),
    }
    digest = content_digest(splits, properties)
    manifest: dict[str, Any] = {
        **properties,
        **described(splits),
        "dropped": dict(sorted(dropped.items())),
        "parents": {"log_objects": parents, "assignments": pointer.key},
    }
    if places := sorted(pointer.places.get(task_id, ())):
        manifest[PLACES] = places
    with database.begin() as connection:
        reserve(connection, location_of(task_id, digest), now)
    version = write_version(store, task_id, digest, splits, manifest)
    register(database, version, now)
    return version


def described(splits: Mapping[SplitName, Sequence[Example]]) -> dict[str, Any]:
    """What a manifest tells of its examples; there is at least one."""
    everything = sorted(
        (e for name in SPLITS for e in splits[name]), key=lambda e: (e.time, e.call_id)
    )
    trained = {prompt_key(example.request) for example in splits["train"]}
    return {
        "counts": {name: len(splits[name]) for name in SPLITS},
        "sessions": {name: len({e.session for e in splits[name]}) for name in SPLITS},
        "sources": dict(sorted(Counter(example.source for example in everything).items())),
        "agreement": consistency(everything),
        "test_prompts_in_train": sum(prompt_key(e.request) in trained for e in splits["test"]),
        "signatures": sorted({example.signature for example in everything}),
        "seen": [everything[0].time.isoformat(), everything[-1].time.isoformat()],
    }


def _examples(
    store: ObjectStore, database: Database, settings: Settings, members: list[str]
) -> tuple[list[Example], list[str], Counter[str]]:
    """Labelled calls, oldest first; the log objects they came from; why the others were left out."""
    files = call_files(database, settings.discovery.max_calls)
    said = read_feedback(store, feedback_files(database), members)
    found: dict[str, tuple[Example, str]] = {}
    dropped: Counter[str] = Counter()
    failed: dict[tuple[str, str], datetime] = {}
    for record, source in read_calls(store, files, members):
        for name in _failed(record):
            place = f"{record.tenant}/{record.session}", name
            failed[place] = max(record.time, failed.get(place, record.time))
        label = label_of(record, own(record, said.get(record.id, ())))
        if not isinstance(label, Label):
            dropped[label] += 1
            continue
        found[record.id] = _example(record, label), source
    # How a tool fared is told by the next call of its session.
    for call_id, (example, _) in list(found.items()):
        told = [failed.get((example.session, name)) for name in tool_call_ids(example.answer)]
        if example.source == "teacher" and any(time and example.time < time for time in told):
            del found[call_id]
            dropped["tool-error"] += 1
    kept = sorted(found.values(), key=lambda item: (item[0].time, item[0].call_id))
    limit = settings.training.max_examples
    if len(kept) > limit:
        dropped["older"] += len(kept) - limit
        kept = kept[-limit:]
    return [example for example, _ in kept], sorted({source for _, source in kept}), dropped


def _failed(record: CallRecord) -> Iterator[str]:
    """Ids of the tool calls whose results, as the request carries them, are errors."""
    for message in items(record.request.get("messages")):
        if role_of(message) == "tool" and is_error(message.get("content")):
            yield str(message.get("tool_call_id"))


def _without_golden(
    store: ObjectStore,
    database: Database,
    task_id: str,
    examples: list[Example],
    dropped: Counter[str],
    similarity: float,
) -> list[Example]:
    """A golden case tells something of an adapter only if nothing nearly like it was shown to it."""
    cases = [case.example() for case in untaught_cases(store, database, task_id)]
    pinned = repeating(examples, cases, similarity) if cases else set()
    if pinned:
        dropped["golden"] += len(pinned)
    return [example for example in examples if example.call_id not in pinned]


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


def _leaders(examples: list[Example], similarity: float) -> dict[str, str]:
    """Call id to the call that it nearly repeats."""
    found = group([exchange(e.request, e.answer, e.signature) for e in examples], similarity)
    return {e.call_id: examples[i].call_id for e, i in zip(examples, found, strict=True)}


def _tied(examples: list[Example], leaders: Mapping[str, str]) -> dict[str, str]:
    """The same, and with it whatever asks exactly the same, however it was answered."""
    parents = {name: name for name in leaders.values()}

    def root(name: str) -> str:
        while parents[name] != name:
            parents[name] = name = parents[parents[name]]
        return name

    asked: dict[str, str] = {}
    for example in examples:
        leader = root(leaders[example.call_id])
        parents[leader] = root(asked.setdefault(prompt_key(example.request), leader))
    return {call_id: root(leader) for call_id, leader in leaders.items()}


def _weighted(
    splits: Mapping[SplitName, list[Example]], leaders: Mapping[str, str]
) -> dict[SplitName, list[Example]]:
    """Each group of near copies weighs as much as one call."""
    sizes = Counter(leaders[e.call_id] for name in SPLITS for e in splits[name])
    return {
        name: [replace(e, weight=1 / sizes[leaders[e.call_id]]) for e in splits[name]]
        for name in SPLITS
    }


def register(database: Database, version: DatasetVersion, now: datetime) -> None:
    """Enter a version that is written, with its event; once. Raises BeingRemoved."""
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
