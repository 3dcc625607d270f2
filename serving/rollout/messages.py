"""What people are told of a rollout: what happened, why in numbers, what is exposed, how to undo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.notify.message import Action, Doing, Message
from serving.registry.records import TEACHER, Rollout, Route
from serving.rollout.machine import Transition

_TITLES = {
    "shadow": "Shadow started",
    "canary": "Canary started",
    "raise": "Canary raised",
    "promote": "Adapter promoted",
    "roll_back": "Adapter rolled back",
    "give_up": "Rollout ended inconclusive",
    "abort": "Rollout aborted",
    "pause": "Rollout paused",
    "resume": "Rollout resumed",
    "ask": "Promotion waits for approval",
    "approve": "Promotion approved",
}
_WHAT = {
    "shadow": "{adapter} answers beside the champion of task {task}; no caller sees its answers.",
    "raise": "{adapter} is shown to more callers of task {task}.",
    "pause": "{adapter} was taken off the sessions of task {task}; it stays loaded, and is let go of "
    "unless somebody resumes it by {deadline:%Y-%m-%d %H:%M} UTC.",
    "resume": "{adapter} goes on where it was in task {task}.",
    "ask": "{adapter} was shown as good as the champion of task {task}; a person must agree, with "
    "nightschool rollouts approve {id} for one, by {deadline:%Y-%m-%d %H:%M} UTC, else the champion "
    "stays.",
    "approve": "{adapter} may become the champion of task {task} at the next look.",
}
_UNDONE_BY = {
    "shadow": "abort",
    "pause": "resume",
    "resume": "pause",
    "ask": "abort",
    "approve": "abort",
}
_PROGRESS = frozenset({"shadow", "raise"})
"""Nobody need be called for these; who reads along sees them."""
_ACTIONS: Mapping[str, tuple[Doing, ...]] = {
    "shadow": ("pause", "abort"),
    "canary": ("pause", "rollback"),
    "raise": ("pause", "rollback"),
    "resume": ("pause", "rollback"),
    "pause": ("resume", "abort", "rollback"),
    "ask": ("approve", "abort", "rollback"),
    "approve": ("pause", "rollback"),
    "promote": ("rollback",),
}
"""What makes sense next."""
_MAY_COME_AGAIN = frozenset({"pause", "resume", "ask", "approve"})


def rollout_message(
    rollout: Rollout, transition: Transition, after: Route, evidence: Mapping[str, Any]
) -> Message | None:
    """The message of a transition, or None for those that nobody need hear of.

    Its key names rollout and state: however often the transition is tried, it is said once.
    """
    title = _TITLES.get(transition.kind)
    if title is None:
        return None
    key = f"rollout:{rollout.id}:{transition.state}:{transition.step}"
    if transition.kind in _MAY_COME_AGAIN:
        key = f"rollout:{rollout.id}:{transition.kind}:{rollout.version}"
    return Message(
        key=key,
        topic=f"task:{rollout.task_id}",
        title=f"{title}: {rollout.task_id}",
        what=_what(rollout, transition),
        exposed=exposure(after),
        why=transition.reason,
        evidence=_numbers(evidence),
        undo=_undo(rollout, transition),
        actions=tuple(Action(doing, rollout.id) for doing in _ACTIONS.get(transition.kind, ())),
        thread=f"rollout:{rollout.id}",
        progress=transition.kind in _PROGRESS,
    )


def champion_message(before: Route, after: Route, why: str) -> Message:
    """An earlier champion was put back."""
    undo = f"{before.champion} is rejected and never retried; `nightschool night` trains anew"
    if before.champion == TEACHER:
        undo = f"nightschool rollback {after.task_id} --to {TEACHER}"
    return Message(
        key=f"route:{after.task_id}:{after.version}:rolled_back",
        topic=f"task:{after.task_id}",
        title=f"Champion rolled back: {after.task_id}",
        what=f"{before.champion} no longer answers task {after.task_id}.",
        exposed=exposure(after),
        why=why,
        undo=undo,
    )


def exposure(route: Route) -> str:
    """Who answers what now, in a sentence."""
    champion = "the teacher" if route.champion == TEACHER else route.champion
    if route.stage == "canary":
        return (
            f"Now: {route.candidate} answers {route.weight:.0%} of the sessions, "
            f"{champion} the others."
        )
    if route.stage == "shadow":
        return f"Now: {champion} answers all sessions; {route.candidate} answers unseen beside it."
    return f"Now: {champion} answers all sessions."


def _what(rollout: Rollout, transition: Transition) -> str:
    if transition.kind == "canary":
        return (
            f"{rollout.adapter} is shown to callers of task {rollout.task_id} for the first time."
        )
    if transition.kind == "promote":
        return f"{rollout.adapter} is the new champion of task {rollout.task_id}."
    if transition.kind == "roll_back":
        return f"{rollout.adapter} was taken off task {rollout.task_id} and is rejected."
    if transition.kind in _WHAT:
        return _WHAT[transition.kind].format(
            adapter=rollout.adapter,
            task=rollout.task_id,
            id=rollout.id,
            deadline=rollout.deadline,
        )
    return f"{rollout.adapter} was taken off task {rollout.task_id} without a verdict."


def _undo(rollout: Rollout, transition: Transition) -> str:
    if transition.kind in _UNDONE_BY:
        return f"nightschool rollouts {_UNDONE_BY[transition.kind]} {rollout.id}"
    if transition.kind in ("canary", "raise", "promote"):
        return f"nightschool rollback {rollout.task_id}"
    if transition.kind == "roll_back":
        return "a rejected adapter is never retried; `nightschool night` trains a new one"
    return "nothing to undo: the champion stayed; a new rollout starts from no evidence"


def _numbers(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """The scalars, and the canary's e-values and means: what fits a chat message."""
    flat: dict[str, Any] = {}
    parts = [(evidence.get(name) or {}).items() for name in ("counts", "verdicts", "observed")]
    canary = (evidence.get("observed") or {}).get("canary") or {}
    wanted = ("e_bad", "e_good", "mean_canary", "mean_champion", "escalations")
    parts.append({key: canary[key] for key in wanted if key in canary}.items())
    for part in parts:
        for key, value in part:
            if isinstance(value, str | int | float | bool) and len(flat) < 20:
                flat[key] = value
    return flat
