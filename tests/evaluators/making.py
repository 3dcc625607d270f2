"""Rows, outcomes and call records for the tests of this room."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from evaluators.replay import Outcome
from evaluators.scoring import CallScore
from evaluators.served import GateRow
from infra.calls.record import AnsweredBy, CallRecord, Checks, FeedbackRecord, OtherAnswer

START = datetime(2026, 3, 1, 8, tzinfo=UTC)
CANDIDATE = "lights@0123456789abcdef"
CHAMPION = "lights@fedcba9876543210"
ROLLOUT = "rollout-1"


def says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def outcome(
    name: str,
    correct: float = 1.0,
    confidence: float | None = -0.1,
    session: str | None = None,
    *,
    passed: bool = True,
    error: str | None = None,
) -> Outcome:
    return Outcome(
        example_id=name,
        session=session or f"session-{name}",
        message=None if error else says("right" if correct else "wrong"),
        checks=Checks(parsed=passed),
        confidence=confidence,
        score=CallScore("label", correct, {"exact": correct}),
        latency_seconds=0.5,
        error=error,
    )


def row(
    place: int,
    adapter: float = 1.0,
    *,
    accepted: bool = True,
    incumbent: float = 1.0,
    base: float | None = 0.0,
    error: bool = False,
    session: str | None = None,
    slices: dict[str, str] | None = None,
) -> GateRow:
    return GateRow(
        example_id=f"row-{place}",
        session=session or f"session-{place}",
        accepted=accepted,
        adapter=adapter,
        served=adapter if accepted else 1.0,
        incumbent=incumbent,
        base=base,
        error=error,
        slices=slices or {},
    )


@dataclass(frozen=True)
class Example:
    request: dict[str, Any]
    answer: dict[str, Any]
    session: str
    call_id: str


def call(
    session: str,
    at_seconds: float,
    arm: str = "canary",
    *,
    agrees: bool | None = True,
    adapter: str | None = CANDIDATE,
    escalation: str | None = None,
    epoch: int = 1,
    tenant: str = "default",
    shadow: OtherAnswer | None = None,
    answered: bool = True,
    rollout: str = ROLLOUT,
) -> CallRecord:
    """A call of a rollout; ``agrees`` None leaves it without an audit."""
    others = [] if shadow is None else [shadow]
    if agrees is not None and adapter is not None and escalation is None:
        said = "yes" if agrees else "no"
        others.append(OtherAnswer(model="teacher", purpose="audit", message=says(said)))
    return CallRecord(
        id=f"{tenant}-{session}-{at_seconds}",
        time=START + timedelta(seconds=at_seconds),
        tenant=tenant,
        session=session,
        request={"messages": [{"role": "user", "content": "is it?"}]},
        response={"choices": [{"message": says("yes")}]} if answered else {"error": {}},
        answered_by=AnsweredBy(
            model="small" if adapter else "teacher",
            adapter=adapter if escalation is None else None,
            arm=arm,
            rollout=rollout,
            route_version=epoch,
            escalation=escalation,
        ),
        other_answers=others,
    )


def report_of(record: CallRecord, score: float | None, after_seconds: float = 1, **more: Any):
    return FeedbackRecord(
        id=f"{record.id}-{score}-{after_seconds}",
        time=record.time + timedelta(seconds=after_seconds),
        tenant=more.pop("tenant", record.tenant),
        call_id=record.id,
        score=score,
        **more,
    )
