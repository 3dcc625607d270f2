"""The engine beside the trainer: what counts as the same, and what stops a pass."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evaluators.engine_match import EngineMatch, Said, compare_with_trainer
from evaluators.gate import GateEvidence, GatePolicy, decide
from tests.evaluators.making import CANDIDATE, row

PROBES = [
    {"prompt": f"p{place}", "text": '{"name":"on"', "log_probabilities": [-0.1, -0.2, -0.3]}
    for place in range(4)
]


def match(
    text: str = '{"name":"on","arguments":{}}', apart: float = 0.0, **more: bool
) -> EngineMatch:
    said = Said(text, [-0.1 - apart, -0.2 - apart, -0.3 - apart, -9.0], **more)
    found = compare_with_trainer(PROBES, {f"p{place}": said for place in range(4)}, 0.1)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("found", "agrees"),
    [
        (match(), True),
        (match(apart=0.09), True),
        (match(apart=0.11), False),
        (match('{"name":"off","arguments":{}}'), False),
        (match('{"name"'), False),
        (match('{"name"', complete=False), True),
    ],
    ids=["same", "within", "beyond", "other words", "ended early", "cut off"],
)
def test_what_agrees(found: EngineMatch, agrees: bool) -> None:
    assert (found.rows, found.tokens) == (4, 12)
    assert found.agrees == agrees


@pytest.mark.parametrize("said", [{"other": Said("x", [-1.0])}, {"p1": Said('{"name":"on"', [])}])
def test_what_could_not_be_compared_is_told_and_no_pass(said: dict[str, Said]) -> None:
    found = compare_with_trainer(PROBES, said, 0.1)
    assert found is not None and not found.agrees and found.rows == ("p1" in said)
    evidence = GateEvidence(CANDIDATE, "teacher", tuple(map(row, range(100))), match=found)
    decided = decide(GatePolicy(), evidence)
    assert decided.verdict == "inconclusive" and "could not be compared" in decided.reasons[0]
    assert compare_with_trainer([], said, 0.1) is None, "the trainer noted nothing"


def test_a_mismatch_stops_a_pass_and_is_replayed() -> None:
    rows = tuple(row(place) for place in range(100))
    evidence = GateEvidence(CANDIDATE, "teacher", rows, match=match())
    assert decide(GatePolicy(), evidence).verdict == "pass"
    doubted = replace(evidence, match=match(apart=2.0))
    again = GateEvidence.from_dict(doubted.to_dict())
    for found in (decide(GatePolicy(), doubted), decide(GatePolicy(), again)):
        assert found.verdict == "inconclusive" and "other than the trainer" in found.reasons[0]
    assert again.digest == doubted.digest != evidence.digest
