"""Which tasks a discovery itself took apart or put together, told from who had the calls before. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

LEAST_CALLS = 5
LEAST_SHARE = 0.1
"""Of a task's calls; fewer that change hands are calls at its edge, no part of it."""


@dataclass(frozen=True)
class Move:
    what: Literal["task.split", "task.merged"]
    task: str
    """Whose calls they were."""
    to: str
    calls: int
    of: int
    """Calls that the task had, of those that were looked at both times and belong to a task."""


def moves(before: Mapping[str, str], after: Mapping[str, str]) -> list[Move]:
    """The parts that left a task for another one, and the tasks that went over as a whole.

    Args:
        before, after: call id to task id.
    """
    went: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for call, task in before.items():
        if call in after:
            went[task][after[call]] += 1
    found = []
    for task, targets in sorted(went.items()):
        total = targets.total()
        stayed = targets.pop(task, 0) >= LEAST_SHARE * total
        for to, calls in sorted(targets.items(), key=lambda item: (-item[1], item[0])):
            if calls >= LEAST_CALLS and calls >= LEAST_SHARE * total:
                whole = not stayed and 2 * calls > total
                found.append(Move("task.merged" if whole else "task.split", task, to, calls, total))
    return found
