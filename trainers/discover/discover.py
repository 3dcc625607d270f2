"""Discovery: read what was ingested, decide the tasks, write them and who belongs to them.

Effects, in order: the assignment file (named by its content), then one transaction with the task
rows, their events and the event that points at the assignment file. Killed before the transaction:
nothing happened. After it, the same input again changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select

from infra.calls.record import utc_now
from infra.database.generations import TASKS, advance, generation
from infra.database.open import Database
from infra.database.tables import tasks
from infra.objects.store import ObjectMissing, ObjectStore
from infra.settings.model import Settings
from infra.tasks.joined import home, merged_into, part_of
from infra.tasks.signature import SIGNATURE_VERSION
from trainers.discover import assignments
from trainers.discover.grouping import Group, Row, form_groups
from trainers.discover.moves import Move, moves
from trainers.discover.rows import (
    ACTOR,
    known_task,
    record_apart,
    record_move,
    said_of,
    task_values,
    write_task,
)
from trainers.ingest.features import FEATURE_COLUMNS, from_row
from trainers.ingest.reading import CallFile, call_files, read_columns

DISCOVERY_VERSION = 4
MAX_ATTEMPTS = 5


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
    rows: list[Row] | None = None
    for _ in range(MAX_ATTEMPTS):
        counted, found = _snapshot(database, now)
        source = _source_digest(files, settings, found)
        latest = assignments.latest(database)
        if latest is not None and latest.source == source:
            with suppress(assignments.AssignmentsCorrupt, ObjectMissing):
                return _summaries(database, assignments.read(store, latest))
        if rows is None:
            rows = read_rows(store, files, settings.discovery.max_calls)
        groups = form_groups(rows, [known_task(row) for row in found.values()], settings.discovery)
        into, apart = _into(found, groups, settings.discovery.share_between_tenants)
        by_call = {
            rows[index].id: home(group.id, into) for group in groups for index in group.members
        }
        moved = _moves(store, latest, by_call, found, into)
        pointer = replace(assignments.write(store, by_call, source), places=_places(groups, into))
        decided = _Decided(rows, groups, into, apart, moved, pointer)
        if _commit(database, settings, decided, found, counted, now):
            return _summaries(database, by_call)
    raise DiscoveryContended(
        f"the tasks changed {MAX_ATTEMPTS} times while they were being decided: run discovery again"
    )


def _source_digest(
    files: Sequence[CallFile], settings: Settings, found: Mapping[str, Mapping[str, Any]]
) -> str:
    known: dict[str, Any] = {
        "files": sorted(file.key for file in files),
        "settings": settings.discovery.model_dump(mode="json"),
        "versions": [DISCOVERY_VERSION, SIGNATURE_VERSION],
    }
    said = {name: kept for name, row in found.items() if (kept := said_of(row))}
    if said:
        known["said"] = said  # by people: which tasks are one, or are apart
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def read_rows(store: ObjectStore, files: Sequence[CallFile], limit: int) -> list[Row]:
    """The newest ``limit`` calls of the files as discovery looks at them, oldest first."""
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


def _snapshot(database: Database, now: datetime) -> tuple[int, dict[str, dict[str, Any]]]:
    with database.begin() as connection:
        counted = generation(connection, TASKS, now)
        rows = connection.execute(select(tasks).order_by(tasks.c.id)).mappings().all()
    return counted, {row["id"]: dict(row) for row in rows}


def _into(
    found: Mapping[str, Mapping[str, Any]], groups: Sequence[Group], shared: bool
) -> tuple[dict[str, str], dict[str, str]]:
    """Merged task to its home: the merges that hold, and those that tonight's calls end.

    What two tenants called when a merge was said may have been everybody's: once it is theirs, each keeps
    its own calls, whatever was said.
    """
    said = {name: merged_into(row["details"]) for name, row in found.items()}
    merged = {name: task for name, task in said.items() if task is not None and task in found}
    if shared:
        return merged, {}
    before = {name: row["details"].get("tenant") for name, row in found.items()}
    tenants = {**before, **{group.id: group.tenant for group in groups}}
    held = {name: task for name, task in merged.items() if tenants[name] == tenants[task]}
    ended = {
        name: task
        for name, task in merged.items()
        if name not in held and before[name] == before[task]
    }
    return held, ended


def _places(groups: Sequence[Group], into: Mapping[str, str]) -> dict[str, list[str]]:
    """Task id to the tasks merged into it that have calls."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for group in groups:
        if group.id in into and group.members:
            found[home(group.id, into)].append(group.id)
    return dict(found)


def _moves(
    store: ObjectStore,
    latest: assignments.Assignments | None,
    by_call: Mapping[str, str],
    found: Mapping[str, Mapping[str, Any]],
    into: Mapping[str, str],
) -> list[Move]:
    """What discovery itself took apart or put together since the last one."""
    if latest is None:
        return []
    try:
        before = assignments.read(store, latest)
    except (assignments.AssignmentsCorrupt, ObjectMissing):
        return []
    parts = {(part_of(row["details"]), name) for name, row in found.items()}
    before = {call: home(task, into) for call, task in before.items()}
    return [move for move in moves(before, by_call) if (move.task, move.to) not in parts]


@dataclass(frozen=True)
class _Decided:
    rows: Sequence[Row]
    groups: Sequence[Group]
    into: Mapping[str, str]
    apart: Mapping[str, str]
    moved: Sequence[Move]
    pointer: assignments.Assignments


def _commit(
    database: Database,
    settings: Settings,
    decided: _Decided,
    found: Mapping[str, Mapping[str, Any]],
    counted: int,
    now: datetime,
) -> bool:
    """One transaction; False (and no effect) when a row is no longer what it was."""
    rows, into = decided.rows, decided.into
    guests: defaultdict[str, list[int]] = defaultdict(list)
    for group in decided.groups:
        if group.id in into:
            guests[home(group.id, into)] += group.members
    try:
        with database.begin() as connection:
            if not advance(connection, TASKS, now, counted):
                raise _Stale
            for group in decided.groups:
                members = sorted([*group.members, *guests[group.id]])
                values = task_values(group, members, rows, settings, found.get(group.id))
                if not write_task(connection, group, values, found, now):
                    raise _Stale
            for name, task in decided.apart.items():
                record_apart(connection, name, task, now)
            for move in decided.moved:
                record_move(connection, move, now)
            assignments.point(connection, decided.pointer, ACTOR, len(rows), now)
    except _Stale:
        return False
    return True


class _Stale(Exception):
    """Rolls the transaction back: something changed since it was read."""


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
