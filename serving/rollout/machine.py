"""The rollout state machine: what is known of a rollout goes in, the next step comes out. Pure.

::

    pending ──▶ shadow ──▶ canary (steps) ──▶ promoted
       │           │           │
       └───────────┴───────────┴──▶ rolled_back | inconclusive | superseded

The order of the checks is the safety argument:

1. an ended rollout never moves again;
2. rollback (kill switch, sequential test) comes before every other gate;
3. then the ends that keep the champion: route taken away, task held back, split not as asked for,
   deadline passed;
4. a paused rollout stops here: nobody is exposed, and the pause has a deadline of its own;
5. only then may more traffic be exposed, and only with the adapter loaded and labels counted.

Nothing but a "good" verdict promotes, and where the policy asks for it a person must agree: running
out of time or of sessions ends inconclusive, and inconclusive is an end.

What a person may order (pause, resume, abort, approve) is in here too: ``order`` gives the transition
or says why there is none.
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
Kind = Literal[
    "claim",
    "shadow",
    "canary",
    "raise",
    "ask",
    "promote",
    "roll_back",
    "give_up",
    "supersede",
    "pause",
    "resume",
    "abort",
    "approve",
]
RouteHeld = Literal["own", "free", "taken"]
Order = Literal["pause", "resume", "abort", "approve"]
Approval = Literal["none", "asked", "given"]

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
    route: RouteHeld
    """Whose candidate the task's route carries. ``taken`` also while the task cools down."""
    task_policy: TaskPolicy = "specialize"
    paused: bool = False
    """Then ``deadline`` is that of the pause."""
    paused_left_seconds: float = 0.0
    """What was left of the state's own deadline when the pause began."""
    approval: Approval = "none"
    """``asked``: shown good, and ``deadline`` is that of the answer."""


@dataclass(frozen=True)
class Observation:
    """What was seen of a rollout since it began; counts are of sessions, not of calls.

    The defaults are those of having seen nothing: they never expose anybody.
    """

    loaded: bool = False
    """The engine lists the adapter and a probe was answered."""
    kill: str | None = None
    """Reason of the kill switch: load refused, error burst, unsafe output, latency collapse."""
    verdict: Verdict = "continue"
    """Sequential test of the canary arm against the concurrent champion arm."""
    labels: int = 0
    """Canary sessions with a valid label, imputed ones not counted."""
    shadow_verdict: Verdict = "continue"
    shadow_pairs: int = 0
    step_sessions: int = 0
    """Canary sessions seen since the present step began."""
    canary_sessions: int = 0
    reason: str = ""
    """The test's own words for its verdict, with its numbers."""
    shadow_reason: str = ""
    step_labels: int | None = None
    """Canary sessions of the present step with a valid label; None: not counted by step."""
    latency_objective_seconds: float | None = None
    """What an answer may take: as frozen, else what the champion has shown so far."""
    mismatch: str | None = None
    """Why the recorded split cannot be the one that was asked for (sample-ratio mismatch)."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """The numbers behind the verdicts and a digest of what was read, as JSON."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """Where the evidence is kept, and the time it was judged at: what a replay starts from."""

    def counts(self) -> dict[str, int]:
        counted = {
            "shadow_pairs": self.shadow_pairs,
            "step_sessions": self.step_sessions,
            "canary_sessions": self.canary_sessions,
            "labels": self.labels,
        }
        return counted if self.step_labels is None else counted | {"step_labels": self.step_labels}


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
    found = _rollback(now_is, seen) or _keep_champion(now_is, seen, now)
    if found is not None or now_is.paused:
        return found
    return _advance(now_is, seen)


def order(now_is: RolloutState, what: Order, why: str, now: datetime) -> Transition | str:
    """What a person's order does to a rollout, or why it cannot be carried out.

    An abort is not a rollback: it says nothing of the adapter, which may be brought in again.
    """
    if now_is.state in ENDED:
        return f"it has ended: {now_is.state}"
    if what == "abort":
        return end("abort", "inconclusive", now_is.step, f"aborted: {why}")
    if now_is.route != "own":
        return "it waits for its turn and exposes nobody; it can only be aborted"
    if what == "pause":
        if now_is.paused:
            return "it is paused already"
        return Transition(
            "pause",
            now_is.state,
            now_is.step,
            "none",
            0.0,
            f"paused: {why}"[:MAX_REASON],
            now_is.policy.pause_seconds,
        )
    if what == "resume":
        return _resume(now_is, why)
    if now_is.approval != "asked":
        return (
            "it does not wait for an approval"
            if now_is.approval == "none"
            else "it is approved already"
        )
    if now_is.paused:
        return "it is paused: resume it first"
    return _at_its_place(now_is, "approve", f"approved: {why}", None)


def _resume(now_is: RolloutState, why: str) -> Transition | str:
    if not now_is.paused:
        return "it is not paused"
    return _at_its_place(now_is, "resume", f"resumed: {why}", now_is.paused_left_seconds)


def _at_its_place(
    now_is: RolloutState, kind: Kind, reason: str, deadline_seconds: float | None
) -> Transition:
    """A transition that leaves the rollout where its state and step say that it is."""
    stage: Stage = "none" if now_is.state == "pending" else now_is.state  # type: ignore[assignment]
    weight = now_is.policy.steps[now_is.step] if now_is.state == "canary" else 0.0
    return Transition(
        kind, now_is.state, now_is.step, stage, weight, reason[:MAX_REASON], deadline_seconds
    )


def _rollback(now_is: RolloutState, seen: Observation) -> Transition | None:
    def back(reason: str) -> Transition:
        return end("roll_back", "rolled_back", now_is.step, reason)

    if seen.kill is not None:
        return back(f"kill switch: {seen.kill or 'no reason given'}")
    # Before the canary's, which begins with the shadow's evidence and would take its place.
    if seen.shadow_verdict == "bad":
        return back(
            "the paired shadow test found the adapter worse than the champion by more than is "
            f"tolerated after {seen.shadow_pairs} pairs; nobody was exposed by the shadow"
            f"{_because(seen.shadow_reason)}"
        )
    if seen.verdict == "bad":
        return back(
            "the sequential test found the canary worse than the champion by more than is tolerated "
            f"after {seen.canary_sessions} canary sessions{_because(seen.reason)}"
        )
    return None


def _keep_champion(now_is: RolloutState, seen: Observation, now: datetime) -> Transition | None:
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
    if seen.mismatch is not None:
        # Whatever moved sessions between the arms may have chosen them: nothing is comparable.
        return end(
            "give_up",
            "inconclusive",
            now_is.step,
            f"the recorded split is not the one asked for: {seen.mismatch or 'no numbers given'}; "
            "the champion stays",
        )
    if now >= now_is.deadline:
        return end("give_up", "inconclusive", now_is.step, f"{_late(now_is)}; the champion stays")
    return None


def _late(now_is: RolloutState) -> str:
    if now_is.paused:
        return f"paused for {now_is.policy.pause_seconds:g} seconds and not resumed"
    if now_is.approval == "asked":
        return f"shown good, and nobody approved in {now_is.policy.approval_seconds:g} seconds"
    return f"the deadline of state {now_is.state} passed without a verdict"


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
        return _shown_good(now_is, seen)
    if now_is.approval != "none":
        # The weight stays as it is while a person is waited for.
        return None
    shown_good = seen.verdict == "good" and seen.labels > 0
    if seen.canary_sessions >= policy.max_sessions and not shown_good:
        return end(
            "give_up",
            "inconclusive",
            step,
            f"no verdict after {seen.canary_sessions} canary sessions; the champion stays",
        )
    last = step + 1 >= len(policy.steps)
    # A metric that was there and is gone must not let the weight rise on yesterday's labels.
    blind = seen.step_labels == 0
    if may_move and not blind and not last and seen.step_sessions >= policy.step_sessions:
        return Transition(
            "raise",
            "canary",
            step + 1,
            "canary",
            policy.steps[step + 1],
            f"{seen.step_sessions} sessions at {policy.steps[step]:.0%} without a bad verdict",
        )
    return None


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


def _shown_good(now_is: RolloutState, seen: Observation) -> Transition | None:
    policy = now_is.policy
    shown = (
        f"not worse than the champion by {policy.margin:g} or more, shown after "
        f"{seen.canary_sessions} canary sessions ({seen.labels} with a label){_because(seen.reason)}"
    )
    if not policy.approval or now_is.approval == "given":
        return end("promote", "promoted", now_is.step, shown)
    if now_is.approval == "asked":
        return None
    return _at_its_place(now_is, "ask", f"{shown}; waits for approval", policy.approval_seconds)
