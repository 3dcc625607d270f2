"""What a call log says of a rollout, as the state machine wants to know it. Pure: same log, same view.

Tending, replaying and drawing a rollout all go through here, so that they cannot come apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from datetime import datetime

from evaluators.evidence import EvidencePolicy, judge_canary, judge_shadow
from evaluators.latency import champion_objective
from evaluators.sessions import session_outcomes, settled_prefix
from flows.exposure import SplitTest, exposures, mismatch
from infra.calls.record import CallRecord, FeedbackRecord
from serving.registry.records import TEACHER, Rollout
from serving.rollout.machine import Observation
from serving.rollout.policy import RolloutPolicy


def observe(
    rollout: Rollout,
    calls: Sequence[CallRecord],
    feedback: Sequence[FeedbackRecord],
    *,
    now: datetime,
    weights: Mapping[int, float],
    step_route_version: int | None,
    loaded: bool,
    split_test: SplitTest = mismatch,
) -> Observation:
    """Judge what was logged up to ``now``.

    Args:
        weights: share asked for under each version of the route (``exposure.weights_of``).
        step_route_version: the version that the present step began with.
        loaded: whether the engine holds the adapter; not in the log.
    """
    terms = rollout.policy
    objective = rollout.latency_objective_seconds
    policy = replace(evidence_policy(terms), latency_objective_seconds=objective)
    if objective is None and rollout.state != "canary":
        objective = champion_objective(
            calls,
            rollout=rollout.id,
            now=now,
            floor_seconds=terms.latency_floor_seconds,
        )
    champion = rollout.champion or TEACHER
    shadow = judge_shadow(
        calls,
        rollout=rollout.id,
        candidate=rollout.adapter,
        policy=policy,
        now=now,
        champion_is_teacher=champion == TEACHER,
    )
    decision = judge_canary(
        calls,
        feedback,
        rollout=rollout.id,
        champion=champion,
        policy=policy,
        now=now,
        candidate=rollout.adapter,
    )
    since = step_route_version or 0
    splits = exposures(
        calls,
        rollout=rollout.id,
        weights=weights,
        settled_seconds=terms.maturity_seconds,
        now=now,
    )
    return Observation(
        loaded=loaded,
        verdict=decision.verdict,
        labels=decision.labelled,
        shadow_verdict=shadow.verdict,
        shadow_pairs=shadow.pairs,
        step_sessions=sum(
            count
            for epoch, count in decision.canary_by_epoch.items()
            if epoch.isdigit() and int(epoch) >= since
        ),
        canary_sessions=decision.canary_sessions,
        reason=decision.reason,
        shadow_reason=shadow.reason,
        step_labels=_step_labels(rollout, calls, feedback, now, since),
        latency_objective_seconds=objective,
        mismatch=split_test(splits),
        evidence={
            "canary": decision.to_dict(),
            "shadow": shadow.to_dict(),
            "exposed": [
                {"weight": split.share, "canary": split.canaries, "champion": split.champions}
                for split in splits
            ],
        },
    )


def evidence_policy(terms: RolloutPolicy) -> EvidencePolicy:
    """The part of a rollout's terms that the verdict depends on."""
    known = {field.name for field in fields(EvidencePolicy)} & {
        field.name for field in fields(RolloutPolicy)
    }
    return EvidencePolicy(**{name: getattr(terms, name) for name in known})


def _step_labels(
    rollout: Rollout,
    calls: Sequence[CallRecord],
    feedback: Sequence[FeedbackRecord],
    now: datetime,
    since: int,
) -> int:
    """Settled canary sessions of the present step with a label of their own."""
    settled = settled_prefix(
        session_outcomes(
            calls,
            feedback,
            rollout=rollout.id,
            maturity_seconds=rollout.policy.maturity_seconds,
            now=now,
        )
    )
    return sum(
        item.labelled
        for item in settled
        if item.arm == "canary" and item.epoch is not None and item.epoch >= since
    )
