"""Whose golden cases count for which task, where people merged tasks or split them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import select

from infra.database.open import Database
from infra.database.tables import tasks
from infra.objects.store import ObjectStore
from infra.tasks.embedding import embed, nearest, prompt_text
from infra.tasks.joined import PLACES, merged_into, part_of
from infra.tasks.signature import signature
from trainers.data_sets.golden import GoldenCase, golden_cases
from trainers.data_sets.versions import DatasetVersion


@dataclass(frozen=True)
class _Known:
    """A task, as far as it says whose a prompt is."""

    id: str
    signature: str
    centroid: tuple[float, ...]
    radius: float
    into: str | None
    whole: str | None
    """The task that it was split off."""


def judged_cases(
    store: ObjectStore, database: Database, dataset: DatasetVersion
) -> list[GoldenCase]:
    """What an adapter of the data set must get right: the cases that its calls may be, be they pinned
    at its task, at one merged into it whose calls it learns from, or at one that any of them was split off.

    A case of a task that was split is that of the part whose calls are like it. A prompt that several
    tasks pinned has its own task's answer.
    """
    known = _known(database)
    own = [dataset.task_id, *dataset.manifest.get(PLACES, ())]
    found: dict[str, GoldenCase] = {}
    for task_id in _with_wholes(own, known):
        family = _family(task_id, known)
        for case in golden_cases(store, task_id):
            if _part_for(case, task_id, family) in own:
                found.setdefault(case.id, case)
    return list(found.values())


def untaught_cases(store: ObjectStore, database: Database, task_id: str) -> list[GoldenCase]:
    """What no adapter of the task may be shown: its own cases, and those of every task that its calls
    may have come from, whether that was merged into it or it was split off that one.
    """
    inside: defaultdict[str, set[str]] = defaultdict(set)
    for task in _known(database).values():
        if task.into is not None:
            inside[task.into].add(task.id)
        if task.whole is not None:
            inside[task.id].add(task.whole)
    wanted, left = [task_id], [task_id]
    while left:
        near = sorted(inside[left.pop()].difference(wanted))
        wanted += near
        left += near
    return [case for name in wanted for case in golden_cases(store, name)]


def _known(database: Database) -> dict[str, _Known]:
    columns = (tasks.c.id, tasks.c.signature, tasks.c.centroid, tasks.c.radius, tasks.c.details)
    with database.read() as connection:
        rows = connection.execute(select(*columns)).all()
    return {
        row.id: _Known(
            row.id,
            row.signature,
            tuple(row.centroid),
            row.radius,
            merged_into(row.details),
            part_of(row.details),
        )
        for row in rows
    }


def _with_wholes(own: Iterable[str], known: Mapping[str, _Known]) -> list[str]:
    """The tasks, and those that they were split off, near ones first."""
    wanted = list(own)
    for task_id in wanted:
        whole = known[task_id].whole if task_id in known else None
        if whole is not None and whole not in wanted:
            wanted.append(whole)
    return wanted


def _family(task_id: str, known: Mapping[str, _Known]) -> list[_Known]:
    """A task and all that was split off it, and off that."""
    wanted = [task_id]
    for name in wanted:
        wanted += [
            task.id for task in known.values() if task.whole == name and task.id not in wanted
        ]
    return [known[name] for name in wanted if name in known]


def _part_for(case: GoldenCase, task_id: str, family: list[_Known]) -> str:
    """Which of the family the case's prompt goes to, as calls do; where none claims it, it stays."""
    if len(family) < 2:
        return task_id
    asked = signature(case.request).digest
    alike = [task for task in family if task.signature == asked]
    dimensions = max((len(task.centroid) for task in alike), default=0)
    if len(alike) < 2 or not dimensions:
        return alike[0].id if len(alike) == 1 else task_id
    claimed = nearest(embed([prompt_text(case.request)], dimensions)[0], alike)
    return task_id if claimed is None else claimed.id
