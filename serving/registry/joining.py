"""One task of two, and two again: what a person says, at once for the gateways and for every night.

The merged task stays as a place where its calls are recognised (``infra.tasks.joined``). The teacher
answers them until an adapter of the other task has learned from them: its own adapters answer no more,
and none of the other task's was judged on such calls.

Every function works in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import Connection

from infra.database.events import record_event
from infra.database.generations import TASKS, advance
from infra.tasks.joined import MERGED, merged_into
from serving.registry.errors import CannotJoin
from serving.registry.openings import read_rollouts
from serving.registry.records import TEACHER, Task
from serving.registry.routes import read_route, write_route
from serving.registry.task_rows import change_task, read_task, read_tasks
from serving.rollout.machine import OPEN


def check_settled(connection: Connection, task_ids: Iterable[str]) -> None:
    """Raises CannotJoin while one of the tasks has an open rollout: its evidence is of the old calls."""
    for task_id in task_ids:
        for rollout in read_rollouts(connection, states=OPEN, task_id=task_id):
            raise CannotJoin(
                f"{task_id} has an open rollout, whose evidence would be of two kinds of calls: wait, "
                f"or `nightschool rollouts abort {rollout.id}` first"
            )


def check_joinable(connection: Connection, kept: Task, gone: Task) -> None:
    """Raises CannotJoin unless the calls of ``gone`` may become those of ``kept``."""
    if kept.id == gone.id:
        raise CannotJoin(f"{kept.id} cannot be merged with itself: name two tasks")
    for task in (kept, gone):
        into = merged_into(task.details)
        if into is not None and not (task is gone and into == kept.id):
            raise CannotJoin(
                f"{task.id} is merged into {into} already: name {into}, "
                f"or `nightschool tasks merge --undo {task.id}` first"
            )
    if kept.details.get("tenant") != gone.details.get("tenant"):
        raise CannotJoin(
            f"{kept.id} and {gone.id} are made of different tenants' calls, and no tenant's calls are "
            "learned from for another ([discovery] share_between_tenants)"
        )
    check_settled(connection, (kept.id, gone.id))


def join(
    connection: Connection, kept_id: str, gone_id: str, *, actor: str, why: str, now: datetime
) -> Task:
    """Make the calls of ``gone_id`` those of ``kept_id``; the merged task. The same again: no change.

    Raises UnknownTask, CannotJoin, RegistryError when a row changed meanwhile.
    """
    # Always in this order: two at once cannot block each other.
    locked = {n: read_task(connection, n, lock=True) for n in sorted({kept_id, gone_id})}
    kept, gone = locked[kept_id], locked[gone_id]
    check_joinable(connection, kept, gone)
    if merged_into(gone.details) == kept_id:
        return gone
    route = read_route(connection, gone_id)
    merged = _merged(connection, gone, kept_id, actor=actor, why=why, now=now)
    if route.champion != TEACHER:
        write_route(
            connection,
            route,
            {"champion": TEACHER},
            fence=None,
            actor=actor,
            what="route.merged",
            why=f"its calls are those of {kept_id}",
            now=now,
        )
    record_event(
        connection,
        actor=actor,
        what="task.took_in",
        subject=kept_id,
        why=why,
        evidence={"task": gone_id, "calls": gone.size},
        time=now,
    )
    return merged


def separate(connection: Connection, gone_id: str, *, actor: str, why: str, now: datetime) -> Task:
    """Let a merged task stand by itself again, answered by the teacher; the task.

    Raises UnknownTask, CannotJoin when it is not merged or a task that it counts as has an open rollout.
    """
    known = _way_home(connection, gone_id)
    for name in sorted(known):
        read_task(connection, name, lock=True)
    _, *above = way = _way_home(connection, gone_id)
    if way != known:
        raise CannotJoin(f"{gone_id} or its home was merged or separated meanwhile: try again")
    if not above:
        raise CannotJoin(f"{gone_id} is not merged into another task")
    check_settled(connection, above)
    gone = read_task(connection, gone_id)
    return _merged(connection, gone, None, actor=actor, why=why, now=now)


def places_of(connection: Connection, task_id: str) -> list[Task]:
    """The tasks merged into this one, and into those."""
    into: dict[str, list[Task]] = {}
    for task in read_tasks(connection):
        target = merged_into(task.details)
        if target is not None:
            into.setdefault(target, []).append(task)
    found: list[Task] = []
    left = [task_id]
    while left:
        inside = into.pop(left.pop(), [])
        found += inside
        left += [task.id for task in inside]
    return found


def _way_home(connection: Connection, task_id: str) -> list[str]:
    """The task, the one that it is merged into, and so on: its home is the last."""
    way = [task_id]
    while (into := merged_into(read_task(connection, way[-1]).details)) and into not in way:
        way.append(into)
    return way


def _merged(
    connection: Connection, task: Task, into: str | None, *, actor: str, why: str, now: datetime
) -> Task:
    details = {name: value for name, value in task.details.items() if name != MERGED}
    if into is not None:
        details[MERGED] = into
    changed = change_task(
        connection,
        task,
        {"details": details},
        what="task.merged" if into is not None else "task.separated",
        actor=actor,
        why=why,
        now=now,
        said={MERGED: merged_into(task.details)},
        says={MERGED: into},
    )
    advance(connection, TASKS, now)
    return changed
