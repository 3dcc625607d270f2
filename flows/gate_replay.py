"""Decide a stored judgement again, from what was stored with it. No Prefect here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evaluators.gate import GateEvidence, GatePolicy, decide
from flows.wiring import Context
from serving.registry.errors import Unknown
from serving.registry.records import Scorecard


class UnknownDecision(Unknown):
    """No stored decision of the gate has that id."""


@dataclass(frozen=True)
class Replayed:
    """A decision of the gate, and the same one made again."""

    id: str
    adapter: str
    verdict: str
    """As it was stored."""
    again: str
    reasons: tuple[str, ...]
    """Of the decision made again."""
    same: bool
    """Verdict, reasons and evidence digest are what they were."""


def replay_gate(context: Context, wanted: str) -> Replayed:
    """Decide again by the policy and the evidence of then; no engine, no clock.

    Args:
        wanted: an adapter's name, or the start (8 characters or more) of a decision's id.

    Raises:
        UnknownDecision: none has that id, or it was stored without its evidence.
    """
    card = _find(context, wanted)
    gate: dict[str, Any] = dict(card.gate)
    if "evidence" not in gate or "policy" not in gate:
        raise UnknownDecision(f"{wanted} was stored without its evidence: judge the adapter again")
    numbers = gate.get("numbers", {})
    if numbers and "tries" not in numbers:
        raise UnknownDecision(f"{wanted} was decided before tries were counted: judge it again")
    result = decide(GatePolicy.from_dict(gate["policy"]), GateEvidence.from_dict(gate["evidence"]))
    same = (result.verdict, list(result.reasons), result.evidence_digest) == (
        gate["verdict"],
        list(gate["reasons"]),
        gate["evidence_digest"],
    )
    return Replayed(
        card.digest, card.adapter, gate["verdict"], result.verdict, result.reasons, same
    )


def _find(context: Context, wanted: str) -> Scorecard:
    for adapter in context.registry.adapters():
        for card in context.registry.scorecards(adapter.name):
            if adapter.name == wanted or (len(wanted) >= 8 and card.digest.startswith(wanted)):
                return card
    raise UnknownDecision(f"no decision {wanted!r}: `nightschool adapters` lists what was judged")
