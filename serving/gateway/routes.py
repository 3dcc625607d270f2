"""The routes as one frozen snapshot: read from the registry, kept on disk, served from memory.

The gateway answers from a snapshot alone. It needs the database only to learn of changes, and its
copy on disk lets it start with everything else down.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, Row, func, select

from infra.calls.record import utc_now
from infra.database.open import Database
from infra.database.tables import adapters, api_keys, rollouts, routes, tasks
from infra.files import write_atomically
from infra.prompting.template import PromptFormat

logger = logging.getLogger(__name__)

Stage = Literal["none", "shadow", "canary"]
TEACHER = "teacher"
FILE_VERSION = 1
_SAFE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}@[0-9a-f]{8,64}")


class SnapshotError(Exception):
    """The snapshot file cannot be used; the message says why."""


@dataclass(frozen=True)
class AdapterRoute:
    """What the gateway must know of an adapter to serve it."""

    name: str
    digest: str
    location: str
    """Key prefix in the object store."""
    format: Mapping[str, Any]
    """PromptFormat as a dict."""
    threshold: float | None
    """Least confidence that is shown; None: every answer that passes the checks."""

    @property
    def prompt_format(self) -> PromptFormat:
        return PromptFormat.from_dict(self.format)

    def knows(self, *, same_signature: bool, same_frame: bool) -> bool:
        """Whether a call's structure is one that the adapter was trained on.

        What it was trained without must be what it has learnt by heart: a dropped system prompt
        is vouched for by the signature alone, dropped tools or response format by their names.

        Args:
            same_signature: the call has the task's signature.
            same_frame: it has the task's tools and response format.
        """
        form = self.prompt_format
        if same_signature:
            return True
        return not form.drop_system and (
            same_frame or not (form.drop_tools or form.drop_response_format)
        )


@dataclass(frozen=True)
class TaskRoute:
    """One task: how calls are recognised as its own, and who answers them."""

    id: str
    name: str = ""
    policy: str = "specialize"
    tag: str | None = None
    tenant: str | None = None
    """Only calls of this tenant; None: of all."""
    signature: str = ""
    frame: str = ""
    """Its tools and response format, see ``frame_of``; empty when not known."""
    centroid: tuple[float, ...] = ()
    radius: float = 0.0
    """Cosine distance that still belongs."""
    champion: AdapterRoute | None = None
    """None: the teacher."""
    candidate: AdapterRoute | None = None
    stage: Stage = "none"
    weight: float = 0.0
    salt: str = ""
    rollout_id: str | None = None
    version: int = 0
    updated: datetime | None = None
    """When the route was last changed or tended."""
    audit_rate: float | None = None
    """Of the open rollout's policy; None: the gateway's own."""

    def adapters(self) -> tuple[AdapterRoute, ...]:
        """Those the engine must hold: none for a task that is left to the teacher.

        A candidate is among them before its first stage: it is exposed once it is loaded.
        """
        if self.policy == "teacher":
            return ()
        return tuple(adapter for adapter in (self.champion, self.candidate) if adapter is not None)


@dataclass(frozen=True)
class Snapshot:
    tasks: tuple[TaskRoute, ...] = ()
    tenants: Mapping[str, str] = field(default_factory=dict)
    """API key hash to tenant, without revoked keys."""
    taken: datetime | None = None
    """When the database was last read; None: never."""

    def adapters(self) -> dict[str, AdapterRoute]:
        """Every adapter that some route names, by name."""
        return {adapter.name: adapter for task in self.tasks for adapter in task.adapters()}

    def age_seconds(self, now: datetime | None = None) -> float | None:
        if self.taken is None:
            return None
        return max(0.0, ((now or utc_now()) - self.taken).total_seconds())

    def seen_again(self, now: datetime) -> Snapshot:
        return replace(self, taken=now)


def read_token(database: Database) -> tuple[Any, ...]:
    """A cheap value that differs whenever a snapshot read now would differ."""
    with database.read() as connection:
        return _token(connection)


def read_snapshot(database: Database, now: datetime | None = None) -> Snapshot:
    """The snapshot as the database has it. Raises whatever the database raises."""
    with database.read() as connection:
        known = {
            row.name: row
            for row in connection.execute(
                select(adapters).where(
                    adapters.c.name.in_(select(routes.c.champion))
                    | adapters.c.name.in_(select(routes.c.candidate))
                )
            )
        }
        policies = {
            row.id: row.policy
            for row in connection.execute(
                select(rollouts.c.id, rollouts.c.policy).where(
                    rollouts.c.id.in_(select(routes.c.rollout_id))
                )
            )
        }
        found = connection.execute(
            select(tasks, *(column.label(f"route_{column.name}") for column in routes.c))
            .outerjoin(routes, routes.c.task_id == tasks.c.id)
            .where(tasks.c.state != "retired")
            .order_by(tasks.c.id)
        )
        rows = [_task(row, known, policies) for row in found]
        keys = connection.execute(
            select(api_keys.c.hash, api_keys.c.tenant).where(api_keys.c.revoked.is_(None))
        )
        tenants = {row.hash: row.tenant for row in keys}
        return Snapshot(tuple(rows), tenants, now or utc_now())


def save_snapshot(snapshot: Snapshot, path: Path) -> None:
    """Write atomically: a reader sees the old file or the new one, whole. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = {"version": FILE_VERSION, **asdict(snapshot)}
    write_atomically(path, json.dumps(body, default=_jsonable))


def load_snapshot(path: Path) -> Snapshot | None:
    """The snapshot on disk, or None when there is none. Raises SnapshotError when it is damaged."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body.get("version") != FILE_VERSION:
            raise SnapshotError(f"{path} is of another release: it is left out")
        return Snapshot(
            tasks=tuple(_task_from_json(value) for value in body["tasks"]),
            tenants=dict(body["tenants"]),
            taken=_time(body["taken"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise SnapshotError(
            f"{path} cannot be read ({type(error).__name__}): it is left out"
        ) from error


def _token(connection: Connection) -> tuple[Any, ...]:
    named = adapters.c.name.in_(select(routes.c.champion)) | adapters.c.name.in_(
        select(routes.c.candidate)
    )
    queries = (
        select(tasks.c.id, tasks.c.version, tasks.c.updated).order_by(tasks.c.id),
        select(routes.c.task_id, routes.c.version, routes.c.updated).order_by(routes.c.task_id),
        select(adapters.c.name, adapters.c.state, adapters.c.threshold)
        .where(named)
        .order_by(adapters.c.name),
        select(func.count(), func.count(api_keys.c.revoked), func.max(api_keys.c.created)),
    )
    return tuple(tuple(map(tuple, connection.execute(query))) for query in queries)


def _task(
    row: Row[Any], known: Mapping[str, Row[Any]], policies: Mapping[str, Mapping[str, Any]]
) -> TaskRoute:
    details = row.details or {}
    task = TaskRoute(
        id=row.id,
        name=row.name,
        policy=row.policy,
        tag=row.tag,
        tenant=details.get("tenant"),
        signature=row.signature,
        frame=_frame(details.get("structure")),
        centroid=tuple(row.centroid or ()),
        radius=row.radius,
    )
    if row.route_task_id is None:
        return task
    policy = policies.get(row.route_rollout_id) or {}
    candidate = _adapter(row.id, row.route_candidate, known)
    return replace(
        task,
        champion=_adapter(row.id, row.route_champion, known),
        candidate=candidate,
        stage=row.route_stage if candidate is not None else "none",
        weight=row.route_weight,
        salt=row.route_salt,
        rollout_id=row.route_rollout_id,
        version=row.route_version,
        updated=row.route_updated,
        audit_rate=policy.get("audit_rate"),
    )


def frame_of(tools: Sequence[str], response_kind: str, response_name: str) -> str:
    """What a call asks for apart from its text: tool names and response format, as one string."""
    return json.dumps([sorted(tools), response_kind, response_name])


def _frame(structure: Any) -> str:
    if not isinstance(structure, Mapping) or "response_kind" not in structure:
        return ""
    return frame_of(
        list(structure.get("tools") or []),
        str(structure["response_kind"]),
        str(structure.get("response_name") or ""),
    )


def _adapter(task_id: str, name: str | None, known: Mapping[str, Row[Any]]) -> AdapterRoute | None:
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
    form = (row.manifest or {}).get("format") or {}
    try:
        PromptFormat.from_dict(form)
    except (ValueError, TypeError) as error:
        logger.warning("adapter %s is not served: %s", name, error)
        return None
    return AdapterRoute(name, row.digest, row.location, dict(form), row.threshold)


def _task_from_json(value: Mapping[str, Any]) -> TaskRoute:
    made = dict(value)
    for side in ("champion", "candidate"):
        made[side] = AdapterRoute(**made[side]) if made[side] else None
    return TaskRoute(
        **{**made, "centroid": tuple(made["centroid"]), "updated": _time(made["updated"])}
    )


def _time(value: str | None) -> datetime | None:
    return datetime.fromisoformat(value).astimezone(UTC) if value else None


def _jsonable(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(type(value).__name__)
