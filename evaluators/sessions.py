"""From the call log to session outcomes in assignment order: what the sequential test is fed.

One session is one unit. It is charged to the arm it was first exposed in, whoever answered in the
end (intention to treat), and its outcome is the worst of its calls within the maturity horizon. Of
each call, the first that applies:

1. a hard failure (failed checks, engine error, timeout, kill switch, no answer) is 0;
2. the caller's feedback: its score, or the agreement of the answer with the correction;
3. the teacher answered, as champion or for a reason in ``FORGIVEN``: 1 by definition;
4. the agreement of the shown answer with the teacher's audit answer;
5. else it is missing: anything from 0 to 1.

Beside this quality a session has what the other metrics need: hard failures, slow calls, escalations,
and tool errors that the agent reported (``evaluators/tool_results.py``).

A session is settled once its horizon has passed, or at a hard failure, which nothing can mend; calls
after that failure count for nothing. Sessions are fed up to the first unsettled one: quick failures and
slow successes arrive in order of assignment, not of arrival. Later calls and later feedback count for
nothing, so a verdict computed today is the one computed then.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from evaluators.scoring import score_answer
from evaluators.tool_results import tool_error_reported
from infra.calls.record import Arm, CallRecord, FeedbackRecord

# The teacher answered in the small model's place, and that is how the cascade is meant to work: it
# was not sure, the engine was full, the prompt too long for it, or the caller wanted fewer tokens
# than its answer takes. Every other escalation is the adapter's failure.
FORGIVEN = frozenset({"confidence", "overloaded", "prompt_too_long", "token_limit"})

Basis = Literal["failure", "feedback", "agreement", "missing"]


@dataclass(frozen=True)
class CallOutcome:
    """A call's score lies in [low, high]."""

    low: float
    high: float
    basis: Basis


@dataclass(frozen=True)
class SessionOutcome:
    """One settled or waiting session of a rollout."""

    tenant: str
    session: str
    arm: Arm
    epoch: int | None
    """Version of the route at the first exposed call: weights do not change within one."""
    assigned: datetime
    """Time of the first exposed call."""
    low: float
    high: float
    settled: bool
    calls: int
    escalations: int
    """Calls that the teacher answered in the small model's place, for whatever reason."""
    by_feedback: bool
    failed: bool = False
    """A hard failure of the arm."""
    tool_failed: bool = False
    """The agent reported that a tool call of an answer ended in an error; never beside ``failed``."""
    slow: int = 0
    """Calls slower than the objective."""

    @property
    def labelled(self) -> bool:
        return self.low == self.high

    def to_list(self) -> list[object]:
        """What the verdict depends on, as JSON."""
        return [
            self.tenant,
            self.session,
            self.arm,
            self.epoch,
            self.assigned.isoformat(),
            self.low,
            self.high,
            self.by_feedback,
            self.escalations,
            self.calls,
            self.failed,
            self.tool_failed,
            self.slow,
        ]


def session_outcomes(
    calls: Iterable[CallRecord],
    feedback: Iterable[FeedbackRecord],
    *,
    rollout: str,
    maturity_seconds: float,
    now: datetime,
    latency_objective_seconds: float | None = None,
) -> list[SessionOutcome]:
    """Every session of the rollout's canary stage in assignment order, settled or not.

    The order of the input does not matter, and a record read twice counts once. Calls in epochs
    without any canary call (the shadow stage) are left out.
    """
    exposed = [
        call
        for call in unique_calls(calls)
        if call.answered_by.rollout == rollout and call.answered_by.arm and call.time <= now
    ]
    live = {call.answered_by.route_version for call in exposed if call.answered_by.arm == "canary"}
    sessions: dict[tuple[str, str], list[CallRecord]] = defaultdict(list)
    for call in exposed:
        if call.answered_by.route_version in live:
            sessions[call.tenant, call.session].append(call)
    reported = feedback_by_call(item for item in feedback if item.time <= now)
    horizon = timedelta(seconds=maturity_seconds)
    slow = math.inf if latency_objective_seconds is None else latency_objective_seconds
    outcomes = [_outcome(members, reported, horizon, now, slow) for members in sessions.values()]
    return sorted(outcomes, key=lambda item: (item.assigned, item.tenant, item.session))


def settled_prefix(outcomes: Sequence[SessionOutcome]) -> list[SessionOutcome]:
    """The sessions before the first one that still waits for its label."""
    for place, outcome in enumerate(outcomes):
        if not outcome.settled:
            return list(outcomes[:place])
    return list(outcomes)


def unique_calls(calls: Iterable[CallRecord]) -> list[CallRecord]:
    """Each call once, in time order; of two versions of a call the one that knows more answers."""
    best: dict[tuple[str, str], CallRecord] = {}
    for call in calls:
        key = (call.tenant, call.id)
        if key not in best or _richness(call) > _richness(best[key]):
            best[key] = call
    return sorted(best.values(), key=lambda call: (call.time, call.tenant, call.id))


def feedback_by_call(
    feedback: Iterable[FeedbackRecord],
) -> dict[tuple[str, str], list[FeedbackRecord]]:
    """Feedback by (tenant, call id), oldest first. Another tenant's feedback reaches no call."""
    found: dict[tuple[str, str], dict[str, FeedbackRecord]] = defaultdict(dict)
    for item in feedback:
        found[item.tenant, item.call_id][item.id] = item
    return {
        key: sorted(items.values(), key=lambda item: (item.time, item.id))
        for key, items in found.items()
    }


def call_outcome(call: CallRecord, feedback: Sequence[FeedbackRecord]) -> CallOutcome:
    """What is known of how good the answer to one call was; the latest useful feedback counts."""
    answer = call.answer
    if answer is None or hard_failure(call.answered_by.escalation):
        return CallOutcome(0.0, 0.0, "failure")
    for item in reversed(feedback):
        if item.score is not None:
            return CallOutcome(item.score, item.score, "feedback")
        if item.correction is not None:
            score = score_answer(item.correction, answer, call.request).correct
            return CallOutcome(score, score, "feedback")
    if call.answered_by.adapter is None or call.answered_by.escalation is not None:
        return CallOutcome(1.0, 1.0, "agreement")
    if call.audit is None:
        return CallOutcome(0.0, 1.0, "missing")
    score = score_answer(call.audit, answer, call.request).correct
    return CallOutcome(score, score, "agreement")


def hard_failure(escalation: str | None) -> bool:
    """Whether this escalation is the adapter's failure; an unknown reason is."""
    return escalation is not None and escalation.split(":")[0] not in FORGIVEN


def _outcome(
    members: Sequence[CallRecord],
    reported: Mapping[tuple[str, str], Sequence[FeedbackRecord]],
    horizon: timedelta,
    now: datetime,
    slow_seconds: float,
) -> SessionOutcome:
    first = members[0]
    closes = first.time + horizon
    arm = first.answered_by.arm
    assert arm is not None  # only exposed calls get here
    # A session that a higher weight moved to the other arm later stays with the first.
    counted = [call for call in members if call.time <= closes and call.answered_by.arm == arm]
    in_time = {
        call.id: [item for item in reported.get((call.tenant, call.id), ()) if item.time <= closes]
        for call in counted
    }
    results = [call_outcome(call, in_time[call.id]) for call in counted]
    failure = next((at for at, item in enumerate(results) if item.basis == "failure"), None)
    if failure is not None:
        counted, results = counted[: failure + 1], results[: failure + 1]
    return SessionOutcome(
        tenant=first.tenant,
        session=first.session,
        arm=arm,
        epoch=first.answered_by.route_version,
        assigned=first.time,
        low=min(result.low for result in results),
        high=min(result.high for result in results),
        settled=failure is not None or now >= closes,
        calls=len(counted),
        escalations=sum(call.answered_by.escalation is not None for call in counted),
        by_feedback=any(result.basis == "feedback" for result in results),
        failed=failure is not None,
        tool_failed=failure is None and tool_error_reported(counted, in_time),
        slow=sum(call.latency_seconds > slow_seconds for call in counted),
    )


def _richness(call: CallRecord) -> tuple[int, str]:
    body = call.model_dump(mode="json")
    return len(call.other_answers), json.dumps(body, sort_keys=True, default=str)
