"""Tasks that a person has joined: the calls of one count as another's. Read alike by night and day.

A merged task stays as a place where calls are recognised; its home answers, learns and is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MERGED = "merged_into"
"""Key of a task's details: the id of the task whose calls its own are."""
PART = "part"
"""Key of a task's details: ``{"of": task id, "by": "signature" | "cluster"}``, from a person's split."""
PLACES = "places"
"""Key of a data set's manifest: the tasks, merged into its own, whose calls it was made of too."""
BY_SIGNATURE, BY_CLUSTER = "signature", "cluster"
MAX_STEPS = 100


def merged_into(details: Mapping[str, Any] | None) -> str | None:
    found = (details or {}).get(MERGED)
    return found if isinstance(found, str) and found else None


def part_by(details: Mapping[str, Any] | None) -> str | None:
    """How the task was split off another; None: it was not."""
    found = (details or {}).get(PART)
    return str(found.get("by")) if isinstance(found, Mapping) else None


def part_of(details: Mapping[str, Any] | None) -> str | None:
    """The task that it was split off; None: it was not."""
    found = (details or {}).get(PART)
    whole = found.get("of") if isinstance(found, Mapping) else None
    return whole if isinstance(whole, str) else None


def home(task_id: str, into: Mapping[str, str]) -> str:
    """The task whose calls those of ``task_id`` are in the end: itself, where nobody merged it.

    Args:
        into: merged task to the one it was merged into.
    """
    for _ in range(MAX_STEPS):
        if task_id not in into:
            break
        task_id = into[task_id]
    return task_id
