"""Metrics beside correctness that the gate's policy names: a scorer's, the judge's, or a stage's. Pure.

Each must be shown not to have got worse, at the whole level: a candidate that is worse in any is let
through by that one with chance at most the level, so several ask for no correction (intersection of
unions). What *fails* a candidate is held to the level divided among them. An answer that has no score,
because a scorer raised or the judge wrote prose, counts as a loss before a candidate is let through,
and as a gain before one is failed: it proves nothing. Many such say something of the scorer and not of
the candidate, and leave the gate inconclusive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from evaluators.guards import Finding
from evaluators.intervals import difference_bounds, session_bootstrap

MAX_FAILURE_SHARE = 0.1
MAX_REASONS = 3

LowerBound = Callable[[Sequence[float], float, float], float]
"""One-sided lower bound of the mean of differences, at a level, for a margin."""


@dataclass(frozen=True)
class MetricTerms:
    """A metric that the policy names."""

    name: str
    margin: float


@dataclass(frozen=True)
class MetricRow:
    """One test example by one metric."""

    example_id: str
    session: str
    difference: float
    """What the caller would get of the candidate minus what it gets today, -1 to 1."""
    failure: str | None = None
    """Why there is no score; the difference is then -1."""


@dataclass(frozen=True)
class MetricEvidence:
    """All that is known of one metric."""

    rows: tuple[MetricRow, ...]
    problem: str | None = None
    """Why it cannot be relied on as a whole."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What else was measured of it, such as the judge's agreement with people."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> MetricEvidence:
        rows = tuple(MetricRow(**row) for row in value["rows"])
        return cls(rows, value.get("problem"), dict(value.get("notes", {})))


def judge_metrics(
    asked: Sequence[MetricTerms],
    evidence: Mapping[str, MetricEvidence],
    *,
    level: float,
    fail_level: float,
    least_rows: int,
    lower_bound: LowerBound,
    numbers: dict[str, Any],
) -> list[Finding]:
    """Every metric that the policy names must hold; of the others what was seen is said.

    Args:
        level: of the proof that a metric did not get worse.
        fail_level: of the proof that one did, divided among those named.
        least_rows: with fewer scored rows nothing is shown.
        numbers: gets what was counted under ``metrics``.
    """
    found: list[Finding] = []
    named = {terms.name for terms in asked}
    for terms in asked:
        known = evidence.get(terms.name)
        if known is None or (not known.rows and known.problem is None):
            said = f"the metric {terms.name} is missing: no test row has a score of it"
            found.append(Finding("open", said))
            continue
        counted = _count(terms.name, known, numbers)
        share = fail_level / len(asked)
        found.append(_judge(terms, known, counted, level, share, least_rows, lower_bound))
    for name in sorted(set(evidence) - named):
        known = evidence[name]
        counted = _count(name, known, numbers)
        said = known.problem or f"{counted['difference']:+.3f} on {len(known.rows)} rows"
        failures = _failures(known)
        tail = f"; {failures}" if failures else ""
        found.append(Finding("held", f"{name}, not asked for by the gate: {said}{tail}"))
    return found


def _count(name: str, known: MetricEvidence, numbers: dict[str, Any]) -> dict[str, Any]:
    differences = [row.difference for row in known.rows]
    counted = {
        "rows": len(known.rows),
        "difference": float(np.mean(differences)) if differences else 0.0,
        "failures": sum(row.failure is not None for row in known.rows),
        **known.notes,
    }
    numbers.setdefault("metrics", {})[name] = counted
    return counted


def _judge(
    terms: MetricTerms,
    known: MetricEvidence,
    counted: dict[str, Any],
    level: float,
    fail_level: float,
    least_rows: int,
    lower_bound: LowerBound,
) -> Finding:
    name, rows = terms.name, known.rows
    if known.problem is not None:
        return Finding("open", f"{name} cannot be relied on: {known.problem}")
    failures = _failures(known)
    if counted["failures"] > MAX_FAILURE_SHARE * len(rows):
        return Finding("open", f"{name} gave too few scores: {failures}")
    if len(rows) < least_rows:
        said = f"{name} has {len(rows)} scored rows, fewer than the {least_rows} that the gate asks for"
        return Finding("open", said)
    differences = [row.difference for row in rows]
    low = lower_bound(differences, level, terms.margin)
    # The best that rows without a score could have been: what is not known proves no regression.
    best = [row.difference if row.failure is None else 1.0 for row in rows]
    high = difference_bounds(best, fail_level)[1]
    clustered, _ = session_bootstrap(differences, [row.session for row in rows], 2 * level)
    counted |= {"lower_bound": low, "upper_bound": high, "session_lower_bound": clustered}
    said = (
        f"{name} {counted['difference']:+.3f} against the incumbent on {len(rows)} rows; the loss is at "
        f"most {max(0.0, -min(low, clustered)):.3f} with {1 - level:.2%} confidence, tolerated is "
        f"{terms.margin:.3f}" + (f"; {failures}" if failures else "")
    )
    if high < -terms.margin:
        return Finding("failed", f"a further metric got worse: {said}")
    if min(low, clustered) < -terms.margin:
        return Finding("open", f"a further metric is not shown to be as good: {said}")
    return Finding("held", f"a further metric is as good: {said}")


def _failures(known: MetricEvidence) -> str:
    reasons = Counter(row.failure for row in known.rows if row.failure is not None)
    if not reasons:
        return ""
    told = ", ".join(f"{count} × {why}" for why, count in reasons.most_common(MAX_REASONS))
    return f"no score on {reasons.total()} of {len(known.rows)} rows: {told}"
