"""The registry's view of tasks: their state and how far an operator lets them go.

Discovery makes tasks; this changes only their ``state`` and ``policy``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select

from infra.calls.record import utc_now
from infra.database.events import record_event
from infra.database.tables import tasks
from infra.database.writes import compare_and_swap
from serving.registry.errors import RegistryError, UnknownTask
from serving.registry.records import Task


def read_task(connection: Connection, task_id: str, *, lock: bool = False) -> Task:
    """Raises UnknownTask.

    Args:
        lock: keep other writers of this task out until the transaction ends. It serializes what
            rests on more than one row on PostgreSQL; SQLite's transactions are serial already.
    """
    query = select(tasks).where(tasks.c.id == task_id)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise UnknownTask(f"no task {task_id!r}: `nightschool tasks` lists those there are")
    return Task.from_row(row)


def read_tasks(connection: Connection, state: str | None = None) -> list[Task]:
    query = select(tasks).order_by(tasks.c.id)
    if state is not None:
        query = query.where(tasks.c.state == state)
    return [Task.from_row(row) for row in connection.execute(query)]


def change_task(
    connection: Connection,
    current: Task,
    changes: dict[str, Any],
    *,
    what: str,
    actor: str,
    why: str,
    now: datetime,
    said: dict[str, Any] | None = None,
    says: dict[str, Any] | None = None,
) -> Task:
    """Change ``state`` or ``policy``, with an event; no change leaves everything as it is.

    Args:
        said, says: what the event tells of it before and after, where that is less than ``changes``.
    """
    previous = {name: getattr(current, name) for name in changes}
    if previous == changes:
        return current
    expected = {"id": current.id, "version": current.version}
    values = {**changes, "version": current.version + 1, "updated": now}
    if not compare_and_swap(connection, tasks, expected, values):
        raise RegistryError(f"task {current.id} changed meanwhile: try again")
    record_event(
        connection,
        actor=actor,
        what=what,
        subject=current.id,
        why=why,
        previous=said or previous,
        current=says or changes,
        time=now,
    )
    return read_task(connection, current.id)


def override_task(
    connection: Connection,
    task_id: str,
    *,
    name: str | None,
    pinned: bool | None,
    actor: str,
    why: str,
    now: datetime | None,
) -> Task:
    """What a person says of a task. Raises UnknownTask, ValueError for another name."""
    if name is not None and not (0 < len(name) <= 200 and name.isprintable() and name.strip()):
        raise ValueError("a task's name has 1 to 200 characters that can be printed")
    task = read_task(connection, task_id, lock=True)
    changes: dict[str, Any] = {}
    if name is not None:
        changes["name"] = name
    if pinned is not None:
        changes["details"] = {**task.details, "pinned": pinned}
    what = "task.renamed" if name is not None else "task.pinned"
    return change_task(
        connection, task, changes, what=what, actor=actor, why=why, now=now or utc_now()
    )
