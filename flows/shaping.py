"""What a person says of which calls make a task: two tasks are one, one task is several.

A dry run tells what would come of it. Both count at once for the gateways and for every later night.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, select

from flows.wiring import Context
from infra.calls.record import utc_now
from infra.database.tables import tasks
from infra.tasks.joined import merged_into
from serving.registry import joining
from serving.registry.errors import CannotJoin
from serving.registry.records import TEACHER, Task
from serving.registry.task_rows import read_task
from trainers.discover.parts import CannotSplit, Proposal, apply, propose, task_rows

SplitBy = Literal["tag", "signature", "cluster"]


@dataclass(frozen=True)
class Part:
    """A task as it would be, or is, afterwards."""

    task: str
    calls: int
    sessions: int | None
    answered_by: str
    typical: str

    def row(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "calls": self.calls,
            "sessions": self.sessions,
            "answered by": self.answered_by,
            "e.g.": self.typical,
        }


def merge(
    context: Context, kept: str, gone: list[str], *, actor: str, why: str, dry_run: bool
) -> list[Part]:
    """Make the calls of ``gone`` those of ``kept``; the task and its places afterwards.

    Raises UnknownTask, CannotJoin.
    """
    with context.database.read() as connection:
        task = read_task(connection, kept)
        others = [read_task(connection, name) for name in dict.fromkeys(gone)]
        for other in others:
            joining.check_joinable(connection, task, other)
        places = joining.places_of(connection, kept)
        known = {place.id for place in places}
        more = [other for other in others if other.id not in known]
        for other in more:
            places += [other, *joining.places_of(connection, other.id)]
    if not dry_run:
        for other in others:
            context.registry.merge_task(kept, other.id, actor=actor, why=why)
    champion = context.registry.route(kept).champion
    waiting = f"{TEACHER}, until {kept} has learned from them"
    if champion == TEACHER:
        waiting = TEACHER
    # A task's size counts the places it already has.
    calls = task.size + sum(other.size for other in more)
    return [
        Part(kept, calls, None, champion, _typical(task)),
        *(Part(f"  {place.id}", place.size, None, waiting, _typical(place)) for place in places),
    ]


def split(
    context: Context,
    task_id: str,
    by: SplitBy,
    parts: int | None,
    *,
    actor: str,
    why: str,
    dry_run: bool,
) -> list[Part]:
    """Take a task apart; its parts, the one that keeps its id first.

    A task made by merging is taken apart along its places, where they differ by that.

    Raises UnknownTask, CannotJoin (a rollout is open, a row changed), CannotSplit, AssignmentsCorrupt.
    """
    with context.database.read() as connection:
        task = read_task(connection, task_id)
        joining.check_settled(connection, [task_id])
        places = joining.places_of(connection, task_id)
    if places:
        return _along_places(context, task, places, by, actor=actor, why=why, dry_run=dry_run)
    if by == "tag":
        raise CannotSplit(
            f"the calls of {task_id} have one tag or none: a tag makes a task of its own already"
        )
    with context.database.read() as connection:
        row = dict(connection.execute(select(tasks).where(tasks.c.id == task_id)).mappings().one())
    rows = task_rows(context.store, context.database, context.settings, task_id)
    proposal = propose(row, rows, by, context.settings, parts)
    if not dry_run:
        with context.database.begin() as connection:
            _apply(connection, context, proposal, actor, why)
    champion = context.registry.route(task_id).champion
    return [
        Part(name, calls, sessions, champion if name == task_id else TEACHER, typical)
        for name, calls, sessions, typical in proposal.sizes()
    ]


def _apply(
    connection: Connection, context: Context, proposal: Proposal, actor: str, why: str
) -> None:
    name = proposal.task["id"]
    read_task(connection, name, lock=True)
    joining.check_settled(connection, [name])
    if not apply(connection, proposal, context.settings, actor=actor, why=why, now=utc_now()):
        raise CannotJoin(f"task {name} changed meanwhile: try again")


def _along_places(
    context: Context,
    task: Task,
    places: list[Task],
    by: SplitBy,
    *,
    actor: str,
    why: str,
    dry_run: bool,
) -> list[Part]:
    apart = [
        place
        for place in places
        if merged_into(place.details) == task.id
        and (
            (by == "tag" and place.tag != task.tag)
            or (by == "signature" and place.signature != task.signature)
            or by == "cluster"
        )
    ]
    if not apart:
        raise CannotSplit(
            f"the tasks merged into {task.id} do not differ by {by}: "
            f"`nightschool tasks merge --undo` lets one of them stand by itself again"
        )
    if not dry_run:
        for place in apart:
            context.registry.separate_task(place.id, actor=actor, why=why)
    champion = context.registry.route(task.id).champion
    left = max(0, task.size - sum(place.size for place in apart))
    return [
        Part(task.id, left, None, champion, _typical(task)),
        *(Part(place.id, place.size, None, TEACHER, _typical(place)) for place in apart),
    ]


def _typical(task: Task) -> str:
    return str(task.details.get("medoid") or "")
