"""The rows of the table ``tasks``: read as discovery looks at them, written with their events."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from infra.database.events import record_event
from infra.database.tables import tasks
from infra.database.writes import compare_and_swap, insert_if_absent
from infra.settings.model import Settings
from infra.tasks.joined import MERGED, PART, part_by
from trainers.discover.grouping import Group, KnownTask, Row
from trainers.discover.moves import Move
from trainers.discover.scoring import kind_of_answer, score, volume

ACTOR = "discovery"


def known_task(row: Mapping[str, Any]) -> KnownTask:
    """A row of the table ``tasks`` as grouping looks at it."""
    return KnownTask(
        row["id"],
        row["tag"],
        row["signature"],
        tuple(row["centroid"]),
        row["radius"],
        row["details"].get("tenant"),
        part_by(row["details"]),
    )


def said_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What people said of a task's calls, which every night keeps."""
    return {name: row["details"][name] for name in (MERGED, PART) if row["details"].get(name)}


def task_values(
    group: Group,
    indices: Sequence[int],
    rows: Sequence[Row],
    settings: Settings,
    before: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What a task's row says of its calls.

    Args:
        indices: of the rows that are its own, those of tasks merged into it among them.
        before: the row as it is; None for a new task.
    """
    members = [rows[index] for index in indices]
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
            **(said_of(before) if before else {}),
        },
    }


def write_task(
    connection: Connection,
    group: Group,
    values: Mapping[str, Any],
    found: Mapping[str, Mapping[str, Any]],
    now: datetime,
    actor: str = ACTOR,
) -> bool:
    """Write a task's row with its event; False when it is no longer as ``found``."""
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
        _event(connection, group.id, "task.created", _why(group, values), None, values, now, actor)
        return True
    if all(before[name] == value for name, value in values.items()):
        return True
    change = {**values, "version": before["version"] + 1, "updated": now}
    expected = {"id": group.id, "version": before["version"]}
    if not compare_and_swap(connection, tasks, expected, change):
        return False
    promoted = before["state"] != values["state"]
    what = "task.candidate" if promoted else "task.updated"
    _event(connection, group.id, what, _why(group, values), before, values, now, actor)
    return True


def _why(group: Group, values: Mapping[str, Any]) -> str:
    sessions = values["details"]["sessions"]
    means = "the same tag" if group.tag else "the same structure and alike prompts"
    return f"{values['size']} calls in {sessions} sessions with {means}"


def record_move(connection: Connection, move: Move, now: datetime) -> None:
    part = "all of its" if move.calls == move.of else f"{move.calls} of its {move.of}"
    record_event(
        connection,
        actor=ACTOR,
        what=move.what,
        subject=move.task,
        why=f"{part} calls belong to {move.to} since this discovery",
        evidence={"into": move.to, "calls": move.calls, "of": move.of},
        time=now,
    )


def record_apart(connection: Connection, task: str, into: str, now: datetime) -> None:
    """A merge that no longer holds: the two are made of different tenants' calls now."""
    record_event(
        connection,
        actor=ACTOR,
        what="task.merge_ended",
        subject=task,
        why=f"its calls and those of {into} are different tenants', so none is learned from for the other: "
        f"`nightschool tasks merge --undo {task}` lets it learn by itself",
        evidence={"into": into},
        time=now,
    )


def _event(
    connection: Connection,
    task: str,
    what: str,
    why: str,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any],
    now: datetime,
    actor: str,
) -> None:
    def brief(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: values[name] for name in ("state", "signature", "radius", "size")}

    record_event(
        connection,
        actor=actor,
        what=what,
        subject=task,
        why=why,
        evidence={"kind": after["details"]["kind"], "score": after["details"]["score"]["value"]},
        previous=brief(before) if before else None,
        current=brief(after),
        time=now,
    )
