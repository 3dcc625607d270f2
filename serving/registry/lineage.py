"""Lineage both ways, and everything that happened to a task.

Backwards: an answer, the adapter that gave it, the data set it learned from, the log objects behind
that. Forwards: a log object, the data sets made of it, the adapters that learned from them.
Every function but ``trace_answer`` works in the caller's transaction.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, or_, select

from infra.calls.finding import find_call, time_of_id
from infra.database.events import Event
from infra.database.open import Database
from infra.database.sources import read_sources
from infra.database.tables import (
    adapters,
    dataset_sources,
    dataset_versions,
    events,
    ingested_objects,
    rollouts,
)
from infra.objects.store import ObjectStore
from serving.registry.catalogue import read_adapter, read_dataset, read_scorecards
from serving.registry.errors import (
    Unknown,
    UnknownAdapter,
    UnknownDataset,
    UnknownObject,
    UnknownRollout,
)
from serving.registry.openings import read_rollout, read_rollouts
from serving.registry.records import (
    Adapter,
    AnswerLineage,
    DatasetLineage,
    DatasetVersion,
    Lineage,
    ObjectLineage,
)

MAX_HISTORY = 10_000
MIN_PREFIX = 8
"""Characters of a data set's digest that are enough, if they are unique."""
_DIGEST = re.compile(r"[0-9a-f]{8,64}")

Kind = Literal["adapter", "call", "dataset", "object"]


def kind_of(what: str) -> Kind:
    """What a person means by ``what``, by its form alone.

    ``task@digest`` is an adapter, a UUID of version 7 a call, a text with a slash an object key, 8 or
    more hexadecimal characters a data set. Raises Unknown for anything else.
    """
    if time_of_id(what) is not None:
        return "call"
    if "/" in what:
        return "object"
    if "@" in what:
        return "adapter"
    if _DIGEST.fullmatch(what):
        return "dataset"
    raise Unknown(
        f"{what[:100]!r} is neither an adapter (task@digest), a call id, a data set's digest "
        f"(its first {MIN_PREFIX} characters or more) nor the key of a log object"
    )


def trace(connection: Connection, adapter: str) -> Lineage:
    """Raises UnknownAdapter."""
    found = read_adapter(connection, adapter)
    dataset = read_dataset(connection, found.dataset_digest)
    return Lineage(
        adapter=found,
        dataset=dataset,
        source_objects=tuple(read_sources(connection, dataset.digest)),
        base_model=found.manifest.get("base_model"),
        base_digest=found.manifest.get("base_digest"),
        scorecards=tuple(read_scorecards(connection, adapter)),
        rollouts=tuple(read_rollouts(connection, adapter=adapter)),
    )


def trace_dataset(connection: Connection, digest: str) -> DatasetLineage:
    """Args: ``digest``: whole, or as much of its beginning as is unique. Raises UnknownDataset."""
    dataset = read_dataset(connection, _whole_digest(connection, digest))
    return DatasetLineage(
        dataset=dataset,
        source_objects=tuple(read_sources(connection, dataset.digest)),
        adapters=tuple(_trained_on(connection, [dataset.digest])),
    )


def trace_object(connection: Connection, key: str) -> ObjectLineage:
    """The data sets and adapters that learned from a log object. Raises UnknownObject."""
    made_of = (
        select(dataset_versions)
        .join(dataset_sources, dataset_sources.c.dataset_digest == dataset_versions.c.digest)
        .where(dataset_sources.c.object_key == key)
        .order_by(dataset_versions.c.created, dataset_versions.c.digest)
    )
    datasets = [DatasetVersion(**row._mapping) for row in connection.execute(made_of)]
    taken_in = connection.execute(
        select(ingested_objects.c.state, ingested_objects.c.finished)
        .where(ingested_objects.c.key == key)
        .order_by(ingested_objects.c.finished.desc())
        .limit(1)
    ).one_or_none()
    if taken_in is None and not datasets:
        raise UnknownObject(
            f"nothing was learned from an object {key[:200]!r}, and none of that key was ever "
            "taken in: log objects are named logs/v1/dt=.../hh=.../..."
        )
    return ObjectLineage(
        key=key,
        state=taken_in.state if taken_in else None,
        ingested=taken_in.finished if taken_in else None,
        datasets=tuple(datasets),
        adapters=tuple(_trained_on(connection, [dataset.digest for dataset in datasets])),
    )


def trace_answer(
    database: Database, store: ObjectStore, call_id: str, *, within_seconds: float = 60.0
) -> AnswerLineage:
    """From an answer to everything behind it.

    Raises:
        CallNotFound: the log does not hold it.
        ObjectStoreError: the log cannot be read.
    """
    found = find_call(store, call_id, within_seconds=within_seconds)
    answered = found.record.answered_by
    adapter = rollout = None
    with database.read() as connection:
        # The log outlives any one registry: what it names may have been another's.
        if answered.adapter is not None:
            try:
                adapter = trace(connection, answered.adapter)
            except UnknownAdapter:
                adapter = None
        if answered.rollout is not None:
            try:
                rollout = read_rollout(connection, answered.rollout)
            except UnknownRollout:
                rollout = None
    return AnswerLineage(
        call_id=found.record.id,
        time=found.record.time,
        tenant=found.record.tenant,
        task_id=found.record.task,
        object_key=found.object_key,
        model=answered.model,
        adapter_name=answered.adapter,
        arm=answered.arm,
        rollout_id=answered.rollout,
        route_version=answered.route_version,
        escalation=answered.escalation,
        adapter=adapter,
        rollout=rollout,
    )


def find_events(
    connection: Connection,
    *,
    task: str | None = None,
    actor: str | None = None,
    what: str | None = None,
    since: datetime | None = None,
    before: int | None = None,
    limit: int = 1000,
) -> list[Event]:
    """The newest ``limit`` events of all that is asked for; newest first.

    Args:
        task: of this task, its adapters and its rollouts.
        what: a kind, or with a dot at the end all whose name begins so.
        since: not before this time.
        before: only events with a lower id.
    """
    query = select(events).order_by(events.c.id.desc()).limit(min(limit, MAX_HISTORY))
    if task is not None:
        own_adapters = select(adapters.c.name).where(adapters.c.task_id == task)
        own_rollouts = select(rollouts.c.id).where(rollouts.c.task_id == task)
        query = query.where(
            or_(
                events.c.subject == task,
                events.c.subject.in_(own_adapters),
                events.c.subject.in_(own_rollouts),
            )
        )
    if actor is not None:
        query = query.where(events.c.actor == actor)
    if what is not None:
        whole = events.c.what == what
        query = query.where(
            events.c.what.startswith(what, autoescape=True) if what.endswith(".") else whole
        )
    if since is not None:
        query = query.where(events.c.time >= since)
    if before is not None:
        query = query.where(events.c.id < before)
    return [Event(**row._mapping) for row in connection.execute(query)]


def _trained_on(connection: Connection, digests: Iterable[str]) -> list[Adapter]:
    query = (
        select(adapters)
        .where(adapters.c.dataset_digest.in_(list(digests)))
        .order_by(adapters.c.created, adapters.c.name)
    )
    return [Adapter(**row._mapping) for row in connection.execute(query)]


def _whole_digest(connection: Connection, digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise UnknownDataset(f"a data set is named by {MIN_PREFIX} or more hexadecimal characters")
    # A range, not LIKE: an index serves it under every collation.
    column: Any = dataset_versions.c.digest
    found = list(
        connection.execute(
            select(column).where(column >= digest, column < digest + "g").order_by(column).limit(2)
        ).scalars()
    )
    if len(found) > 1:
        raise UnknownDataset(f"more than one data set begins with {digest}: give more characters")
    if not found:
        raise UnknownDataset(
            f"no data set version {digest[:16]}: see a task's with nightschool history"
        )
    return str(found[0])
