"""Which call belongs to which task: a Parquet file per discovery, and the event that points at it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection

from infra.database.events import list_events, record_event
from infra.database.open import Database
from infra.objects.store import ObjectStore

PREFIX = "assignments/v1/"
EVENT = "discovery.assigned"


class AssignmentsCorrupt(Exception):
    """The file is not the one that discovery wrote."""


@dataclass(frozen=True)
class Assignments:
    key: str
    digest: str
    """sha256 of the (call id, task id) pairs, in order."""
    source: str
    """Digest of the input: files read, settings, versions."""
    calls: int
    places: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Task id to the tasks merged into it that have calls (in older events a mapping from them)."""


def write(store: ObjectStore, by_call: Mapping[str, str], source: str) -> Assignments:
    """Store the pairs under a key made from source and content; the same again is no error."""
    import pyarrow as pa

    from trainers.ingest.sinks import parquet_bytes

    digest = _digest(by_call)
    key = f"{PREFIX}{source[:16]}-{digest[:16]}.parquet"
    table = pa.table(
        {
            "call_id": pa.array(list(by_call), type=pa.string()),
            "task_id": pa.array(list(by_call.values()), type=pa.string()),
        }
    )
    # Put, not create: a damaged file is healed by discovering again.
    store.put(key, parquet_bytes(table))
    return Assignments(key, digest, source, len(by_call))


def read(store: ObjectStore, pointer: Assignments) -> dict[str, str]:
    """Call id to task id.

    Raises:
        ObjectMissing: the file is gone.
        AssignmentsCorrupt: it holds other pairs than were written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(store.get(pointer.key)))
        pairs = zip(
            table.column("call_id").to_pylist(), table.column("task_id").to_pylist(), strict=True
        )
        by_call = dict(pairs)
    except (pa.ArrowException, KeyError) as error:
        raise AssignmentsCorrupt(
            f"{pointer.key} is no assignment file: run discovery again"
        ) from error
    if _digest(by_call) != pointer.digest:
        raise AssignmentsCorrupt(
            f"{pointer.key} was changed after it was written: run discovery again"
        )
    return by_call


def point(
    connection: Connection, pointer: Assignments, actor: str, calls: int, now: datetime
) -> None:
    """Make these the assignments that count, in the caller's transaction."""
    record_event(
        connection,
        actor=actor,
        what=EVENT,
        subject="all tasks",
        why=f"{pointer.calls} of {calls} calls belong to a task",
        evidence={
            "key": pointer.key,
            "digest": pointer.digest,
            "source": pointer.source,
            "calls": pointer.calls,
            "places": {task: list(places) for task, places in pointer.places.items()},
        },
        time=now,
    )


def latest(database: Database) -> Assignments | None:
    """The assignments that count, or None before the first discovery."""
    with database.read() as connection:
        found = list_events(connection, what=EVENT, limit=1, newest_first=True)
    return Assignments(**found[0].evidence) if found else None


def _digest(by_call: Mapping[str, str]) -> str:
    text = "\n".join(f"{call_id}\t{task}" for call_id, task in by_call.items())
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
