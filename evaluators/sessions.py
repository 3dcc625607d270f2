"""From the call log to session outcomes in assignment order: what the sequential test is fed.

One session is one unit. It is charged to the arm it was first exposed in, whoever answered in the
end (intention to treat), and its outcome is the worst of its calls within the maturity horizon. A call
is scored on two scales, which are kept apart because who sends feedback may depend on the answer:

* *agreement* with the teacher: 0 for a hard failure (failed checks, engine error, timeout, kill
  switch); 1 where the teacher answered, as champion or for a reason in ``FORGIVEN``; else that of the
  shown answer with the teacher's audit answer; without an audit anything from 0 to 1;
* what the caller *said*: 0 for a hard failure; the latest feedback (its score, or the agreement of the
  answer with the correction); without feedback anything from 0 to 1.

Where a judge was asked on a budget (``JUDGED``) and the caller said nothing, its word only widens: the
call is somewhere from its agreement to what the judge says. Wider intervals are weaker evidence for
either verdict, so no judge, however wrong, makes a rollout err more often than declared.

Where there was no engine (``ABSENT``), or the teacher itself did not answer, nobody knows how good the
arm would have been: anything from 0 to 1 on either scale, and no failure of the arm.

Beside this a session has what the other metrics need: hard failures, slow calls, escalations, and tool
errors that the agent reported (``evaluators/tool_results.py``).

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
from typing import Any, Literal

from evaluators.scoring import score_answer
from evaluators.tool_results import tool_error_reported
from infra.calls.record import Arm, CallRecord, FeedbackRecord

# The teacher answered in the small model's place, and that is how the cascade is meant to work: it
# was not sure, the engine was full, the prompt too long for it, or the caller wanted fewer tokens
# than its answer takes. Every other escalation is the adapter's failure.
FORGIVEN = frozenset({"confidence", "overloaded", "prompt_too_long", "token_limit"})

# No engine was there for anybody: the connection was refused, or the adapter is not back after a
# restart. An engine that breaks while it works on a call is another matter: the adapter may have done it.
ABSENT = frozenset({"engine_absent"})

JUDGED = "nightschool:judge"
"""Label of a feedback record that is the judge's word on a canary's answer, and no caller's."""

Basis = Literal["failure", "feedback", "agreement", "missing"]


@dataclass(frozen=True)
class Interval:
    """A score in [low, high]: known when they are equal."""

    low: float
    high: float

    @property
    def known(self) -> bool:
        return self.low == self.high


NOTHING_KNOWN, WRONG, RIGHT = Interval(0.0, 1.0), Interval(0.0, 0.0), Interval(1.0, 1.0)


@dataclass(frozen=True)
class CallOutcome:
    """A call on both scales; ``basis`` is the stronger one that is known, feedback first."""

    agreed: Interval
    said: Interval
    basis: Basis
    judged: float | None = None
    """The judge's word, 0 to 1; None: it was not asked."""

    @property
    def best_known(self) -> Interval:
        """What the caller said, else the agreement; as wide as the judge makes it."""
        if self.basis == "feedback":
            return self.said
        if self.judged is None:
            return self.agreed
        return Interval(min(self.agreed.low, self.judged), max(self.agreed.high, self.judged))


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
    """With ``high``: of each call what was said of it, else its agreement. For people to read, and
    for a promotion beside the teacher."""
    high: float
    settled: bool
    calls: int
    escalations: int
    """Calls that the teacher answered in the small model's place, for whatever reason."""
    agreed: Interval = NOTHING_KNOWN
    said: Interval = NOTHING_KNOWN
    failed: bool = False
    """A hard failure of the arm."""
    tool_failed: bool = False
    """The agent reported that a tool call of an answer ended in an error; never beside ``failed``."""
    slow: int = 0
    """Calls slower than the objective."""
    absent: int = 0
    """Calls for which there was no engine; among the escalations."""
    unanswered: bool = False
    """The teacher itself failed to answer a call; never beside ``failed``."""

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
            [self.agreed.low, self.agreed.high],
            [self.said.low, self.said.high],
            self.escalations,
            self.calls,
            self.failed,
            self.tool_failed,
            self.slow,
            self.absent,
            self.unanswered,
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
    without any canary call (the shadow stage) are left out, and so are sessions that met no engine at
    any call: like those at a gateway that has not loaded the candidate, they were not treated.
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
    # While such a session may still go on it holds its place in the line.
    treated = [item for item in outcomes if not item.settled or item.absent < item.calls]
    return sorted(treated, key=lambda item: (item.assigned, item.tenant, item.session))


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
    """What is known of how good the answer to one call was."""
    answer, by = call.answer, call.answered_by
    if hard_failure(by.escalation) or (answer is None and by.adapter is not None):
        return CallOutcome(WRONG, WRONG, "failure")
    if answer is None or by.escalation in ABSENT:
        return CallOutcome(NOTHING_KNOWN, NOTHING_KNOWN, "missing")
    said = _said(call, answer, feedback)
    if by.adapter is None or by.escalation is not None:
        agreed = RIGHT
    elif call.audit is None:
        agreed = NOTHING_KNOWN
    else:
        score = score_answer(call.audit, answer, call.request).correct
        agreed = Interval(score, score)
    if said is not None:
        return CallOutcome(agreed, said, "feedback")
    basis: Basis = "agreement" if agreed.known else "missing"
    words = [item.score for item in feedback if item.label == JUDGED]
    return CallOutcome(agreed, NOTHING_KNOWN, basis, words[-1] if words else None)


def _said(
    call: CallRecord, answer: Mapping[str, Any], feedback: Sequence[FeedbackRecord]
) -> Interval | None:
    """By the latest feedback that says how good the answer was."""
    for item in reversed(feedback):
        if item.label == JUDGED:
            continue
        score = item.score
        if score is None and item.correction is not None:
            score = score_answer(item.correction, answer, call.request).correct
        if score is not None:
            return Interval(score, score)
    return None


def hard_failure(escalation: str | None) -> bool:
    """Whether this escalation is the adapter's failure; an unknown reason is."""
    return escalation is not None and escalation.split(":")[0] not in FORGIVEN | ABSENT


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
        low=min(result.best_known.low for result in results),
        high=min(result.best_known.high for result in results),
        settled=failure is not None or now >= closes,
        calls=len(counted),
        escalations=sum(call.answered_by.escalation is not None for call in counted),
        agreed=_worst(result.agreed for result in results),
        said=_worst(result.said for result in results),
        failed=failure is not None,
        tool_failed=failure is None and tool_error_reported(counted, in_time),
        slow=sum(call.latency_seconds > slow_seconds for call in counted),
        absent=sum(call.answered_by.escalation in ABSENT for call in counted),
        unanswered=failure is None and any(call.answer is None for call in counted),
    )


def _worst(intervals: Iterable[Interval]) -> Interval:
    """Of a session: it is as good as its worst call."""
    found = list(intervals)
    return Interval(min(one.low for one in found), min(one.high for one in found))


def _richness(call: CallRecord) -> tuple[int, str]:
    body = call.model_dump(mode="json")
    return len(call.other_answers), json.dumps(body, sort_keys=True, default=str)
