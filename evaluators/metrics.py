"""What a canary is judged by: several metrics, each with its own margins and its share of the level.

=========== ================================================== ========================= ==============
metric      score of a session                                 label missing when        promotion asks
=========== ================================================== ========================= ==============
quality     feedback, else agreement with the teacher          neither came in time      yes
errors      1 without a hard failure or a reported tool error  never                     yes
latency     share of calls not slower than the objective       never                     yes, if set
escalation  share of calls that the arm answered itself        never                     no: guardrail
=========== ================================================== ========================= ==============

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
from evaluators.sessions import SessionOutcome

Name = Literal["quality", "errors", "latency", "escalation"]

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


WEIGHTS: dict[Name, float] = {"quality": 0.55, "errors": 0.25, "latency": 0.1, "escalation": 0.1}


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
    """None: ``margin``."""
    latency_objective_seconds: float | None = None
    """The champion's, frozen when the rollout opens; None leaves latency out."""
    escalation_allowance: float | None = None
    """Share of calls that may escalate beside the teacher, which never does; None leaves escalation
    out where the teacher is the champion."""
    metrics: tuple[Metric, ...] | None = None
    """None: those of the table above, all with the margins of the policy."""

    def __post_init__(self) -> None:
        if self.metrics is not None:
            names = [metric.name for metric in self.metrics]
            if not names or len(set(names)) < len(names):
                raise ValueError("a policy has at least one metric, and none of them twice")

    def active(self, champion_is_teacher: bool) -> tuple[Metric, ...]:
        """The metrics that this rollout is judged by: known before it starts."""
        tolerated = self.margin if self.rollback_margin is None else self.rollback_margin
        metrics = self.metrics or tuple(
            Metric(name, self.margin, tolerated, weight, guardrail=name == "escalation")
            for name, weight in WEIGHTS.items()
        )
        return tuple(
            metric
            for metric in metrics
            if not (metric.name == "latency" and self.latency_objective_seconds is None)
            and not (
                metric.name == "escalation"
                and champion_is_teacher
                and self.escalation_allowance is None
            )
        )

    def levels(self, champion_is_teacher: bool) -> dict[Name, float]:
        """Rollback level of each metric in use; they add up to ``alpha_bad``."""
        active = self.active(champion_is_teacher)
        total = sum(metric.weight for metric in active)
        return {metric.name: self.alpha_bad * metric.weight / total for metric in active}

    def quality_level(self, champion_is_teacher: bool) -> float:
        """Level of quality, which the shadow and the canary share."""
        return self.levels(champion_is_teacher).get("quality", self.alpha_bad)

    def known(self, metric: Name) -> float:
        """What the teacher scores, as a champion that stands in no block."""
        return 1.0 - (self.escalation_allowance or 0.0) if metric == "escalation" else 1.0


def outcome_of(metric: Name, session: SessionOutcome) -> Outcome:
    """The session's score by one metric, as the sequential test takes it."""
    low = high = 1.0
    by_agreement = True
    if metric == "quality":
        low, high, by_agreement = session.low, session.high, not session.by_feedback
    elif metric == "errors":
        low = high = 0.0 if session.failed or session.tool_failed else 1.0
        by_agreement = not session.tool_failed
    elif metric == "latency":
        low = high = 1.0 - session.slow / session.calls
    else:
        low = high = 1.0 - session.escalations / session.calls
    return Outcome(session.arm, session.epoch, low, high, by_agreement)


def silent(outcomes: Sequence[Outcome]) -> bool:
    """Whether the metric had labels for none of the latest canary sessions: it has disappeared."""
    latest = [item for item in outcomes if item.arm == "canary"][-SILENT_SESSIONS:]
    return len(latest) == SILENT_SESSIONS and not any(item.labelled for item in latest)
