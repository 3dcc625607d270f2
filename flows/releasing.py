"""Enter a judged adapter and, if the gate lets it, open its rollout. No Prefect here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from flows.judgement import Judgement
from flows.learning import Trained
from flows.planning import RELEASED
from flows.wiring import Context
from infra.calls.record import utc_now
from infra.database.events import record_event
from infra.database.garbage import reserve
from serving.registry.errors import RolloutRefused
from serving.registry.records import Rollout
from serving.rollout.policy import RolloutPolicy
from trainers.artifact import publish

ACTOR = "night"


@dataclass(frozen=True)
class Released:
    """What became of a judged adapter."""

    adapter: str
    verdict: str
    rollout: str | None
    reason: str
    refused: bool = False
    """The gate let it pass, and the registry did not open its rollout."""


def release(
    context: Context,
    trained: Trained,
    judgement: Judgement,
    *,
    gate_override: str | None = None,
    drill: bool = False,
    actor: str = ACTOR,
) -> Released:
    """Publish and register the adapter with its scorecard; open a rollout if the gate passed.

    Args:
        gate_override: a person's reason to let it past the gate. Then every answer that passes its
            checks is shown: an adapter that was not certified has no threshold to go by.
        drill: go straight to the canary, and do not wait behind another rollout: the shadow would
            find a deliberately bad adapter out before the canary has to.
    """
    policy = RolloutPolicy.from_settings(
        context.settings.rollout, when_open="supersede" if drill else None
    )
    if drill:
        policy = replace(policy, shadow_sessions=0)
    released = _release(context, trained, judgement, gate_override, policy, actor)
    if released.refused:
        # Perhaps only for now (the task rests after a rollback): the next night asks again.
        return released
    # Last of all: a night that is killed before this does the release again, which changes nothing
    # that is done already.
    with context.database.begin() as connection:
        record_event(
            connection,
            actor=actor,
            what=RELEASED,
            subject=trained.name,
            why=released.reason,
            evidence={"verdict": released.verdict, "rollout": released.rollout},
        )
    return released


def _release(
    context: Context,
    trained: Trained,
    judgement: Judgement,
    gate_override: str | None,
    policy: RolloutPolicy,
    actor: str,
) -> Released:
    threshold = judgement.threshold if gate_override is None else None
    scores = scorecard_body(judgement)
    with context.database.begin() as connection:
        # What a crashed night left here counts again, before anybody takes it for rubbish.
        reserve(connection, f"adapters/{trained.task_id}/{trained.digest}", utc_now())
    artifact = publish(
        context.store,
        trained.folder,
        threshold=threshold,
        confidence=judgement.confidence,
        metrics=scores["scores"],
    )
    context.registry.register_adapter(
        name=trained.name,
        task_id=trained.task_id,
        digest=trained.digest,
        dataset_digest=trained.dataset_digest,
        spec_digest=trained.spec_digest,
        location=artifact.location,
        manifest=artifact.manifest.model_dump(mode="json"),
        threshold=artifact.manifest.threshold,
    )
    context.registry.record_scorecard(
        digest=judgement.gate["evidence_digest"],
        adapter=trained.name,
        dataset_digest=trained.dataset_digest,
        body=scores,
        gate=judgement.gate,
    )
    if judgement.verdict != "pass" and gate_override is None:
        return Released(trained.name, judgement.verdict, None, "; ".join(judgement.reasons[:3]))
    before = _earlier_rollout(context, trained.name)
    if before is not None:
        return Released(trained.name, judgement.verdict, before.id, f"already {before.state}")
    try:
        rollout = context.registry.open_rollout(
            trained.task_id,
            trained.name,
            policy,
            actor=actor,
            why=gate_override or f"the gate said {judgement.verdict}",
            gate_override=gate_override,
        )
    except RolloutRefused as refused:
        return Released(trained.name, judgement.verdict, None, str(refused), refused=True)
    return Released(trained.name, judgement.verdict, rollout.id, "rollout opened")


def _earlier_rollout(context: Context, adapter: str) -> Rollout | None:
    """A night that is run again must not bring the same adapter in a second time."""
    rollouts = context.registry.rollouts(adapter=adapter)
    return rollouts[-1] if rollouts else None


def scorecard_body(judgement: Judgement) -> dict[str, Any]:
    """What the registry keeps of a judgement."""
    return {
        "scores": {
            "base": judgement.base_score,
            "adapter": judgement.adapter_score,
            "teacher": judgement.teacher_score,
            "served": judgement.served_score,
        },
        "coverage": judgement.coverage,
        "threshold": judgement.threshold,
        "confidence": judgement.confidence,
        "scorecards": dict(judgement.scorecards),
        "report": judgement.report,
    }
