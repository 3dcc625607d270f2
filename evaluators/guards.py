"""What an adapter may not lose however good its mean: golden cases, and slices of the test. Pure.

Each guard can only stop a pass, so any number of them inflates no false pass; what *fails* a candidate
for good is held to the level, divided among the slices that are looked at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from evaluators.intervals import difference_bounds
from evaluators.served import GateRow
from infra.prompting.template import content_text
from infra.prompting.values import calls_of, read_call

MAX_NAMED = 5
LENGTHS = ((500, "short"), (4000, "medium"))
"""Characters of all messages below which a prompt counts as such; longer ones are long."""


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


def slices_of(request: Mapping[str, Any], answer: Mapping[str, Any], tenant: str) -> dict[str, str]:
    """Which part of the traffic an example belongs to: the tools of its right answer (``words`` for
    none), its prompt's length, its tenant."""
    names = sorted({read_call(call)[0] for call in calls_of(answer)})
    size = sum(len(content_text(message.get("content"))) for message in request["messages"])
    length = next((name for limit, name in LENGTHS if size < limit), "long")
    return {"tool": "+".join(names) or "words", "length": length, "tenant": tenant}


def judge_slices(
    rows: Sequence[GateRow],
    declared: Sequence[str],
    *,
    least_rows: int,
    margin: float,
    level: float,
    numbers: dict[str, Any],
) -> list[Finding]:
    """No declared slice may regress. A loss seen in one stops a pass, a loss shown there fails.

    Args:
        declared: ``tool``: each tool with enough rows, and there must be rows that tell theirs;
            ``tool=send``: this one, which must have enough rows.
        least_rows: fewer say nothing of a slice.
        level: of all that fails for a slice, divided among the slices.
        numbers: gets rows and difference of each slice under ``slices``.
    """
    found: list[Finding] = []
    judged: dict[str, list[GateRow]] = {}
    for name in dict.fromkeys(declared):
        dimension, named, _ = name.partition("=")
        groups: defaultdict[str, list[GateRow]] = defaultdict(list)
        for row in rows:
            if dimension in row.slices:
                groups[f"{dimension}={row.slices[dimension]}"].append(row)
        if named:
            own = groups.get(name, [])
            if not own or len(own) < least_rows:
                said = "is empty" if not own else f"has {len(own)} rows of {least_rows} at least"
                found.append(Finding("open", f"the slice {name} {said}: nothing is shown of it"))
            else:
                judged[name] = own
            continue
        if not groups:
            found.append(Finding("open", f"no test row tells its {name}: nothing is shown of it"))
        judged |= {key: own for key, own in groups.items() if len(own) >= least_rows}
        small = sorted(key for key, own in groups.items() if len(own) < least_rows)
        if small:
            named_ = ", ".join(small[:MAX_NAMED]) + (" and more" if len(small) > MAX_NAMED else "")
            found.append(Finding("held", f"fewer than {least_rows} rows, not judged: {named_}"))
    for name, own in sorted(judged.items()):
        found += _judge_slice(name, own, margin, level / len(judged), numbers)
    return found


def _judge_slice(
    name: str, rows: Sequence[GateRow], margin: float, level: float, numbers: dict[str, Any]
) -> list[Finding]:
    differences = [row.served - row.incumbent for row in rows]
    mean = float(np.mean(differences))
    high = difference_bounds(differences, level)[1]
    numbers.setdefault("slices", {})[name] = {"rows": len(rows), "difference": mean}
    said = f"{mean:+.3f} against the incumbent on the {len(rows)} rows of {name}"
    if high < -margin:
        return [Finding("failed", f"it regressed on a slice: {said}")]
    if mean < -margin:
        return [Finding("open", f"it may have regressed on a slice: {said}")]
    return []
