"""Which side of a rollout answers a call, decided from the route alone."""

from __future__ import annotations

from dataclasses import dataclass

from infra.calls.record import Arm
from serving.gateway.cascade import ABSENT
from serving.gateway.routes import AdapterRoute, TaskRoute
from serving.rollout.assignment import arm


@dataclass(frozen=True)
class Assignment:
    """Who should answer, and what the log says about it."""

    answerer: AdapterRoute | None
    """None: the teacher."""
    arm: Arm | None = None
    rollout: str | None = None
    escalation: str | None = None
    """Already known reason why the arm's own model will not answer."""
    shadow: AdapterRoute | None = None
    """Who answers the same prompt unseen."""


TEACHER = Assignment(answerer=None)


def assign(
    route: TaskRoute,
    session: str,
    *,
    ready: frozenset[str],
    killed: bool,
    tended: bool,
    champion_killed: bool = False,
) -> Assignment:
    """The assignment of one eligible call.

    Args:
        ready: names of the adapters that the engine has loaded and that answered a probe.
        killed: the kill switch stopped this route's candidate.
        tended: False when the dead man's timer ran out: the rollout is suspended here, and its calls
            are not part of the experiment.
        champion_killed: the kill switch stopped this route's champion: the teacher answers for it.

    A killed canary keeps its arm (intention to treat); a suspended rollout, and one whose candidate
    this gateway has not loaded yet, has no arms: nobody was treated.
    """
    champion = route.champion
    missing = champion is not None and champion.name not in ready
    answerer = None if missing or champion_killed else champion
    reason = "kill_switch" if champion_killed else ABSENT if missing else None
    if route.policy == "teacher":
        return TEACHER
    if route.policy == "shadow":
        answerer, reason = None, None
    candidate = route.candidate
    rollout = route.rollout_id
    stage = route.stage
    if stage == "canary" and route.policy == "shadow":
        stage = "none"
    if candidate is None or stage == "none" or not tended:
        return Assignment(answerer, escalation=reason)
    if stage == "shadow":
        shadow = candidate if candidate.name in ready and not killed else None
        return Assignment(answerer, "champion", rollout, reason, shadow)
    if not killed and candidate.name not in ready:
        return Assignment(answerer, escalation=reason)
    if arm(route.salt, session, route.weight) == "champion":
        return Assignment(answerer, "champion", rollout, reason)
    if killed:
        return Assignment(answerer, "canary", rollout, "kill_switch")
    return Assignment(candidate, "canary", rollout)
