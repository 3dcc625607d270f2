"""One task taken apart because a person says so: by the structure of its calls, or by what they ask.

One part (that of the task's own structure, or the largest) keeps its id, and with it adapter and route;
the others become tasks of their own, which the teacher answers. Parts by cluster are pinned where the
split put them, so that no later night moves the border.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
from sqlalchemy import Connection

from infra.database.events import record_event
from infra.database.generations import TASKS, advance
from infra.database.open import Database
from infra.objects.store import ObjectStore
from infra.settings.model import Settings
from infra.tasks.embedding import embed
from infra.tasks.joined import BY_CLUSTER, BY_SIGNATURE, PART
from trainers.discover import assignments
from trainers.discover.clusters import apart
from trainers.discover.discover import read_rows
from trainers.discover.grouping import (
    LONE_CEILING,
    MIN_TAGGED_CALLS,
    SPLIT_CEILING,
    SPLIT_FLOOR,
    Group,
    Row,
    common_action,
)
from trainers.discover.naming import task_id
from trainers.discover.rows import task_values, write_task
from trainers.discover.typical import typical_of
from trainers.ingest.reading import call_files

By = Literal["signature", "cluster"]


class CannotSplit(Exception):
    """The task is one as it stands; the message says why and what to do instead."""


@dataclass(frozen=True)
class Proposal:
    """What would come of a split. The first part keeps the task's id."""

    task: Mapping[str, Any]
    """The task's row as it was read."""
    by: By
    rows: tuple[Row, ...]
    groups: tuple[Group, ...]

    def sizes(self) -> list[tuple[str, int, int, str]]:
        """(id, calls, sessions, words of a typical prompt) of each part."""
        return [
            (
                group.id,
                len(group.members),
                len({self.rows[index].session for index in group.members}),
                group.medoid,
            )
            for group in self.groups
        ]


def task_rows(
    store: ObjectStore, database: Database, settings: Settings, task_id: str
) -> list[Row]:
    """The calls that the latest discovery gave to a task. Raises AssignmentsCorrupt, ObjectMissing."""
    pointer = assignments.latest(database)
    if pointer is None:
        return []
    members = {c for c, task in assignments.read(store, pointer).items() if task == task_id}
    limit = settings.discovery.max_calls
    return [
        row for row in read_rows(store, call_files(database, limit), limit) if row.id in members
    ]


def propose(
    task: Mapping[str, Any],
    rows: Sequence[Row],
    by: By,
    settings: Settings,
    parts: int | None = None,
) -> Proposal:
    """The parts of a task by its calls.

    Args:
        task: its row in the table ``tasks``.
        rows: its calls, oldest first.
        parts: how many, by cluster; None: as many as stand out.

    Raises CannotSplit.
    """
    name = task["id"]
    # What carries the task's own id as its tag stays with it in any case.
    rows = [
        row
        for row in rows
        if row.tag == task["tag"] and (row.tag or row.features.signature == task["signature"])
    ]
    split = (
        _by_signature(task, rows)
        if by == BY_SIGNATURE
        else _by_cluster(task, rows, settings, parts)
    )
    if len(split) < 2:
        raise CannotSplit(
            f"{len(rows)} calls of {name} fall into one part by {by}: nothing to split"
        )
    groups = [
        _group(task, rows, members, by, settings, keeps=number == 0)
        for number, members in enumerate(split)
    ]
    return Proposal(task, by, tuple(rows), tuple(groups))


def apply(
    connection: Connection,
    proposal: Proposal,
    settings: Settings,
    *,
    actor: str,
    why: str,
    now: datetime,
) -> bool:
    """Write the parts in the caller's transaction; False when a row changed since it was read."""
    task, first = proposal.task, proposal.groups[0]
    pinned = proposal.by == BY_CLUSTER
    for group in proposal.groups:
        before = task if group is first else None
        values = task_values(group, group.members, proposal.rows, settings, before)
        values |= {"centroid": list(group.centre.centroid), "radius": group.centre.radius}
        values["details"] |= {"pinned": pinned or values["details"]["pinned"]}
        if group is not first:
            values["details"][PART] = {"of": task["id"], "by": proposal.by}
            values |= {"policy": task["policy"], "approval": task["approval"]}
        if not write_task(connection, group, values, {first.id: task}, now, actor=actor):
            return False
    record_event(
        connection,
        actor=actor,
        what="task.split",
        subject=task["id"],
        why=why,
        evidence={
            "by": proposal.by,
            "parts": {name: calls for name, calls, _, _ in proposal.sizes()},
        },
        time=now,
    )
    return advance(connection, TASKS, now)


def _by_signature(task: Mapping[str, Any], rows: Sequence[Row]) -> list[list[int]]:
    if not task["tag"]:
        raise CannotSplit(
            f"all calls of {task['id']} have one structure, by which it was found: split it by cluster"
        )
    found: defaultdict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        found[row.features.signature].append(index)
    # What was split off before it stays with the task's own structure.
    order = sorted(found, key=lambda s: (s != task["signature"], -len(found[s]), s))
    split = [found[signature] for signature in order]
    few = [index for members in split[1:] if len(members) < MIN_TAGGED_CALLS for index in members]
    parts = [members for members in split[1:] if len(members) >= MIN_TAGGED_CALLS]
    return [sorted([*(split[0] if split else []), *few]), *parts]


def _by_cluster(
    task: Mapping[str, Any], rows: Sequence[Row], settings: Settings, parts: int | None
) -> list[list[int]]:
    if task["tag"]:
        raise CannotSplit(
            f"{task['id']} is what its callers tag {task['tag']!r}, and a tag always wins: "
            "split it by signature, or let them send two tags"
        )
    points: defaultdict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        points[row.features.prompt].append(index)
    order = sorted(points)
    actions = [common_action([rows[index].features for index in points[text]]) for text in order]
    dimensions = settings.discovery.dimensions
    labels = apart(
        embed(order, dimensions),
        embed(actions, dimensions),
        np.array([len(points[text]) for text in order], dtype=np.int64),
        parts,
    )
    split: defaultdict[int, list[int]] = defaultdict(list)
    for text, label in zip(order, labels, strict=True):
        split[int(label)] += points[text]
    return [sorted(split[label]) for label in sorted(split)]


def _group(
    task: Mapping[str, Any],
    rows: Sequence[Row],
    members: Sequence[int],
    by: By,
    settings: Settings,
    *,
    keeps: bool,
) -> Group:
    features = [rows[index].features for index in members]
    vectors = embed([feature.prompt for feature in features], settings.discovery.dimensions)
    floor, ceiling = SPLIT_FLOOR, SPLIT_CEILING
    if by == BY_SIGNATURE:
        floor, ceiling = settings.discovery.radius, LONE_CEILING
    typical = typical_of(features, vectors, floor=floor, ceiling=ceiling, tag=None, split=True)
    name = f"{task['tag']}: {typical.name}"[:200] if task["tag"] else typical.name
    what = typical.signature if by == BY_SIGNATURE else typical.prompt
    return Group(
        id=task["id"] if keeps else task_id(typical.words, f"part of {task['id']}:{what}"),
        name=task["name"] if keeps else name,
        tag=task["tag"],
        signature=task["signature"] if keeps else typical.signature,
        centre=typical.centre,
        medoid=typical.medoid,
        members=tuple(members),
        known=keeps,
        tenant=task["details"].get("tenant"),
    )
