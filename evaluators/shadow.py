"""The candidate's unseen answers beside the champion's to the same prompts: a paired test.

Two answers to one prompt share how hard it is, so a difference shows in a fraction of the labels that
two arms would need, and no user is exposed.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from evaluators.betting import paired_worse
from evaluators.metrics import EvidencePolicy
from evaluators.scoring import score_answer
from evaluators.sequential import Verdict
from evaluators.sessions import unique_calls
from infra.calls.record import CallRecord, OtherAnswer

Pairs = list[tuple[CallRecord, OtherAnswer]]


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
    e_now: float = 1.0
    """After the last pair: what the canary's quality test begins with."""
    needed_bad: float = 20.0
    evidence_digest: str = ""
    reason: str = ""
    settled: bool = True
    """No pair waits for its horizon any more."""
    path: tuple[float, ...] = field(default=(), repr=False)
    """E-value after each pair, for a picture."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON, without the path."""
        return {name: value for name, value in asdict(self).items() if name != "path"}


def judge_shadow(
    calls: Iterable[CallRecord],
    *,
    rollout: str,
    candidate: str,
    policy: EvidencePolicy,
    now: datetime,
    champion_is_teacher: bool = True,
) -> ShadowSummary:
    """Pair the candidate's unseen answers with what the champion answered to the same prompts.

    The paired test compares both with the teacher's answer, so where the champion is an adapter and
    no audit was made, a pair counts towards the agreement but not towards the verdict. In the canary
    arm only answers that were refused stand beside the one served: those are no sample, and left out.
    """
    sessions = _sessions(calls, rollout, candidate, now)
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
        known = [scores for scores in (_scores(*pair) for pair in within) if scores is not None]
        if known:
            # A session is as good as its worst call, on either side: the worst *difference* would
            # hold every call that only the champion got right against an equal candidate.
            ours, theirs = zip(*known, strict=True)
            differences.append(min(ours) - min(theirs))
    tolerated = policy.tolerated(champion_is_teacher)
    running = paired_worse(np.array(differences, dtype=float), tolerated)
    path = np.exp(np.minimum(running, 700.0))
    e_bad = float(path.max(initial=1.0))
    level = policy.quality_level(champion_is_teacher)
    verdict: Verdict = "bad" if e_bad >= 1 / level else "continue"
    count = len(agreements)
    mean = sum(agreements) / count if count else None
    body = [asdict(policy), rollout, candidate, [agreements, differences]]
    told = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return ShadowSummary(
        pairs=len(settled),
        agreement=mean,
        accepted=accepted / count if count else None,
        calls=count,
        errors=errors,
        verdict=verdict,
        e_bad=e_bad,
        e_now=float(path[-1]) if len(path) else 1.0,
        needed_bad=1 / level,
        evidence_digest=hashlib.sha256(told.encode()).hexdigest(),
        reason=f"{len(settled)} shadow sessions"
        + ("" if mean is None else f", agreement {mean:.3f}")
        + (f", worse than the champion by more than {tolerated:g}" if verdict == "bad" else ""),
        settled=len(settled) == len(sessions),
        path=tuple(path.tolist()),
    )


def _sessions(
    calls: Iterable[CallRecord], rollout: str, candidate: str, now: datetime
) -> dict[tuple[str, str], Pairs]:
    """The paired calls of each session, oldest first."""
    sessions: dict[tuple[str, str], Pairs] = defaultdict(list)
    for call in unique_calls(calls):
        other = _shadow_answer(call, candidate)
        by = call.answered_by
        if other is None or by.rollout != rollout or by.arm == "canary" or call.time > now:
            continue
        sessions[call.tenant, call.session].append((call, other))
    return sessions


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


def _scores(call: CallRecord, other: OtherAnswer) -> tuple[float, float] | None:
    """Of candidate and champion, each against the teacher's answer; None when that is not known.

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
        return 0.0, champion
    if not other.accepted:
        return 1.0, champion
    return score_answer(right, other.message, call.request).correct, champion


def _teacher_said(call: CallRecord) -> Any:
    if call.answered_by.adapter is None or call.answered_by.escalation is not None:
        return call.answer
    return call.audit
