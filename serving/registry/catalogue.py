"""Data sets, adapters and scorecards: written once, the same again being no error.

Every function works in the caller's transaction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, or_, select

from infra.database.events import record_event
from infra.database.garbage import find_mark, require_kept
from infra.database.sources import insert_sources
from infra.database.tables import adapters, dataset_versions, routes, scorecards
from infra.database.writes import compare_and_swap, insert_if_absent
from infra.prompting.confidence import MEAN
from serving.registry.errors import (
    AdapterInUse,
    AdapterNameReused,
    DatasetConflict,
    IllegalState,
    UnknownAdapter,
    UnknownDataset,
)
from serving.registry.records import Adapter, AdapterState, DatasetVersion, Scorecard
from serving.registry.task_rows import read_task

_NEXT_ADAPTER_STATES: Mapping[AdapterState, frozenset[AdapterState]] = {
    "registered": frozenset({"rejected", "retired"}),
    "retired": frozenset({"registered", "rejected"}),
    "rejected": frozenset(),
}


def insert_dataset(connection: Connection, wanted: DatasetVersion) -> DatasetVersion:
    """Record it, or return what is recorded. Raises UnknownTask, DatasetConflict, BeingRemoved."""
    read_task(connection, wanted.task_id, lock=True)
    require_kept(connection, wanted.location)
    if insert_if_absent(connection, dataset_versions, vars(wanted)):
        insert_sources(connection, wanted.digest, wanted.manifest)
        return wanted
    found = read_dataset(connection, wanted.digest)
    if (found.task_id, found.location) != (wanted.task_id, wanted.location):
        raise DatasetConflict(
            f"data set {wanted.digest[:16]} is recorded for task {found.task_id} at "
            f"{found.location}, not for {wanted.task_id} at {wanted.location}"
        )
    return found


def read_dataset(connection: Connection, digest: str) -> DatasetVersion:
    row = connection.execute(
        select(dataset_versions).where(dataset_versions.c.digest == digest)
    ).one_or_none()
    if row is None:
        raise UnknownDataset(f"no data set version {digest[:16]}: record it first")
    return DatasetVersion(**row._mapping)


def insert_adapter(connection: Connection, wanted: Adapter, *, actor: str, why: str) -> Adapter:
    """Register it, or return what is registered under its name.

    Raises:
        UnknownTask, UnknownDataset: what it refers to is not there.
        AdapterNameReused: the name stands for something else.
        BeingRemoved: its files, or its data set's, were cleared away.
        ValueError: the name is not ``task@digest``.
    """
    read_task(connection, wanted.task_id, lock=True)
    expected = f"{wanted.task_id}@{wanted.digest[:16]}"
    if wanted.name != expected:
        raise ValueError(
            f"an adapter is named by task and digest: {expected!r}, not {wanted.name!r}"
        )
    dataset = read_dataset(connection, wanted.dataset_digest)
    if dataset.task_id != wanted.task_id:
        raise UnknownDataset(
            f"data set {dataset.digest[:16]} belongs to task {dataset.task_id}, "
            f"not to {wanted.task_id}"
        )
    if _find_adapter(connection, wanted.name) is None:
        for location in (dataset.location, wanted.location):
            require_kept(connection, location)
    if not insert_if_absent(connection, adapters, vars(wanted)):
        found = read_adapter(connection, wanted.name)
        differences = _differences(found, wanted)
        if differences:
            raise AdapterNameReused(
                f"adapter {wanted.name} is registered with another {', '.join(differences)}; "
                "a name is never used twice"
            )
        return found
    record_event(
        connection,
        actor=actor,
        what="adapter.registered",
        subject=wanted.name,
        why=why,
        evidence={"digest": wanted.digest, "dataset": wanted.dataset_digest},
        current={"state": wanted.state, "threshold": wanted.threshold},
        time=wanted.created,
    )
    return wanted


def read_adapter(connection: Connection, name: str) -> Adapter:
    found = _find_adapter(connection, name)
    if found is None:
        raise UnknownAdapter(f"no adapter {name!r}: `nightschool adapters` lists those there are")
    return found


def _find_adapter(connection: Connection, name: str) -> Adapter | None:
    row = connection.execute(select(adapters).where(adapters.c.name == name)).one_or_none()
    return Adapter(**row._mapping) if row else None


def change_adapter_state(
    connection: Connection,
    name: str,
    state: AdapterState,
    *,
    actor: str,
    why: str,
    now: datetime,
    evidence: Mapping[str, Any] | None = None,
) -> Adapter:
    """Move an adapter to another state, with its event; the same state again changes nothing.

    Rejected is final. Raises UnknownAdapter, IllegalState, and AdapterInUse while a route names it.
    """
    current = read_adapter(connection, name)
    read_task(connection, current.task_id, lock=True)
    current = read_adapter(connection, name)
    if current.state == state:
        return current
    if state not in _NEXT_ADAPTER_STATES[current.state]:
        raise IllegalState(f"adapter {name} is {current.state}, which {state} may not follow")
    used = connection.execute(
        select(routes.c.task_id).where(or_(routes.c.champion == name, routes.c.candidate == name))
    ).first()
    if used is not None:
        raise AdapterInUse(
            f"adapter {name} is on the route of {used.task_id}: "
            f"`nightschool rollback {used.task_id}` takes it off and rejects it"
        )
    if state == "registered":
        gone = find_mark(connection, current.location)
        if gone is not None and gone.state != "marked":
            raise IllegalState(f"the files of adapter {name} were cleared away: train a new one")
    expected = {"name": name, "state": current.state}
    if not compare_and_swap(connection, adapters, expected, {"state": state}):
        raise IllegalState(f"adapter {name} is no longer {current.state}: look again")
    record_event(
        connection,
        actor=actor,
        what=f"adapter.{state}",
        subject=name,
        why=why,
        evidence=evidence,
        previous={"state": current.state},
        current={"state": state},
        time=now,
    )
    return replace(current, state=state)


def insert_scorecard(connection: Connection, wanted: Scorecard) -> Scorecard:
    """Record it, or return what is recorded under its digest. Raises UnknownAdapter."""
    read_adapter(connection, wanted.adapter)
    if insert_if_absent(connection, scorecards, vars(wanted)):
        return wanted
    row = connection.execute(select(scorecards).where(scorecards.c.digest == wanted.digest)).one()
    return Scorecard(**row._mapping)


def read_scorecards(connection: Connection, adapter: str) -> list[Scorecard]:
    """Newest first."""
    rows = connection.execute(
        select(scorecards)
        .where(scorecards.c.adapter == adapter)
        .order_by(scorecards.c.created.desc(), scorecards.c.digest)
    )
    return [Scorecard(**row._mapping) for row in rows]


def _differences(found: Adapter, wanted: Adapter) -> list[str]:
    names = ("task_id", "digest", "dataset_digest", "spec_digest", "location")
    different = [name for name in names if getattr(found, name) != getattr(wanted, name)]
    # Files by hash, if both manifests list them; its times and library versions may differ.
    files = found.manifest.get("files"), wanted.manifest.get("files")
    if all(files) and files[0] != files[1]:
        different.append("files")
    scores = [side.manifest.get("confidence") or MEAN for side in (found, wanted)]
    if scores[0] != scores[1]:
        different.append("confidence")
    if not _same_threshold(found.threshold, wanted.threshold):
        different.append("threshold")
    return different


def _same_threshold(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    # A confidence is a mean of float32 values whose last digits depend on the batch.
    return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-4)
