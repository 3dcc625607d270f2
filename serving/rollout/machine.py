"""The rollout state machine: what is known of a rollout goes in, the next step comes out. Pure.

::

    pending ──▶ shadow ──▶ canary (steps) ──▶ promoted
       │           │           │
       └───────────┴───────────┴──▶ rolled_back | inconclusive | superseded

The order of the checks is the safety argument:

1. an ended rollout never moves again;
2. rollback (kill switch, sequential test) comes before every other gate;
3. then the ends that keep the champion: route taken away, task held back, deadline passed;
4. only then may more traffic be exposed, and only with the adapter loaded and labels counted.

Nothing but a "good" verdict promotes: running out of time or of sessions ends inconclusive, and
inconclusive is an end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from serving.rollout.policy import RolloutPolicy

State = Literal[
    "pending", "shadow", "canary", "promoted", "rolled_back", "inconclusive", "superseded"
]
Stage = Literal["none", "shadow", "canary"]
Verdict = Literal["bad", "good", "continue"]
TaskPolicy = Literal["specialize", "shadow", "teacher"]
Kind = Literal["claim", "shadow", "canary", "raise", "promote", "roll_back", "give_up", "supersede"]

OPEN: frozenset[State] = frozenset({"pending", "shadow", "canary"})
ENDED: frozenset[State] = frozenset({"promoted", "rolled_back", "inconclusive", "superseded"})
_KEEPS_CHAMPION: frozenset[State] = frozenset({"rolled_back", "inconclusive", "superseded"})
_AFTER_PENDING: frozenset[State] = frozenset({"pending", "shadow", "canary"})
_AFTER_SHADOW: frozenset[State] = frozenset({"canary"})
_AFTER_CANARY: frozenset[State] = frozenset({"canary", "promoted"})
_NOTHING: frozenset[State] = frozenset()
ALLOWED: Mapping[State, frozenset[State]] = {
    "pending": _AFTER_PENDING | _KEEPS_CHAMPION,
    "shadow": _AFTER_SHADOW | _KEEPS_CHAMPION,
    "canary": _AFTER_CANARY | _KEEPS_CHAMPION,
    "promoted": _NOTHING,
    "rolled_back": _NOTHING,
    "inconclusive": _NOTHING,
    "superseded": _NOTHING,
}
"""Which state may follow which; the write to the database checks it once more."""

MAX_REASON = 500


@dataclass(frozen=True)
class RolloutState:
    """What the registry knows of a rollout when a step is decided."""

    state: State
    step: int
    """Index into ``policy.steps`` while in canary."""
    policy: RolloutPolicy
    deadline: datetime
    route: Literal["own", "free", "taken"]
    """Whose candidate the task's route carries. ``taken`` also while the task cools down."""
    task_policy: TaskPolicy = "specialize"


@dataclass(frozen=True)
class Observation:
    """What was seen of a rollout since it began; counts are of sessions, not of calls.

    The defaults are those of having seen nothing: they never expose anybody.
    """

    loaded: bool = False
    """The engine lists the adapter and a probe was answered."""
    kill: str | None = None
    """Reason of the kill switch: load refused, error burst, unsafe output."""
    verdict: Verdict = "continue"
    """Sequential test of the canary arm against the concurrent champion arm."""
    labels: int = 0
    """Canary sessions with a valid label, imputed ones not counted."""
    shadow_verdict: Verdict = "continue"
    shadow_pairs: int = 0
    step_sessions: int = 0
    """Canary sessions seen since the present step began."""
    canary_sessions: int = 0
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """The numbers behind the verdicts and a digest of what was read, as JSON."""

    def counts(self) -> dict[str, int]:
        return {
            "shadow_pairs": self.shadow_pairs,
            "step_sessions": self.step_sessions,
            "canary_sessions": self.canary_sessions,
            "labels": self.labels,
        }


@dataclass(frozen=True)
class Transition:
    kind: Kind
    state: State
    step: int
    stage: Stage
    weight: float
    """Share of sessions in the canary arm after the transition."""
    reason: str
    deadline_seconds: float | None = None
    """Deadline of the state entered, counted from now; None keeps the present one."""


def end(kind: Kind, state: State, step: int, reason: str) -> Transition:
    """A transition into an ended state: nothing is exposed any more."""
    return Transition(kind, state, step, "none", 0.0, reason[:MAX_REASON])


def next_step(now_is: RolloutState, seen: Observation, now: datetime) -> Transition | None:
    """The one step to take now, or None to wait."""
    if now_is.state in ENDED:
        return None
    return _rollback(now_is, seen) or _keep_champion(now_is, now) or _advance(now_is, seen)


def _rollback(now_is: RolloutState, seen: Observation) -> Transition | None:
    def back(reason: str) -> Transition:
        return end("roll_back", "rolled_back", now_is.step, reason)

    margin = now_is.policy.margin
    if seen.kill is not None:
        return back(f"kill switch: {seen.kill or 'no reason given'}")
    if seen.verdict == "bad":
        return back(
            f"the sequential test found the canary worse than the champion by more than {margin:g} "
            f"after {seen.canary_sessions} canary sessions"
        )
    if seen.shadow_verdict == "bad":
        return back(
            f"the paired shadow test found the adapter worse than the champion by more than "
            f"{margin:g} after {seen.shadow_pairs} pairs; nobody was exposed by the shadow"
        )
    return None


def _keep_champion(now_is: RolloutState, now: datetime) -> Transition | None:
    if now_is.state != "pending" and now_is.route != "own":
        return end(
            "supersede",
            "superseded",
            now_is.step,
            "the task's route no longer carries this rollout; its evidence ends here",
        )
    if now_is.task_policy == "teacher":
        return end("give_up", "inconclusive", now_is.step, "the task is set to teacher only")
    if now_is.task_policy == "shadow" and now_is.state == "canary":
        return end("give_up", "inconclusive", now_is.step, "the task is set to shadow only")
    if now >= now_is.deadline:
        return end(
            "give_up",
            "inconclusive",
            now_is.step,
            f"the deadline of state {now_is.state} passed without a verdict; the champion stays",
        )
    return None


def _advance(now_is: RolloutState, seen: Observation) -> Transition | None:
    if now_is.state == "pending":
        return _from_pending(now_is, seen)
    if now_is.state == "shadow":
        return _from_shadow(now_is, seen)
    return _from_canary(now_is, seen)


def _from_pending(now_is: RolloutState, seen: Observation) -> Transition | None:
    policy = now_is.policy
    if now_is.route == "free":
        return Transition("claim", "pending", 0, "none", 0.0, "its turn has come")
    if now_is.route == "taken" or not seen.loaded:
        return None
    if policy.shadow_sessions == 0 and now_is.task_policy == "specialize":
        return _enter_canary(policy, "loaded and probed; this rollout has no shadow state")
    return Transition(
        "shadow",
        "shadow",
        0,
        "shadow",
        0.0,
        f"loaded and probed; {policy.shadow_sessions} shadow pairs to collect",
        policy.shadow_deadline_seconds,
    )


def _from_shadow(now_is: RolloutState, seen: Observation) -> Transition | None:
    policy = now_is.policy
    enough = seen.shadow_pairs >= policy.shadow_sessions
    if not seen.loaded or not enough or now_is.task_policy != "specialize":
        return None
    return _enter_canary(policy, f"{seen.shadow_pairs} shadow pairs without a bad verdict")


def _enter_canary(policy: RolloutPolicy, reason: str) -> Transition:
    return Transition(
        "canary", "canary", 0, "canary", policy.steps[0], reason, policy.canary_deadline_seconds
    )


def _from_canary(now_is: RolloutState, seen: Observation) -> Transition | None:
    policy, step = now_is.policy, now_is.step
    may_move = seen.loaded and seen.labels > 0
    if may_move and seen.verdict == "good" and seen.canary_sessions >= policy.step_sessions:
        return Transition(
            "promote",
            "promoted",
            step,
            "none",
            0.0,
            f"not worse than the champion by {policy.margin:g} or more, shown after "
            f"{seen.canary_sessions} canary sessions ({seen.labels} with a label)",
        )
    shown_good = seen.verdict == "good" and seen.labels > 0
    if seen.canary_sessions >= policy.max_sessions and not shown_good:
        return end(
            "give_up",
            "inconclusive",
            step,
            f"no verdict after {seen.canary_sessions} canary sessions; the champion stays",
        )
    last = step + 1 >= len(policy.steps)
    if may_move and not last and seen.step_sessions >= policy.step_sessions:
        return Transition(
            "raise",
            "canary",
            step + 1,
            "canary",
            policy.steps[step + 1],
            f"{seen.step_sessions} sessions at {policy.steps[step]:.0%} without a bad verdict",
        )
    return None
