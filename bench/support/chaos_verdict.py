"""What a chaos run showed, decided from what the callers saw, what was stored, and the routes. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

TEACHER = "teacher"
GRACE_SECONDS = 1.0
"""How long after its commit a route change may be unknown to a gateway."""
AFTER_SECONDS = 10.0
"""For so long after everything serves again, an error may be a fault's late effect: an open breaker."""
CALM = "none"
SHOWN = 20
"""Offending call ids named in a verdict."""


@dataclass(frozen=True)
class Attempt:
    """One call as its caller saw it. Times: seconds on one clock that nobody sets."""

    started: float
    ended: float
    gateway: str
    streamed: bool
    outcome: str
    """``answered``, or what was seen instead: ``HTTP 503``, ``no connection``, ``broken off``, ..."""
    call_id: str = ""
    answered_by: str = ""
    """As the answer's header says: an adapter's name or ``teacher``."""
    said_by: str = ""
    """Whose recognisable answer it was; empty: nobody's."""

    @property
    def answered(self) -> bool:
        """Acknowledged: status 200, complete, with its id."""
        return self.outcome == "answered"


@dataclass(frozen=True)
class Named:
    """The route named this adapter from some moment in which it was being written, until ``until``."""

    name: str
    since: float
    until: float


@dataclass(frozen=True)
class Window:
    """A fault from its first moment until everything was seen to serve again."""

    fault: str
    began: float
    ended: float
    recovered: float


@dataclass(frozen=True)
class Verdict:
    attempts: int
    acknowledged: int
    lost: list[str]
    """Acknowledged, and not in object storage."""
    duplicated: list[str]
    """More than once in object storage, acknowledged or not."""
    wrong_answers: list[str]
    """The answer is not of the one that the header names."""
    wrong_routes: list[str]
    """By an adapter that no route named within the last second."""
    wrong_records: list[str]
    """The record names somebody else than the header."""
    by_small_model: int
    errors: dict[str, dict[str, int]]
    """Fault, or ``after`` it, or ``none``, to kind of error to count."""
    outages: dict[str, float]
    """Fault to the longest time, in seconds, in which no gateway completed any answer."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Faults that could not be made here, and why."""

    @property
    def passed(self) -> bool:
        return self.acknowledged > 0 and not (
            self.lost
            or self.duplicated
            or self.wrong_answers
            or self.wrong_routes
            or self.wrong_records
        )

    def to_json(self) -> dict[str, Any]:
        """Counts for the goals, with the first offending call ids beside them."""
        body = asdict(self)
        offending = {}
        for name in ("lost", "duplicated", "wrong_answers", "wrong_routes", "wrong_records"):
            ids = body.pop(name)
            body[name] = len(ids)
            if ids:
                offending[name] = ids[:SHOWN]
        return {"passed": self.passed, **body, "offending": offending}


def judge(
    attempts: Sequence[Attempt],
    recorded: Mapping[str, Sequence[str]],
    named: Sequence[Named],
    windows: Sequence[Window],
    skipped: Mapping[str, str] | None = None,
    grace_seconds: float = GRACE_SECONDS,
) -> Verdict:
    """The verdict over a run that is over, after everything was shipped.

    Args:
        recorded: call id to who answered (adapter's name or ``teacher``), once per stored record.
    """
    acknowledged = [attempt for attempt in attempts if attempt.answered]
    small = [attempt for attempt in acknowledged if attempt.answered_by != TEACHER]
    return Verdict(
        attempts=len(attempts),
        acknowledged=len(acknowledged),
        lost=[attempt.call_id for attempt in acknowledged if not recorded.get(attempt.call_id)],
        duplicated=sorted(name for name, copies in recorded.items() if len(copies) > 1),
        wrong_answers=[
            attempt.call_id
            for attempt in acknowledged
            if not attempt.said_by or attempt.said_by != attempt.answered_by
        ],
        wrong_routes=[
            attempt.call_id for attempt in small if not _named(attempt, named, grace_seconds)
        ],
        wrong_records=[
            attempt.call_id
            for attempt in acknowledged
            if any(who != attempt.answered_by for who in recorded.get(attempt.call_id, ()))
        ],
        by_small_model=len(small),
        errors=_errors(attempts, windows),
        outages={
            fault: round(max(_gap(acknowledged, window) for window in same), 3)
            for fault, same in _by_fault(windows).items()
        },
        skipped=dict(skipped or {}),
    )


def _named(attempt: Attempt, named: Sequence[Named], grace_seconds: float) -> bool:
    return any(
        route.name == attempt.answered_by
        and route.since <= attempt.ended
        and route.until + grace_seconds >= attempt.started
        for route in named
    )


def _errors(attempts: Sequence[Attempt], windows: Sequence[Window]) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for attempt in attempts:
        if attempt.answered:
            continue
        found[_blamed(attempt, windows)][attempt.outcome] += 1
    return {fault: dict(counts) for fault, counts in found.items()}


def _blamed(attempt: Attempt, windows: Sequence[Window]) -> str:
    # A call that was under way when the fault began is the fault's too.
    for window in windows:
        if window.began <= attempt.ended and attempt.started <= window.recovered:
            return window.fault
    before = [window for window in windows if window.recovered < attempt.started]
    last = max(before, key=lambda window: window.recovered, default=None)
    if last is not None and attempt.started - last.recovered <= AFTER_SECONDS:
        return f"after {last.fault}"
    return CALM


def _gap(acknowledged: Sequence[Attempt], window: Window) -> float:
    """Longest time within the window without a completed answer."""
    moments = sorted(
        attempt.ended
        for attempt in acknowledged
        if window.began <= attempt.ended <= window.recovered
    )
    edges = [window.began, *moments, window.recovered]
    return max(b - a for a, b in pairwise(edges))


def _by_fault(windows: Sequence[Window]) -> dict[str, list[Window]]:
    found: dict[str, list[Window]] = defaultdict(list)
    for window in windows:
        found[window.fault].append(window)
    return found
