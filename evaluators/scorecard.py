"""The metrics of one answerer on one dataset version, with intervals; and of two on the same rows."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from evaluators.honesty import Honesty
from evaluators.intervals import clopper_pearson, session_bootstrap
from evaluators.replay import Outcome

WORST = 20
MAX_SLICES = 100
PERCENTILES = (50, 90, 95, 99)

Method = Literal["clopper-pearson", "clopper-pearson over sessions", "session bootstrap"]


@dataclass(frozen=True)
class Interval:
    """A two-sided interval; ``confidence`` is 0.95 for a level of 0.05."""

    low: float
    high: float
    confidence: float
    method: Method


@dataclass(frozen=True)
class Scorecard:
    """How one answerer did. Plain data: JSON in, JSON out, named by its digest."""

    answerer: str
    dataset_digest: str
    rows: int
    sessions: int
    mean: float
    """Mean correctness, 0 to 1; errors and failed checks count as 0."""
    interval: Interval
    kinds: dict[str, int]
    stages: dict[str, dict[str, float]]
    """Per stage: ``rows`` it applies to and its ``mean`` there, with the interval ``low`` to ``high``."""
    checks_passed: float
    """Share of rows whose answer passed its checks."""
    errors: int
    """Rows without an answer because the engine failed."""
    error_reasons: dict[str, int]
    worst: tuple[dict[str, Any], ...]
    """The twenty worst rows: ids, stages and reasons, no text of the answers."""
    latency_seconds: dict[str, float]
    """Percentiles p50 to p99 over answered rows, in seconds; empty when none was answered."""
    slices: dict[str, dict[str, float]] = field(default_factory=dict)
    """Per slice (``tool=send``): ``rows`` and their ``mean``, with the interval ``low`` to ``high``."""
    honesty: dict[str, int] = field(default_factory=dict)
    """Counts of ``honesty.Honesty``; empty when they were not taken."""
    tokens: dict[str, float] = field(default_factory=dict)
    """Mean ``prompt`` and ``completion`` tokens of an answered row; empty when they were not counted."""
    details: dict[str, Any] = field(default_factory=dict)
    """See ``details.details_of``: kind of task, labels by class, calls over several steps."""

    @property
    def digest(self) -> str:
        """sha256 over the canonical JSON, 64 hex characters."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "worst": list(self.worst)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Scorecard:
        return cls(
            **{
                **value,
                "interval": Interval(**value["interval"]),
                "worst": tuple(value["worst"]),
            }
        )


@dataclass(frozen=True)
class Comparison:
    """Mean paired difference first - second on the rows both answered; a session bootstrap."""

    rows: int
    sessions: int
    difference: float
    interval: Interval
    first_better: int
    second_better: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_scorecard(
    answerer: str,
    dataset_digest: str,
    outcomes: Sequence[Outcome],
    *,
    level: float = 0.05,
    seed: int = 7,
    slices: Mapping[str, Mapping[str, str]] | None = None,
    honesty: Honesty | None = None,
    details: Mapping[str, Any] | None = None,
) -> Scorecard:
    """Sum up the replayed answers of one answerer.

    Args:
        slices: which slices each example belongs to, by its id.

    Raises ValueError when there are none: an empty test is no evidence.
    """
    if not outcomes:
        raise ValueError(f"no answers of {answerer} to score: is the test split empty?")
    scores = [row.correct for row in outcomes]
    sessions = [row.session for row in outcomes]
    stages: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for row in outcomes:
        for stage, value in row.score.stages.items():
            stages[stage].append((value, row.session))
    answered = [row.latency_seconds for row in outcomes if row.error is None]
    errors = Counter((row.error or "").split(":")[0] for row in outcomes if row.error is not None)
    return Scorecard(
        answerer=answerer,
        dataset_digest=dataset_digest,
        rows=len(outcomes),
        sessions=len(set(sessions)),
        mean=float(np.mean(scores)),
        interval=mean_interval(scores, sessions, level, seed=seed),
        kinds=dict(sorted(Counter(row.score.kind for row in outcomes).items())),
        stages={stage: _summed_up(values, level, seed) for stage, values in sorted(stages.items())},
        checks_passed=float(np.mean([row.checks.passed for row in outcomes])),
        errors=errors.total(),
        error_reasons=dict(errors.most_common(WORST)),
        worst=_worst(outcomes),
        latency_seconds={
            f"p{share}": float(value)
            for share, value in zip(PERCENTILES, np.percentile(answered, PERCENTILES), strict=True)
        }
        if answered
        else {},
        slices=_by_slice(outcomes, slices or {}, level, seed),
        honesty={} if honesty is None else honesty.to_dict(),
        tokens=_tokens(outcomes),
        details=dict(details or {}),
    )


def compare(
    first: Sequence[Outcome], second: Sequence[Outcome], *, level: float = 0.05, seed: int = 7
) -> Comparison:
    """Mean difference between two answerers on the rows that both were asked.

    Raises ValueError when they share no row.
    """
    others = {row.example_id: row.correct for row in second}
    pairs = [row for row in first if row.example_id in others]
    if not pairs:
        raise ValueError("the two answerers were asked no example in common")
    differences = [row.correct - others[row.example_id] for row in pairs]
    sessions = [row.session for row in pairs]
    low, high = session_bootstrap(differences, sessions, level, seed=seed)
    return Comparison(
        rows=len(pairs),
        sessions=len(set(sessions)),
        difference=float(np.mean(differences)),
        interval=Interval(low, high, 1 - level, "session bootstrap"),
        first_better=sum(difference > 0 for difference in differences),
        second_better=sum(difference < 0 for difference in differences),
    )


def mean_interval(
    scores: Sequence[float], sessions: Sequence[Hashable], level: float, *, seed: int = 7
) -> Interval:
    """Interval of a mean: exact where the scores are 0 or 1 and one per session.

    When all are 0 or all are 1 a bootstrap has no width, so the sessions are counted exactly.
    """
    binary = all(score in (0, 1) for score in scores)
    count = len(set(sessions))
    if binary and count == len(scores):
        low, high = clopper_pearson(round(sum(scores)), len(scores), level)
        return Interval(low, high, 1 - level, "clopper-pearson")
    if binary and len(set(scores)) == 1:
        low, high = clopper_pearson(round(scores[0]) * count, count, level)
        return Interval(low, high, 1 - level, "clopper-pearson over sessions")
    low, high = session_bootstrap(scores, sessions, level, seed=seed)
    return Interval(low, high, 1 - level, "session bootstrap")


def _by_slice(
    outcomes: Sequence[Outcome], slices: Mapping[str, Mapping[str, str]], level: float, seed: int
) -> dict[str, dict[str, float]]:
    scores: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for row in outcomes:
        for dimension, value in slices.get(row.example_id, {}).items():
            scores[f"{dimension}={value}"].append((row.correct, row.session))
    largest = sorted(scores, key=lambda name: (-len(scores[name]), name))[:MAX_SLICES]
    return {name: _summed_up(scores[name], level, seed) for name in largest}


def _summed_up(scores: Sequence[tuple[float, str]], level: float, seed: int) -> dict[str, float]:
    values = [score for score, _ in scores]
    found = mean_interval(values, [session for _, session in scores], level, seed=seed)
    return {
        "rows": len(values),
        "mean": float(np.mean(values)),
        "low": found.low,
        "high": found.high,
    }


def _tokens(outcomes: Sequence[Outcome]) -> dict[str, float]:
    counted = [row for row in outcomes if row.completion_tokens]
    if not counted:
        return {}
    return {
        "prompt": float(np.mean([row.prompt_tokens for row in counted])),
        "completion": float(np.mean([row.completion_tokens for row in counted])),
    }


def _worst(outcomes: Sequence[Outcome]) -> tuple[dict[str, Any], ...]:
    wrong = sorted(
        (row for row in outcomes if row.correct < 1), key=lambda row: (row.correct, row.example_id)
    )
    return tuple(
        {
            "example_id": row.example_id,
            "session": row.session,
            "kind": row.score.kind,
            "correct": row.correct,
            "confidence": row.confidence,
            "stages": row.score.stages,
            "checks": row.checks.reason,
            # The kind of error only: an engine's message may quote what it was asked.
            "error": None if row.error is None else row.error.split(":")[0],
        }
        for row in wrong[:WORST]
    )
