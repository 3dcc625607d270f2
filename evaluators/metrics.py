"""What a canary is judged by: several metrics, each with its own margins and its share of the level.

=========== ================================================== ========================= ==============
metric      score of a session                                 label missing when        promotion asks
=========== ================================================== ========================= ==============
quality     agreement with the teacher, and feedback           neither came in time      yes
errors      1 without a hard failure or a reported tool error  the teacher was away      yes
latency     share of calls not slower than the objective       never                     yes, if set
escalation  share of calls that the arm answered itself        no engine was there       no: guardrail
tools       1 without a reported tool error                    never                     no: guardrail
feedback    what the callers said                              they said nothing         no: guardrail
=========== ================================================== ========================= ==============

Callers may well tell only what they like, or only of one arm. So quality may be held against an arm by
its agreement with the teacher alone, and feedback on top of it only widens what is possible. A
promotion beside the teacher takes the callers' word: who agrees with the teacher is as good as it, and
who does not may still be right. Feedback has a metric of its own, in which silence is the worst case
on either side. Without audits (``audit_rate`` 0) it is all there is, and quality is feedback.

The teacher is known to agree with itself and not to fail as a small model does, so a canary beside it
needs no company for quality and errors. Its tool calls, its speed and what callers say of it are not
known: there its own sessions stand beside the canary's.

Rollback: any metric may cause it, so their levels add up to ``alpha_bad`` (union bound). Promotion:
every metric that it asks for must be shown good, each at the whole of ``alpha_good`` (intersection of
unions: an unfit canary fails at least one of them, and is let through by that one with chance at most
``alpha_good``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from evaluators.betting import check_margin
from evaluators.sequential import Outcome
from evaluators.sessions import NOTHING_KNOWN, Interval, SessionOutcome

Name = Literal["quality", "errors", "latency", "escalation", "tools", "feedback"]

SILENT_SESSIONS = 20
"""A metric without a valid label in this many canary sessions on end has disappeared."""


@dataclass(frozen=True)
class Metric:
    """Raises ValueError for margins or a weight out of range."""

    name: Name
    margin: float
    """Worse by this or more must not be promoted."""
    rollback_margin: float
    """Worse by more than this is rolled back."""
    weight: float
    """Share of ``alpha_bad``, relative to the weights of the other metrics in use."""
    guardrail: bool = False
    """Can roll back, is not asked for a promotion."""

    def __post_init__(self) -> None:
        check_margin(self.margin)
        check_margin(self.rollback_margin)
        if not self.weight > 0:
            raise ValueError(f"the weight of {self.name} is above 0")


WEIGHTS: dict[Name, float] = {
    "quality": 0.55,
    "errors": 0.2,
    "latency": 0.1,
    "escalation": 0.075,
    "feedback": 0.075,
    "tools": 0.05,
}
GUARDRAILS = frozenset({"escalation", "tools", "feedback"})


@dataclass(frozen=True)
class EvidencePolicy:
    """The part of a rollout's terms that the verdict depends on; frozen when it opens.

    Raises ValueError when there is no metric, or one twice.
    """

    margin: float = 0.1
    alpha_bad: float = 0.05
    alpha_good: float = 0.05
    maturity_seconds: float = 300.0
    rollback_margin: float | None = None
    """Beside another adapter; None: ``margin``."""
    teacher_rollback_margin: float | None = None
    """Beside the teacher; None: ``margin``."""
    latency_objective_seconds: float | None = None
    """The champion's, frozen when the rollout opens; None leaves latency out."""
    escalation_allowance: float | None = None
    """Share of calls that may escalate beside the teacher, which never does; None leaves escalation
    out where the teacher is the champion."""
    audit_rate: float = 1.0
    """Share of calls that the teacher is asked too; 0: nothing is known but feedback."""
    metrics: tuple[Metric, ...] | None = None
    """None: those of the table above, all with the margins of the policy."""

    def __post_init__(self) -> None:
        if self.metrics is not None:
            names = [metric.name for metric in self.metrics]
            if not names or len(set(names)) < len(names):
                raise ValueError("a policy has at least one metric, and none of them twice")

    def active(self, champion_is_teacher: bool) -> tuple[Metric, ...]:
        """The metrics that this rollout is judged by: known before it starts."""
        tolerated = self.tolerated(champion_is_teacher)
        metrics = self.metrics or tuple(
            Metric(name, self.margin, tolerated, weight, guardrail=name in GUARDRAILS)
            for name, weight in WEIGHTS.items()
        )
        idle: set[Name] = set()
        if self.latency_objective_seconds is None:
            idle.add("latency")
        if champion_is_teacher and self.escalation_allowance is None:
            idle.add("escalation")
        if not champion_is_teacher:
            idle.add("tools")  # where both arms are small models, errors compare them already
        return tuple(metric for metric in metrics if metric.name not in idle)

    def levels(self, champion_is_teacher: bool) -> dict[Name, float]:
        """Rollback level of each metric in use; they add up to ``alpha_bad``."""
        active = self.active(champion_is_teacher)
        total = sum(metric.weight for metric in active)
        return {metric.name: self.alpha_bad * metric.weight / total for metric in active}

    def quality_level(self, champion_is_teacher: bool) -> float:
        """Level of quality, which the shadow and the canary share."""
        return self.levels(champion_is_teacher).get("quality", self.alpha_bad)

    def tolerated(self, champion_is_teacher: bool) -> float:
        """Worse by more than this is rolled back."""
        margin = self.teacher_rollback_margin if champion_is_teacher else self.rollback_margin
        return self.margin if margin is None else margin

    def known(self, metric: Name) -> float | None:
        """What the teacher scores as a champion that stands in no block; None: it must stand there."""
        if metric in ("latency", "tools", "feedback"):
            return None
        return 1.0 - (self.escalation_allowance or 0.0) if metric == "escalation" else 1.0


def outcome_of(
    metric: Name, session: SessionOutcome, *, champion_is_teacher: bool, audited: bool = True
) -> Outcome:
    """The session's score by one metric, as the sequential test takes it.

    Args:
        champion_is_teacher: whom the canary is compared with.
        audited: whether the teacher is asked for the same answers.
    """
    found = _interval(metric, session, champion_is_teacher, audited)
    return Outcome(session.arm, session.epoch, found.low, found.high)


def _interval(
    metric: Name, session: SessionOutcome, champion_is_teacher: bool, audited: bool
) -> Interval:
    if metric == "quality":
        return _quality(session, champion_is_teacher, audited)
    if metric == "feedback":
        return session.said
    if metric == "tools":
        return _right(not session.tool_failed)
    if metric == "latency":
        share = 1.0 - session.slow / session.calls
        return Interval(share, share)
    if metric == "escalation":
        asked = session.calls - session.absent
        if not asked:
            return NOTHING_KNOWN
        share = 1.0 - (session.escalations - session.absent) / asked
        return Interval(share, share)
    if session.failed or session.unanswered:
        return NOTHING_KNOWN if session.unanswered else _right(False)
    if session.tool_failed:
        # Beside a teacher that is taken never to fail they are not held against the canary (``tools``
        # does that), and no promotion overlooks them.
        return Interval(0.0, 1.0) if champion_is_teacher else _right(False)
    return _right(True)


def _quality(session: SessionOutcome, champion_is_teacher: bool, audited: bool) -> Interval:
    agreed = session.agreed
    if champion_is_teacher:
        if session.arm == "champion":
            return agreed
        return Interval(session.low, max(session.high, agreed.high))
    if not audited:
        return session.said
    return Interval(min(session.low, agreed.low), max(session.high, agreed.high))


def _right(whether: bool) -> Interval:
    return Interval(1.0, 1.0) if whether else Interval(0.0, 0.0)


def silent(outcomes: Sequence[Outcome]) -> bool:
    """Whether the metric had labels for none of the latest canary sessions: it has disappeared."""
    latest = [item for item in outcomes if item.arm == "canary"][-SILENT_SESSIONS:]
    return len(latest) == SILENT_SESSIONS and not any(item.labelled for item in latest)
