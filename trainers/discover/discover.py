"""Discovery: read what was ingested, decide the tasks, write them and who belongs to them.

Effects, in order: the assignment file (named by its content), then one transaction with the task
rows, their events and the event that points at the assignment file. Killed before the transaction:
nothing happened. After it, the same input again changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, select

from infra.calls.record import utc_now
from infra.database.events import record_event
from infra.database.open import Database
from infra.database.tables import leases, tasks
from infra.database.writes import compare_and_swap, insert_if_absent
from infra.objects.store import ObjectMissing, ObjectStore
from infra.settings.model import Settings
from infra.tasks.signature import SIGNATURE_VERSION
from trainers.discover import assignments
from trainers.discover.grouping import Group, KnownTask, Row, form_groups
from trainers.discover.scoring import kind_of_answer, score, volume
from trainers.ingest.features import FEATURE_COLUMNS, from_row
from trainers.ingest.reading import CallFile, call_files, read_columns

DISCOVERY_VERSION = 2
ACTOR = "discovery"
MAX_ATTEMPTS = 5
_GENERATION = "discovery"
"""Row of ``leases`` whose fence counts discoveries: two at once cannot both commit."""


class DiscoveryContended(Exception):
    """Other writers kept changing the tasks meanwhile. Run it again."""


@dataclass(frozen=True)
class TaskSummary:
    id: str
    name: str
    size: int
    state: str
    kind: str
    """``tool_call``, ``structured``, ``label`` or ``text``."""
    members: tuple[str, ...]
    """Call ids, oldest first."""
    policy: str
    tag: str | None
    signature: str
    details: Mapping[str, Any]
    version: int


def discover(
    store: ObjectStore, database: Database, settings: Settings, now: datetime | None = None
) -> list[TaskSummary]:
    """Find the tasks in the newest calls, write them, and return those that have calls.

    Same calls and settings again: nothing is decided anew, the same summaries come back.

    Raises:
        DiscoveryContended: other writers kept changing the same rows.
        ObjectStoreError: the store cannot be read or written.
    """
    now = now or utc_now()
    files = call_files(database, settings.discovery.max_calls)
    source = _source_digest(files, settings)
    rows: list[Row] | None = None
    for _ in range(MAX_ATTEMPTS):
        latest = assignments.latest(database)
        if latest is not None and latest.source == source:
            with suppress(assignments.AssignmentsCorrupt, ObjectMissing):
                return _summaries(database, assignments.read(store, latest))
        if rows is None:
            rows = _read_rows(store, files, settings.discovery.max_calls)
        generation, found = _snapshot(database)
        groups = form_groups(rows, [_known(row) for row in found.values()], settings.discovery)
        by_call = {rows[index].id: group.id for group in groups for index in group.members}
        pointer = assignments.write(store, by_call, source)
        if _commit(database, settings, rows, groups, found, generation, pointer, now):
            return _summaries(database, by_call)
    raise DiscoveryContended(
        f"the tasks changed {MAX_ATTEMPTS} times while they were being decided: run discovery again"
    )


def _source_digest(files: Sequence[CallFile], settings: Settings) -> str:
    known = {
        "files": sorted(file.key for file in files),
        "settings": settings.discovery.model_dump(mode="json"),
        "versions": [DISCOVERY_VERSION, SIGNATURE_VERSION],
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _read_rows(store: ObjectStore, files: Sequence[CallFile], limit: int) -> list[Row]:
    names = ["time", "tenant", "session", "task_tag", *FEATURE_COLUMNS]
    rows = [
        Row(
            id=row["id"],
            time=row["time"].astimezone(UTC),
            session=row["session"],
            tag=(row["task_tag"] or "")[:200] or None,
            features=from_row(row),
            tenant=row["tenant"],
        )
        for row in read_columns(store, files, names)
    ]
    rows.sort(key=lambda row: (row.time, row.id))
    return rows[-limit:]


def _snapshot(database: Database) -> tuple[int, dict[str, dict[str, Any]]]:
    with database.begin() as connection:
        insert_if_absent(
            connection,
            leases,
            {"name": _GENERATION, "holder": ACTOR, "fence": 0, "expires": utc_now()},
        )
        query = select(leases.c.fence).where(leases.c.name == _GENERATION)
        generation = int(connection.execute(query).scalar_one())
        rows = connection.execute(select(tasks).order_by(tasks.c.id)).mappings().all()
    return generation, {row["id"]: dict(row) for row in rows}


def _known(row: Mapping[str, Any]) -> KnownTask:
    return KnownTask(
        row["id"],
        row["tag"],
        row["signature"],
        tuple(row["centroid"]),
        row["radius"],
        row["details"].get("tenant"),
    )


def _commit(
    database: Database,
    settings: Settings,
    rows: Sequence[Row],
    groups: Sequence[Group],
    found: Mapping[str, Mapping[str, Any]],
    generation: int,
    pointer: assignments.Assignments,
    now: datetime,
) -> bool:
    """One transaction; False (and no effect) when a row is no longer what it was."""
    expected = {"name": _GENERATION, "fence": generation}
    changed = {"fence": generation + 1, "expires": now}
    try:
        with database.begin() as connection:
            if not compare_and_swap(connection, leases, expected, changed):
                raise _Stale
            for group in groups:
                values = _values(group, rows, settings, found.get(group.id))
                if not _write(connection, group, values, found, now):
                    raise _Stale
            assignments.point(connection, pointer, ACTOR, len(rows), now)
    except _Stale:
        return False
    return True


class _Stale(Exception):
    """Rolls the transaction back: something changed since it was read."""


def _values(
    group: Group, rows: Sequence[Row], settings: Settings, before: Mapping[str, Any] | None
) -> dict[str, Any]:
    members = [rows[index] for index in group.members]
    features = [row.features for row in members]
    kind = kind_of_answer(features)
    typical = next(f for f in features if f.signature == group.signature)
    sessions = len({row.session for row in members})
    state = str(before["state"]) if before else "observed"
    if state == "observed" and len(members) >= settings.discovery.min_calls:
        state = "candidate"
    pinned = before is not None and bool(before["details"].get("pinned"))
    return {
        "state": state,
        "signature": group.signature,
        "centroid": before["centroid"] if before and pinned else list(group.centre.centroid),
        "radius": before["radius"] if before and pinned else group.centre.radius,
        "size": len(members),
        "details": {
            "tenant": group.tenant,
            "pinned": pinned,
            "kind": kind,
            "structure": {
                "tools": json.loads(typical.tools)[:100],
                "response_kind": typical.response_kind,
                "response_name": typical.response_name,
                "system_words": typical.system_words,
            },
            "signatures": sorted({feature.signature for feature in features})[:50],
            "actions": dict(Counter(feature.action for feature in features).most_common(5)),
            "medoid": group.medoid,
            "sessions": sessions,
            "score": score(features, kind, sessions),
            "volume": volume([row.time for row in members], features),
            "seen": [members[0].time.isoformat(), members[-1].time.isoformat()],
        },
    }


def _write(
    connection: Connection,
    group: Group,
    values: Mapping[str, Any],
    found: Mapping[str, Mapping[str, Any]],
    now: datetime,
) -> bool:
    before = found.get(group.id)
    if before is None:
        row = {
            "id": group.id,
            "name": group.name,
            "policy": "specialize",
            "tag": group.tag,
            "version": 1,
            "created": now,
            "updated": now,
            **values,
        }
        if not insert_if_absent(connection, tasks, row):
            return False
        _event(connection, group.id, "task.created", _why(group, values), None, values, now)
        return True
    if all(before[name] == value for name, value in values.items()):
        return True
    change = {**values, "version": before["version"] + 1, "updated": now}
    expected = {"id": group.id, "version": before["version"]}
    if not compare_and_swap(connection, tasks, expected, change):
        return False
    promoted = before["state"] != values["state"]
    what = "task.candidate" if promoted else "task.updated"
    _event(connection, group.id, what, _why(group, values), before, values, now)
    return True


def _why(group: Group, values: Mapping[str, Any]) -> str:
    sessions = values["details"]["sessions"]
    means = "the same tag" if group.tag else "the same structure and alike prompts"
    return f"{values['size']} calls in {sessions} sessions with {means}"


def _event(
    connection: Connection,
    task: str,
    what: str,
    why: str,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any],
    now: datetime,
) -> None:
    def brief(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: values[name] for name in ("state", "signature", "radius", "size")}

    record_event(
        connection,
        actor=ACTOR,
        what=what,
        subject=task,
        why=why,
        evidence={"kind": after["details"]["kind"], "score": after["details"]["score"]["value"]},
        previous=brief(before) if before else None,
        current=brief(after),
        time=now,
    )


def _summaries(database: Database, by_call: Mapping[str, str]) -> list[TaskSummary]:
    """Task rows with their members (in the order of ``by_call``), largest first."""
    members: dict[str, list[str]] = {}
    for call_id, task in by_call.items():
        members.setdefault(task, []).append(call_id)
    with database.read() as connection:
        rows = connection.execute(select(tasks)).mappings().all()
    summaries = [
        TaskSummary(
            id=row["id"],
            name=row["name"],
            size=row["size"],
            state=row["state"],
            kind=row["details"].get("kind", "text"),
            members=tuple(members[row["id"]]),
            policy=row["policy"],
            tag=row["tag"],
            signature=row["signature"],
            details=row["details"],
            version=row["version"],
        )
        for row in rows
        if row["id"] in members
    ]
    return sorted(summaries, key=lambda task: (-task.size, task.id))
