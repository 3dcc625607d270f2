"""Reads the snapshot from the registry's tables: at once when all is new, then what changed only.

A task's row holds kilobytes of centroid that change by night at most, while routes change all day.
So the small columns that tell of a change are read for all rows, the rest for changed rows.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Row, Select, select, text
from sqlalchemy.engine import URL

from infra.calls.record import utc_now
from infra.database.data_version import DataVersion
from infra.database.open import Database
from infra.database.patience import answers_within
from infra.database.tables import adapters, api_keys, dataset_versions, rollouts, routes, tasks
from infra.prompting.confidence import MEAN
from infra.prompting.template import PromptFormat
from infra.tasks.joined import BY_SIGNATURE, PLACES, merged_into, part_by
from serving.gateway.routes import TEACHER, AdapterRoute, KeyRoute, Snapshot, TaskRoute, frame_of

logger = logging.getLogger(__name__)

LOOK_SECONDS = 3.0
"""Longest wait for PostgreSQL to say whether anything changed."""
READ_SECONDS = 30.0
"""Longest wait for the rows."""
CHUNK = 200
_KEY_COLUMNS = [api_keys.c["hash"], *(api_keys.c[name.name] for name in fields(KeyRoute))]
_SAFE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}@[0-9a-f]{8,64}")
# One row, made where the tables are: what the snapshot depends on, of every row.
_DIGEST = text(
    """
SELECT md5(concat_ws('|',
  (SELECT md5(string_agg(concat_ws(' ', id, version, updated, state), ',' ORDER BY id)) FROM tasks),
  (SELECT md5(string_agg(routes::text, ',' ORDER BY task_id)) FROM routes),
  (SELECT md5(string_agg(concat_ws(' ', name, state, threshold), ',' ORDER BY name)) FROM adapters
    WHERE name IN (SELECT champion FROM routes UNION SELECT candidate FROM routes)),
  (SELECT md5(string_agg(api_keys::text, ',' ORDER BY hash)) FROM api_keys)))
"""
)


@dataclass(frozen=True)
class _Known:
    """A task as it was composed, and what it was composed of."""

    mark: tuple[Any, ...]
    fixed: TaskRoute
    """What the task's own row says."""
    parts: tuple[Any, ...]
    route: TaskRoute


class SnapshotReader:
    """Reads one database again and again. For one thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._file = DataVersion(database) if database.is_sqlite else None
        self._token: object = None
        self._tasks: dict[str, _Known] = {}
        self._manifests: dict[str, tuple[Mapping[str, Any], str, tuple[str, ...]]] = {}
        self._terms: dict[str, tuple[float | None, float | None]] = {}

    @property
    def is_sqlite(self) -> bool:
        return self._database.is_sqlite

    @property
    def url(self) -> URL:
        return self._database.url

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, now: datetime | None = None) -> Snapshot | None:
        """The snapshot, or None when nothing that it depends on can have changed since the last.

        A task that stayed what it was is the same object as before. Raises whatever the database
        raises; the next call then reads everything that may have changed.
        """
        token = self._look()
        if token == self._token and self._token is not None:
            return None
        self._token = None
        with answers_within(READ_SECONDS), self._database.read() as connection:
            snapshot = self._read(connection, now or utc_now())
        self._token = token
        return snapshot

    def _look(self) -> object:
        # Before the rows, so that a change in between is seen by the next look.
        if self._file is not None:
            return self._file.read()
        with answers_within(LOOK_SECONDS), self._database.read() as connection:
            return connection.execute(_DIGEST).scalar_one()

    def _read(self, connection: Connection, now: datetime) -> Snapshot:
        route_rows = {row.task_id: row for row in connection.execute(select(routes))}
        named = {name for row in route_rows.values() for name in (row.champion, row.candidate)}
        known = self._read_adapters(connection, {n for n in named if n and n != TEACHER})
        self._read_terms(
            connection, {row.rollout_id for row in route_rows.values() if row.rollout_id}
        )
        marks = {
            row.id: (row.version, row.updated)
            for row in connection.execute(
                select(tasks.c.id, tasks.c.version, tasks.c.updated)
                .where(tasks.c.state != "retired")
                .order_by(tasks.c.id)
            )
        }
        changed = (
            name
            for name, mark in marks.items()
            if name not in self._tasks or self._tasks[name].mark != mark
        )
        fixed = {
            row.id: _fixed(row)
            for row in _rows(connection, select(tasks), tasks.c.id, changed)
            if row.state != "retired"
        }
        before, self._tasks = self._tasks, {}
        for name, mark in marks.items():
            if name not in fixed and name not in before:
                continue  # retired between the two reads
            task = fixed.get(name) or before[name].fixed
            self._tasks[name] = self._compose(
                mark, task, route_rows.get(name), known, before.get(name)
            )
        found = connection.execute(select(*_KEY_COLUMNS).where(api_keys.c.revoked.is_(None)))
        keys = {row.hash: KeyRoute(*row[1:]) for row in found}
        return Snapshot(tuple(known.route for known in self._tasks.values()), keys, now)

    def _read_adapters(self, connection: Connection, names: set[str]) -> dict[str, Row[Any]]:
        """Rows of these adapters; what their manifests say, which never changes, is read once."""
        columns = [column for column in adapters.c if column.name not in ("manifest",)]
        found = {
            row.name: row
            for row in _rows(connection, select(*columns), adapters.c.name, sorted(names))
        }
        self._manifests = {name: said for name, said in self._manifests.items() if name in found}
        missing = [name for name in found if name not in self._manifests]
        # Of a data set's manifest only this: it may name a hundred thousand objects.
        places = dataset_versions.c.manifest[PLACES].label("places")
        query = select(adapters.c.name, adapters.c.manifest, places).outerjoin(
            dataset_versions, dataset_versions.c.digest == adapters.c.dataset_digest
        )
        for row in _rows(connection, query, adapters.c.name, missing):
            manifest = row.manifest or {}
            score = str(manifest.get("confidence") or MEAN)
            form = dict(manifest.get("format") or {})
            self._manifests[row.name] = form, score, tuple(row.places or ())
        return found

    def _read_terms(self, connection: Connection, ids: set[str]) -> None:
        """What gateways need of the policies of open rollouts, frozen when they open."""
        self._terms = {name: terms for name, terms in self._terms.items() if name in ids}
        missing = sorted(ids - self._terms.keys())
        query = select(rollouts.c.id, rollouts.c.policy)
        for row in _rows(connection, query, rollouts.c.id, missing):
            policy = row.policy or {}
            self._terms[row.id] = (policy.get("audit_rate"), policy.get("slow_seconds"))

    def _compose(
        self,
        mark: tuple[Any, ...],
        fixed: TaskRoute,
        route: Row[Any] | None,
        known: Mapping[str, Row[Any]],
        before: _Known | None,
    ) -> _Known:
        terms = self._terms.get(route.rollout_id) if route is not None else None
        if route is None:
            parts: tuple[Any, ...] = ()
        else:
            sides = (known.get(name) for name in (route.champion, route.candidate) if name)
            parts = (
                tuple(route),
                *(tuple(side) if side is not None else None for side in sides),
                terms,
            )
        if before is not None and before.fixed is fixed and before.parts == parts:
            return _Known(mark, fixed, parts, before.route)
        made = fixed
        if route is not None:
            candidate = self._adapter(fixed.id, route.candidate, known)
            made = replace(
                fixed,
                champion=self._adapter(fixed.id, route.champion, known),
                candidate=candidate,
                stage=route.stage if candidate is not None else "none",
                weight=route.weight,
                salt=route.salt,
                rollout_id=route.rollout_id,
                version=route.version,
                updated=route.updated,
                audit_rate=terms[0] if terms else None,
                slow_seconds=terms[1] if terms else None,
            )
        return _Known(mark, fixed, parts, made)

    def _adapter(
        self, task_id: str, name: str | None, known: Mapping[str, Row[Any]]
    ) -> AdapterRoute | None:
        """The adapter if it may answer this task at all; else None, which is the teacher."""
        if name is None or name == TEACHER:
            return None
        row = known.get(name)
        if row is None or row.task_id != task_id or row.state != "registered":
            logger.warning("route of task %s names %s, which may not answer it", task_id, name)
            return None
        if not _SAFE_NAME.fullmatch(name):
            logger.warning("adapter name of task %s is not task@digest: not served", task_id)
            return None
        form, score, learned = self._manifests.get(name, ({}, MEAN, ()))
        try:
            PromptFormat.from_dict(form)
        except (ValueError, TypeError) as error:
            logger.warning("adapter %s is not served: %s", name, error)
            return None
        return AdapterRoute(name, row.digest, row.location, form, row.threshold, score, learned)


def read_snapshot(database: Database, now: datetime | None = None) -> Snapshot:
    """The snapshot as the database has it now, all of it. Raises whatever the database raises."""
    reader = SnapshotReader(database)
    try:
        snapshot = reader.read(now)
    finally:
        reader.close()
    assert snapshot is not None  # the first look always reads
    return snapshot


def _fixed(row: Row[Any]) -> TaskRoute:
    details = row.details or {}
    return TaskRoute(
        id=row.id,
        name=row.name,
        policy=row.policy,
        tag=row.tag,
        tenant=details.get("tenant"),
        signature=row.signature,
        frame=_frame(details.get("structure")),
        centroid=tuple(row.centroid or ()),
        radius=row.radius,
        merged_into=merged_into(details),
        by_signature=part_by(details) == BY_SIGNATURE,
    )


def _frame(structure: Any) -> str:
    if not isinstance(structure, Mapping) or "response_kind" not in structure:
        return ""
    return frame_of(
        list(structure.get("tools") or []),
        str(structure["response_kind"]),
        str(structure.get("response_name") or ""),
    )


def _rows(
    connection: Connection, query: Select[Any], column: Any, wanted: Iterable[str]
) -> Iterator[Row[Any]]:
    """The rows whose ``column`` is one of ``wanted``, a bounded number at a time."""
    names = iter(wanted)
    while chunk := list(islice(names, CHUNK)):
        yield from connection.execute(query.where(column.in_(chunk)))
