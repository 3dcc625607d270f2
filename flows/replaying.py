"""Take every step of a rollout again, from what was kept, and say whether it comes out the same.

A step that the machine took is replayed whole: the records it rested on are judged again by the same
code, and the state it was decided on is put into the machine again. What a person or a gateway's kill
switch ordered rests on no records, so it is listed and not replayed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from flows.evidence_log import EvidenceLog
from flows.exposure import weights_of
from flows.judged_evidence import JudgedEvidence
from flows.kept_evidence import FORGOTTEN, Records, read_kept
from flows.observing import observe
from flows.tending import MAX_EVENTS
from flows.wiring import Context
from infra.calls.record import utc_now
from infra.database.events import Event
from infra.objects.store import ObjectMissing
from serving.registry.records import Rollout
from serving.rollout.effects import summary
from serving.rollout.machine import Observation, State, next_step
from serving.rollout.states import state_from_json

COMPARED = ("counts", "verdicts", "observed")


@dataclass(frozen=True)
class Replayed:
    """One event of a rollout, taken again."""

    time: datetime
    actor: str
    what: str
    why: str
    source: str
    """``kept``, ``log``, or ``order`` for what rests on no records."""
    differences: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        return not self.differences

    def to_json(self) -> dict[str, Any]:
        return {
            "time": self.time.isoformat(),
            "actor": self.actor,
            "what": self.what,
            "why": self.why,
            "source": self.source,
            "same": self.same,
            "differences": list(self.differences),
        }


def replay(context: Context, rollout_id: str) -> list[Replayed]:
    """Every event of the rollout, oldest first.

    Raises:
        UnknownRollout.
        EvidenceDamaged: an object of what was kept has changed.
        ObjectStoreError: it cannot be read.
    """
    rollout = context.registry.rollout(rollout_id)
    weights = weights_of(rollout.id, context.registry.events(rollout.task_id, MAX_EVENTS))
    logs = _Logs(context, rollout)
    events = list(reversed(context.registry.events(rollout_id, MAX_EVENTS)))
    moved = {
        event.evidence["object"]: event.evidence["replaced_by"]
        for event in events
        if event.what == FORGOTTEN
    }
    return [_again(context, rollout, _follow(event, moved), weights, logs) for event in events]


def _follow(event: Event, moved: Mapping[str, str]) -> Event:
    """The event, with what it rests on named as it lies now that somebody's records are gone."""
    source = event.evidence.get("source")
    if not source or source.get("object") not in moved:
        return event
    key = source["object"]
    while key in moved:
        key = moved[key]
    return replace(event, evidence={**event.evidence, "source": {**source, "object": key}})


def last_records(context: Context, rollout: Rollout) -> Records:
    """What the last step rested on if that is kept, else what the logs hold of the rollout."""
    for event in context.registry.events(rollout.id, MAX_EVENTS):
        key = (event.evidence.get("source") or {}).get("object")
        if key is not None and not rollout.open:
            try:
                return read_kept(context.store, key)
            except ObjectMissing:
                break
    return _Logs(context, rollout).records()


class _Logs:
    """The rollout's records in the logs, read when asked for first."""

    def __init__(self, context: Context, rollout: Rollout) -> None:
        self._context = context
        self._rollout = rollout
        self._records: Records | None = None

    def records(self) -> Records:
        if self._records is None:
            context = self._context
            log = EvidenceLog(context.store, context.settings.ingest.max_line_bytes)
            log.look(self._rollout.created)
            words = JudgedEvidence(context, utc_now).words(self._rollout.id)
            self._records = log.calls(self._rollout.id), [*log.feedback(), *words]
        return self._records


def _again(
    context: Context, rollout: Rollout, event: Event, weights: Mapping[int, float], logs: _Logs
) -> Replayed:
    told = (event.time, event.actor, event.what, event.why)
    facts = event.evidence
    decided_on, source = facts.get("decided_on"), facts.get("source")
    if decided_on is None or source is None:
        return Replayed(*told, "order")
    records, where = None, "kept"
    with contextlib.suppress(ObjectMissing):
        records = read_kept(context.store, source["object"]) if "object" in source else None
    if records is None:
        records, where = logs.records(), "log"
    seen = observe(
        _as_it_was(rollout, decided_on["state"]),
        *records,
        now=datetime.fromisoformat(source["now"]),
        weights=_until(weights, decided_on["route_version"]),
        step_route_version=decided_on["step_route_version"],
        loaded=facts["loaded"],
    )
    seen = replace(seen, kill=facts.get("kill"), source=source)
    return Replayed(*told, where, tuple(_differences(rollout, event, seen)))


def _as_it_was(rollout: Rollout, state: State) -> Rollout:
    """In that state: before the canary no latency objective had been frozen."""
    evidence = dict(rollout.evidence)
    if state != "canary":
        evidence.pop("latency_objective_seconds", None)
    return replace(rollout, state=state, evidence=evidence)


def _until(weights: Mapping[int, float], last: int) -> dict[int, float]:
    """The versions of the route that were there when the step was decided."""
    return {version: weight for version, weight in weights.items() if version <= last}


def _differences(rollout: Rollout, event: Event, seen: Observation) -> list[str]:
    found = summary(seen)
    then = event.evidence
    different = [
        f"{name}: {_short(then.get(name))} then, {_short(found[name])} now"
        for name in COMPARED
        if found[name] != then.get(name)
    ]
    if found.get("mismatch") != then.get("mismatch"):
        different.append(f"mismatch: {then.get('mismatch')} then, {found.get('mismatch')} now")
    decided_on = then["decided_on"]
    step = next_step(state_from_json(decided_on, rollout.policy), seen, event.time)
    now = (step.kind, step.state, step.step, step.reason) if step else None
    before = (decided_on["kind"], event.current["state"], event.current["step"], event.why)
    if now != before:
        different.append(f"step: {before} then, {now} now")
    return different


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 200 else text[:200] + "…"
