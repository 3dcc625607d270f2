"""What an adapter may not lose however good its mean: golden cases, and slices of the test. Pure.

Each guard can only stop a pass, so any number of them inflates no false pass; what *fails* a candidate
for good is held to the level, divided among the slices that are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from evaluators.served import GateRow

MAX_NAMED = 5


class Finding(NamedTuple):
    """One condition of the gate: ``failed`` fails, ``open`` leaves it inconclusive, ``held`` holds."""

    state: Literal["failed", "open", "held"]
    said: str


def judge_golden(
    rows: Sequence[GateRow], seen_in_training: int, numbers: dict[str, Any]
) -> list[Finding]:
    """None that the incumbent gets right may be failed by the candidate, as the caller gets it.

    Args:
        rows: the golden cases; scores are 1 (right) or 0.
        seen_in_training: how many of them the adapter was trained on all the same.
        numbers: gets what was counted under ``golden``.
    """
    if not rows:
        return []
    lost = [row.example_id for row in rows if row.incumbent >= 1 and row.served < 1]
    unasked = sum(row.error for row in rows)
    numbers["golden"] = {
        "cases": len(rows),
        "lost": len(lost),
        "unasked": unasked,
        "seen_in_training": seen_in_training,
    }
    found = []
    if lost:
        named = ", ".join(lost[:MAX_NAMED]) + (" and more" if len(lost) > MAX_NAMED else "")
        found.append(
            Finding("failed", f"it fails {len(lost)} of {len(rows)} golden cases: {named}")
        )
    if unasked:
        found.append(
            Finding(
                "open", f"the engine failed on {unasked} of {len(rows)} golden cases: ask again"
            )
        )
    if not lost and not unasked:
        found.append(Finding("held", f"none of {len(rows)} golden cases is lost"))
    if seen_in_training:
        found.append(
            Finding(
                "held",
                f"{seen_in_training} of {len(rows)} golden cases were in its training data, from "
                "before they were pinned: they show what it remembers",
            )
        )
    return found
