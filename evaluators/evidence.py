"""Verdicts on a rollout, computed from the call log alone: same log, same policy, same verdict.

Missing labels are imputed against each verdict on its own: for ``good`` a canary without a label is
0 and a champion without one is 1; for ``bad`` a canary without a label is 1 and champions without one
are left out. So missing data never promotes, and never alone rolls back.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

from evaluators.scoring import score_answer
from evaluators.sequential import Block, Outcome, Verdict, match_blocks, run_test
from evaluators.sessions import (
    SessionOutcome,
    session_outcomes,
    settled_prefix,
    unique_calls,
)
from infra.calls.record import CallRecord, FeedbackRecord, OtherAnswer

TEACHER = "teacher"


@dataclass(frozen=True)
class EvidencePolicy:
    """The part of a rollout's terms that the verdict depends on."""

    margin: float = 0.1
    alpha_bad: float = 0.05
    alpha_good: float = 0.05
    maturity_seconds: float = 300.0


@dataclass(frozen=True)
class Decision:
    """Verdict on the canary stage so far, and what it rests on. Counts are of settled sessions."""

    verdict: Verdict
    e_bad: float
    """Largest e-value so far; 1 / alpha_bad and above is bad."""
    e_good: float
    canary_sessions: int
    champion_sessions: int
    labelled: int
    """Canary sessions with a valid label; imputed ones are not counted."""
    mean_canary: float | None
    """Over the labelled sessions; None without any."""
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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ShadowSummary:
    """Candidate against champion on the same prompts, nobody exposed."""

    pairs: int
    """Settled sessions with at least one shadow answer."""
    agreement: float | None
    """Mean over calls of the agreement of what would have been served with the champion's answer;
    a call that goes to the teacher agrees when the teacher is the champion. Failures of the
    candidate are not in here, for the caller would not see them: the verdict counts them."""
    accepted: float | None
    """Share of calls that the candidate would have answered itself."""
    calls: int = 0
    errors: int = 0
    verdict: Verdict = "continue"
    """``bad`` when the paired test shows the candidate worse by more than the margin, else
    ``continue``: a shadow promotes nobody."""
    e_bad: float = 1.0
    evidence_digest: str = ""
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def judge_canary(
    calls: Iterable[CallRecord],
    feedback: Iterable[FeedbackRecord],
    *,
    rollout: str,
    champion: str,
    policy: EvidencePolicy,
    now: datetime,
) -> Decision:
    """The sequential test's verdict on everything logged up to ``now``.

    Args:
        calls: log records of the rollout; others among them are ignored, order does not matter.
        feedback: reports of the callers, likewise.
        rollout: the rollout's id as the gateway wrote it into ``answered_by``.
        champion: name of the champion adapter, or ``teacher``.
        policy: the terms the rollout opened with.
        now: records after this are ignored.
    """
    seen = session_outcomes(
        calls, feedback, rollout=rollout, maturity_seconds=policy.maturity_seconds, now=now
    )
    fed = settled_prefix(seen)
    blocks = match_blocks(map(_as_outcome, fed), champion_is_teacher=champion == TEACHER)
    result = run_test(blocks, policy.margin, policy.alpha_bad, policy.alpha_good)
    canaries = [item for item in fed if item.arm == "canary"]
    champions = [item for item in fed if item.arm == "champion"]
    labelled = sum(item.labelled for item in canaries)
    verdict = result.verdict
    if verdict == "good" and not labelled:
        verdict = "continue"
    mean_canary, mean_champion = _mean(canaries), _mean(champions)
    return Decision(
        verdict=verdict,
        e_bad=result.e_bad,
        e_good=result.e_good,
        canary_sessions=len(canaries),
        champion_sessions=len(champions),
        labelled=labelled,
        mean_canary=mean_canary,
        mean_champion=mean_champion,
        escalations=sum(item.escalations for item in canaries),
        evidence_digest=_digest(policy, rollout, champion, [item.to_list() for item in fed]),
        reason=_reason(verdict, result.e_bad, result.e_good, len(canaries), labelled, policy),
        blocks=result.blocks,
        waiting=len(seen) - len(fed),
        canary_calls=sum(item.calls for item in canaries),
        canary_by_epoch=dict(sorted(Counter(str(item.epoch) for item in canaries).items())),
    )


def judge_shadow(
    calls: Iterable[CallRecord],
    *,
    rollout: str,
    candidate: str,
    policy: EvidencePolicy,
    now: datetime,
) -> ShadowSummary:
    """Pair the candidate's unseen answers with what the champion answered to the same prompts.

    The paired test compares both with the teacher's answer, so where the champion is an adapter and
    no audit was made, a pair counts towards the agreement but not towards the verdict. In the canary
    arm only answers that were refused stand beside the one served: those are no sample, and left out.
    """
    sessions: dict[tuple[str, str], list[tuple[CallRecord, OtherAnswer]]] = defaultdict(list)
    for call in unique_calls(calls):
        other = _shadow_answer(call, candidate)
        by = call.answered_by
        if other is None or by.rollout != rollout or by.arm == "canary" or call.time > now:
            continue
        sessions[call.tenant, call.session].append((call, other))
    horizon = timedelta(seconds=policy.maturity_seconds)
    settled = [pairs for pairs in sessions.values() if now >= pairs[0][0].time + horizon]
    agreements: list[float] = []
    differences: list[float] = []
    accepted = errors = 0
    for pairs in settled:
        within = [pair for pair in pairs if pair[0].time <= pairs[0][0].time + horizon]
        agreements += [_agreement(call, other) for call, other in within]
        accepted += sum(other.accepted and other.error is None for _, other in within)
        errors += sum(other.error is not None for _, other in within)
        known = [_difference(call, other) for call, other in within]
        worst = [difference for difference in known if difference is not None]
        if worst:
            differences.append(min(worst))
    result = run_test(
        [Block(difference, -1.0) for difference in differences],
        policy.margin,
        policy.alpha_bad,
        policy.alpha_good,
    )
    count = len(agreements)
    verdict: Verdict = "bad" if result.verdict == "bad" else "continue"
    mean = sum(agreements) / count if count else None
    return ShadowSummary(
        pairs=len(settled),
        agreement=mean,
        accepted=accepted / count if count else None,
        calls=count,
        errors=errors,
        verdict=verdict,
        e_bad=result.e_bad,
        evidence_digest=_digest(policy, rollout, candidate, [agreements, differences]),
        reason=f"{len(settled)} shadow sessions"
        + ("" if mean is None else f", agreement {mean:.3f}")
        + (f", worse than the champion by more than {policy.margin:g}" if verdict == "bad" else ""),
    )


def _as_outcome(item: SessionOutcome) -> Outcome:
    return Outcome(item.arm, item.epoch, item.low, item.high, not item.by_feedback)


def _shadow_answer(call: CallRecord, candidate: str) -> OtherAnswer | None:
    for other in call.other_answers:
        if other.purpose == "shadow" and other.adapter == candidate:
            return other
    return None


def _agreement(call: CallRecord, other: OtherAnswer) -> float:
    """Agreement of what the caller would have got with what the caller did get."""
    if not other.accepted or other.error is not None:
        right = _teacher_said(call)
        if right is None or call.answer is None:
            return 1.0
        return score_answer(right, call.answer, call.request).correct
    if call.answer is None:
        return 0.0
    return score_answer(call.answer, other.message, call.request).correct


def _difference(call: CallRecord, other: OtherAnswer) -> float | None:
    """Candidate minus champion, each against the teacher's answer; None when that is not known.

    As in the canary a failure of the candidate is 0, though the teacher would step in, and leaving
    the call to the teacher is 1.
    """
    right = _teacher_said(call)
    if right is None:
        return None
    champion = score_answer(right, call.answer, call.request).correct if call.answer else 0.0
    if call.answered_by.adapter is None:
        champion = 1.0
    if other.error is not None or not other.checks.passed:
        return 0.0 - champion
    if not other.accepted:
        return 1.0 - champion
    return score_answer(right, other.message, call.request).correct - champion


def _teacher_said(call: CallRecord) -> Any:
    if call.answered_by.adapter is None or call.answered_by.escalation is not None:
        return call.answer
    return call.audit


def _mean(items: Sequence[SessionOutcome]) -> float | None:
    scores = [item.low for item in items if item.labelled]
    return sum(scores) / len(scores) if scores else None


def _reason(
    verdict: Verdict, bad: float, good: float, sessions: int, labelled: int, policy: EvidencePolicy
) -> str:
    counted = f"{sessions} canary sessions, {labelled} with a label"
    if verdict == "bad":
        return (
            f"worse than the champion by more than {policy.margin:g}: evidence {bad:.3g}, needed "
            f"{1 / policy.alpha_bad:g}; {counted}"
        )
    if verdict == "good":
        return (
            f"not worse than the champion by {policy.margin:g}: evidence {good:.3g}, needed "
            f"{1 / policy.alpha_good:g}; {counted}"
        )
    return (
        f"no verdict yet: evidence {bad:.3g} of {1 / policy.alpha_bad:g} for worse, {good:.3g} of "
        f"{1 / policy.alpha_good:g} for as good; {counted}"
    )


def _digest(policy: EvidencePolicy, rollout: str, name: str, fed: Sequence[object]) -> str:
    body = json.dumps([asdict(policy), rollout, name, fed], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(body.encode()).hexdigest()
