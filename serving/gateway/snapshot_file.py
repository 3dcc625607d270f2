"""The snapshot's copy on local disk: a gateway that starts with everything else down has it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from infra.files import write_atomically
from serving.gateway.routes import AdapterRoute, KeyRoute, Snapshot, TaskRoute

FILE_VERSION = 2
_READ = (1, 2)
_TASK_FIELDS = tuple(field.name for field in fields(TaskRoute))


class SnapshotError(Exception):
    """The snapshot file cannot be used; the message says why."""


class SnapshotFile:
    """Writes snapshots; a task that stayed what it was is not encoded again.

    With a thousand tasks the text is ten megabytes of centroids, of which a route change touches one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._encoded: dict[str, tuple[TaskRoute, bytes]] = {}

    def save(self, snapshot: Snapshot) -> None:
        """Write atomically: a reader sees the old file or the new one, whole. Raises OSError."""
        before = self._encoded
        self._encoded = {}
        for task in snapshot.tasks:
            known = before.get(task.id)
            if known is None or known[0] is not task:
                known = (task, orjson.dumps(_task_to_json(task)))
            self._encoded[task.id] = known
        rest = {
            "version": FILE_VERSION,
            "taken": snapshot.taken,
            "keys": {name: asdict(key) for name, key in snapshot.keys.items()},
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, self._pieces(orjson.dumps(rest)))

    def _pieces(self, rest: bytes) -> Iterator[bytes]:
        yield rest[:-1] + b',"tasks":['
        for number, (_, encoded) in enumerate(self._encoded.values()):
            yield b",\n" + encoded if number else encoded
        yield b"]}"


def load_snapshot(path: Path) -> Snapshot | None:
    """The snapshot on disk, or None when there is none. Raises SnapshotError when it is damaged."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body.get("version") not in _READ:
            raise SnapshotError(f"{path} is of another release: it is left out")
        return Snapshot(
            tasks=tuple(_task_from_json(value) for value in body["tasks"]),
            keys=_keys_from_json(body),
            taken=_time(body["taken"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise SnapshotError(
            f"{path} cannot be read ({type(error).__name__}): it is left out"
        ) from error


def _task_to_json(task: TaskRoute) -> dict[str, Any]:
    value = {name: getattr(task, name) for name in _TASK_FIELDS}
    for side in ("champion", "candidate"):
        if value[side] is not None:
            value[side] = asdict(value[side])
    return value


def _task_from_json(value: Mapping[str, Any]) -> TaskRoute:
    made = dict(value)
    for side in ("champion", "candidate"):
        made[side] = _adapter_from_json(made[side]) if made[side] else None
    task = TaskRoute(**{**made, "centroid": tuple(made["centroid"])})
    return replace(task, updated=_time(made["updated"]))


def _adapter_from_json(value: Mapping[str, Any]) -> AdapterRoute:
    return AdapterRoute(**{**value, "learned": tuple(value.get("learned", ()))})


def _keys_from_json(body: Mapping[str, Any]) -> dict[str, KeyRoute]:
    if body["version"] == 1:
        # Of a release before roles: the least that a key may do, until the database is read.
        return {name: KeyRoute(str(tenant)) for name, tenant in body["tenants"].items()}
    return {
        name: KeyRoute(**{**key, "expires": _time(key["expires"])})
        for name, key in body["keys"].items()
    }


def _time(value: str | None) -> datetime | None:
    return datetime.fromisoformat(value).astimezone(UTC) if value else None
