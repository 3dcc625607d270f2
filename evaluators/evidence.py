"""Verdicts on a rollout, computed from the call log alone: same log, same policy, same verdict.

Missing labels are imputed against each verdict on its own, in the worst way that is possible: for
``good`` a canary without a label is 0 and a champion without one is 1; for ``bad`` it is the other way
round. So missing data never promotes, and never alone rolls back, whatever made it go missing.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from evaluators.metrics import EvidencePolicy, Metric, Name, outcome_of, silent
from evaluators.sequential import TestResult, Verdict, match_blocks, run_test
from evaluators.sessions import SessionOutcome, session_outcomes, settled_prefix
from evaluators.shadow import ShadowSummary, judge_shadow
from infra.calls.record import CallRecord, FeedbackRecord

__all__ = [
    "TEACHER",
    "Decision",
    "EvidencePolicy",
    "MetricDecision",
    "ShadowSummary",
    "judge_canary",
    "judge_sessions",
    "judge_shadow",
    "verdict_of",
]

TEACHER = "teacher"


@dataclass(frozen=True)
class MetricDecision:
    """One metric of a rollout."""

    name: Name
    verdict: Verdict
    e_bad: float
    """Largest so far; ``needed_bad`` and above rolls back."""
    needed_bad: float
    e_good: float
    needed_good: float
    asked: bool
    """Whether a promotion asks for it."""
    labelled: int
    """Canary sessions with a valid label."""
    disappeared: bool
    """No label in the latest canary sessions: it cannot promote until some come again."""
    blocks: int
    path_bad: tuple[float, ...] = field(repr=False)
    """E-value after each block, for a picture."""
    path_good: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True)
class Decision:
    """Verdict on the canary stage so far, and what it rests on. Counts are of settled sessions."""

    verdict: Verdict
    e_bad: float
    """Of the metric nearest to a rollback, in units of the whole level: 1 / alpha_bad is bad."""
    e_good: float
    """Of the metric farthest from good among those that a promotion asks for."""
    canary_sessions: int
    champion_sessions: int
    labelled: int
    """Canary sessions with a valid label of quality; imputed ones are not counted."""
    mean_canary: float | None
    """Quality over the labelled sessions; None without any."""
    mean_champion: float | None
    escalations: int
    """Calls of canary sessions that the teacher answered in the canary's place."""
    evidence_digest: str
    """sha256 over the policy and every session fed, 64 hex characters."""
    reason: str
    blocks: int = 0
    waiting: int = 0
    """Sessions not fed yet: they, or one assigned before them, still wait for labels."""
    canary_calls: int = 0
    canary_by_epoch: dict[str, int] = field(default_factory=dict)
    """Settled canary sessions per route version, for counting those of the present step."""
    metrics: tuple[MetricDecision, ...] = ()
    disappeared: tuple[Name, ...] = ()
    """Metrics without a label in the latest canary sessions."""
    carried: float = 1.0
    """E-value that the quality test began with: the shadow's."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON, without the paths."""
        body = asdict(self)
        for metric in body["metrics"]:
            del metric["path_bad"], metric["path_good"]
        return body


def judge_canary(
    calls: Iterable[CallRecord],
    feedback: Iterable[FeedbackRecord],
    *,
    rollout: str,
    champion: str,
    policy: EvidencePolicy,
    now: datetime,
    candidate: str | None = None,
) -> Decision:
    """The sequential test's verdict on everything logged up to ``now``.

    Args:
        calls: log records of the rollout; others among them are ignored, order does not matter.
        feedback: reports of the callers, likewise.
        rollout: the rollout's id as the gateway wrote it into ``answered_by``.
        champion: name of the champion adapter, or ``teacher``.
        policy: the terms the rollout opened with.
        now: records after this are ignored.
        candidate: name of the candidate: its shadow's evidence is then carried over, so that shadow
            and canary together keep one level. None: the canary starts from nothing.
    """
    calls = list(calls)
    seen = session_outcomes(
        calls,
        feedback,
        rollout=rollout,
        maturity_seconds=policy.maturity_seconds,
        now=now,
        latency_objective_seconds=policy.latency_objective_seconds,
    )
    fed = settled_prefix(seen)
    by_teacher = champion == TEACHER
    carried = 1.0
    if candidate is not None:
        shadow = judge_shadow(
            calls,
            rollout=rollout,
            candidate=candidate,
            policy=policy,
            now=now,
            champion_is_teacher=by_teacher,
        )
        carried = shadow.e_now
        if not shadow.settled:
            fed = []  # evidence is used in the order of assignment, and the shadow came first
    metrics = judge_sessions(fed, policy, champion_is_teacher=by_teacher, carried=carried)
    verdict = verdict_of(metrics)
    canaries = [item for item in fed if item.arm == "canary"]
    champions = [item for item in fed if item.arm == "champion"]
    asked = [metric for metric in metrics if metric.asked]
    return Decision(
        verdict=verdict,
        e_bad=max(metric.e_bad / metric.needed_bad for metric in metrics) / policy.alpha_bad,
        e_good=min((metric.e_good for metric in asked), default=1.0),
        canary_sessions=len(canaries),
        champion_sessions=len(champions),
        labelled=sum(item.labelled for item in canaries),
        mean_canary=_mean(canaries),
        mean_champion=_mean(champions),
        escalations=sum(item.escalations for item in canaries),
        evidence_digest=digest(policy, rollout, champion, [carried, *(i.to_list() for i in fed)]),
        reason=_reason(verdict, metrics, policy, len(canaries), by_teacher),
        blocks=max(metric.blocks for metric in metrics),
        waiting=len(seen) - len(fed),
        canary_calls=sum(item.calls for item in canaries),
        canary_by_epoch=_by_epoch(canaries),
        metrics=metrics,
        disappeared=tuple(metric.name for metric in metrics if metric.disappeared),
        carried=carried,
    )


def judge_sessions(
    fed: Sequence[SessionOutcome],
    policy: EvidencePolicy,
    *,
    champion_is_teacher: bool,
    carried: float = 1.0,
) -> tuple[MetricDecision, ...]:
    """Every metric in use on settled sessions in assignment order.

    ``carried``: e-value that the quality test begins with.
    """
    levels = policy.levels(champion_is_teacher)
    return tuple(
        _judge_metric(
            metric,
            fed,
            levels[metric.name],
            policy,
            champion_is_teacher,
            carried if metric.name == "quality" else 1.0,
        )
        for metric in policy.active(champion_is_teacher)
    )


def _judge_metric(
    metric: Metric,
    fed: Sequence[SessionOutcome],
    level: float,
    policy: EvidencePolicy,
    by_teacher: bool,
    carried: float,
) -> MetricDecision:
    outcomes = [
        outcome_of(
            metric.name, session, champion_is_teacher=by_teacher, audited=policy.audit_rate > 0
        )
        for session in fed
    ]
    known = policy.known(metric.name) if by_teacher else None
    result: TestResult = run_test(
        match_blocks(outcomes, champion_is_teacher=known is not None),
        metric.margin,
        level,
        policy.alpha_good,
        rollback_margin=metric.rollback_margin,
        known=1.0 if known is None else known,
        carried=carried,
    )
    labelled = sum(item.labelled for item in outcomes if item.arm == "canary")
    # Nobody owes a guardrail its labels.
    disappeared = silent(outcomes) and not metric.guardrail
    verdict = result.verdict
    if verdict == "good" and (not labelled or disappeared):
        verdict = "continue"
    return MetricDecision(
        name=metric.name,
        verdict=verdict,
        e_bad=result.e_bad,
        needed_bad=1 / level,
        e_good=result.e_good,
        needed_good=1 / policy.alpha_good,
        asked=not metric.guardrail,
        labelled=labelled,
        disappeared=disappeared,
        blocks=result.blocks,
        path_bad=result.path_bad,
        path_good=result.path_good,
    )


def verdict_of(metrics: Sequence[MetricDecision]) -> Verdict:
    """Any metric rolls back; all that are asked promote; bad comes first."""
    if any(metric.verdict == "bad" for metric in metrics):
        return "bad"
    asked = [metric for metric in metrics if metric.asked]
    return "good" if asked and all(metric.verdict == "good" for metric in asked) else "continue"


def _by_epoch(items: Sequence[SessionOutcome]) -> dict[str, int]:
    return dict(sorted(Counter(str(item.epoch) for item in items).items()))


def _mean(items: Sequence[SessionOutcome]) -> float | None:
    scores = [item.low for item in items if item.labelled]
    return sum(scores) / len(scores) if scores else None


def _reason(
    verdict: Verdict,
    metrics: Sequence[MetricDecision],
    policy: EvidencePolicy,
    sessions: int,
    by_teacher: bool,
) -> str:
    margins = {metric.name: metric for metric in policy.active(by_teacher)}

    def said(metric: MetricDecision) -> str:
        terms = margins[metric.name]
        if verdict == "bad":
            worse = (
                f"{metric.name} worse than the champion's by more than {terms.rollback_margin:g}"
            )
            return f"{worse}: evidence {metric.e_bad:.3g}, needed {metric.needed_bad:.3g}"
        if verdict == "good":
            fine = f"{metric.name} not worse than the champion's by {terms.margin:g}"
            return f"{fine}: evidence {metric.e_good:.3g}, needed {metric.needed_good:.3g}"
        lost = ", no label in the latest sessions" if metric.disappeared else ""
        good = f", {metric.e_good:.3g} of {metric.needed_good:.3g} for as good"
        return (
            f"{metric.name} {metric.e_bad:.3g} of {metric.needed_bad:.3g} for worse"
            f"{good if metric.asked else ''}{lost}"
        )

    if verdict == "bad":
        shown = [metric for metric in metrics if metric.verdict == "bad"]
    elif verdict == "good":
        shown = [metric for metric in metrics if metric.asked]
    else:
        shown = list(metrics)
    labelled = next((m.labelled for m in metrics if m.name == "quality"), metrics[0].labelled)
    counted = f"{sessions} canary sessions, {labelled} with a label"
    if verdict == "continue":
        return f"no verdict yet: {'; '.join(map(said, shown))}; {counted}"
    return f"{'; '.join(map(said, shown))}; {counted}"


def digest(policy: EvidencePolicy, rollout: str, name: str, fed: Sequence[object]) -> str:
    body = json.dumps([asdict(policy), rollout, name, fed], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(body.encode()).hexdigest()
