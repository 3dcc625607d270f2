"""The demo's traffic is deterministic, unambiguous and valid, and carries what it says it carries."""

from __future__ import annotations

import json
import re
from collections import Counter

import jsonschema
import pytest

pytest.importorskip("hassil")

from flows.demo import orders, support
from flows.demo.traffic import KINDS, MIX, TrafficCall, request_key, sessions

SEED = 7
CARD = re.compile(r"\b(?:\d{4} ){3}\d{4}\b")
IBAN = re.compile(r"\b[A-Z]{2}\d{2} [A-Z]{4}(?: \d{2,4})+\b")
EMAIL = re.compile(r"\b[\w.]+@example\.com\b")
PHONE = re.compile(r"\+1 \d{3}-555-01\d{2}")
ADDRESS = re.compile(r"\b(?:192\.0\.2|198\.51\.100|203\.0\.113)\.\d{1,3}\b")


def calls(seed: int = SEED, count: int = 600, kinds: list[str] | None = None) -> list[TrafficCall]:
    return [call for session in sessions(seed, count, kinds) for call in session.calls]


def text_of(call: TrafficCall) -> str:
    return call.messages[-1]["content"]


def test_the_seed_decides_everything() -> None:
    assert sessions(SEED, 50) == sessions(SEED, 50)


def test_a_longer_run_begins_like_a_shorter_one() -> None:
    assert sessions(SEED, 80)[:50] == sessions(SEED, 50)


def test_another_seed_brings_mostly_unseen_texts() -> None:
    for kind in ("home", "triage", "extract"):
        day_one = {text_of(call) for call in calls(1, 300, [kind])}
        day_two = [text_of(call) for call in calls(2, 300, [kind])]
        unseen = sum(text not in day_one for text in day_two) / len(day_two)
        assert unseen > 0.8, kind


def test_one_request_never_has_two_answers_even_across_seeds() -> None:
    answers: dict[str, object] = {}
    for seed in range(6):
        for call in calls(seed, 1000):
            assert answers.setdefault(call.key, call.answer) == call.answer, text_of(call)
    assert len(answers) > 9000


def test_kinds_come_in_their_declared_mix() -> None:
    share = Counter(call.kind for call in calls(count=3000))
    total = share.total()
    for kind in KINDS:
        assert share[kind] / total == pytest.approx(MIX[kind][0], abs=0.02), kind


def test_only_the_asked_kinds_come() -> None:
    assert {call.kind for call in calls(count=40, kinds=["triage", "rare"])} == {"triage", "rare"}


@pytest.mark.parametrize("kinds", [["homes"], []])
def test_unknown_or_no_kinds_are_refused(kinds: list[str]) -> None:
    with pytest.raises(ValueError, match="kinds must be some of"):
        sessions(SEED, 1, kinds)


def test_sessions_keep_one_kind_and_have_unique_ids() -> None:
    played = sessions(SEED, 200)
    assert len({session.session_id for session in played}) == 200
    assert all(call.kind == session.kind for session in played for call in session.calls)
    assert max(len(session.calls) for session in played) > 1


def test_tool_calls_fit_the_offered_tools() -> None:
    tools_used = Counter()
    for call in calls(count=1000, kinds=["home"]):
        schemas = {tool["function"]["name"]: tool["function"] for tool in call.tools or []}
        for tool_call in call.answer.get("tool_calls", []):
            function = tool_call["function"]
            parameters = schemas[function["name"]]["parameters"]
            jsonschema.Draft202012Validator.check_schema(parameters)
            jsonschema.validate(json.loads(function["arguments"]), parameters)
            tools_used[function["name"]] += 1
    assert set(tools_used) == set(schemas), "every offered tool is used"
    assert 10 <= len(schemas) <= 12


def test_arguments_can_be_read_off_the_utterance() -> None:
    for call in calls(count=300, kinds=["home"]):
        for tool_call in call.answer.get("tool_calls", []):
            arguments = json.loads(tool_call["function"]["arguments"])
            for name in ("area", "name", "item"):
                assert arguments.get(name, "") in text_of(call)


def test_some_home_requests_are_answered_in_words() -> None:
    home = calls(count=1500, kinds=["home"])
    in_words = [call for call in home if "tool_calls" not in call.answer]
    assert 0.02 < len(in_words) / len(home) < 0.07
    assert all(call.answer["content"] for call in in_words)


def test_triage_labels_are_the_announced_queues_and_all_occur() -> None:
    seen = set()
    for call in calls(kinds=["triage"]):
        assert call.answer["content"] in call.messages[0]["content"]
        seen.add(call.answer["content"])
    assert seen == set(support.QUEUES)


def test_triage_sentences_speak_in_the_first_person() -> None:
    for queue, sentences in support.requests().items():
        assert len(sentences) >= 3, queue
        assert not [s for s in sentences if re.search(r"\byour?\b", s, re.I)], queue


def test_records_fit_the_schema_and_stand_in_the_note() -> None:
    notes = calls(count=400, kinds=["extract"])
    for call in notes:
        record = json.loads(call.answer["content"])
        jsonschema.validate(record, orders.SCHEMA)
        assert all(value is None or value in text_of(call) for value in record.values())
        if record["email"] is None:
            assert "@" not in text_of(call)
    assert {json.loads(call.answer["content"])["email"] is None for call in notes} == {True, False}


def test_personal_data_is_planted_and_some_of_it_is_part_of_the_answer() -> None:
    played = calls(count=1500)
    texts = [text_of(call) for call in played]
    for kind, pattern in {"card": CARD, "iban": IBAN, "ip": ADDRESS}.items():
        assert sum(bool(pattern.search(text)) for text in texts) >= 5, kind
    for kind, pattern in {"email": EMAIL, "phone": PHONE}.items():
        assert sum(bool(pattern.search(text)) for text in texts) >= 50, kind
    answered = [call for call in played if "@" in (call.answer.get("content") or "")]
    assert len(answered) > 100


def test_rare_calls_hardly_repeat() -> None:
    questions = [text_of(call) for call in calls(count=60, kinds=["rare"])]
    assert len(set(questions)) > 45


def test_key_ignores_what_clients_leave_out_and_sees_what_they_change() -> None:
    call = calls(kinds=["home"])[0]
    assert request_key([{**m, "name": None} for m in call.messages], call.tools, {}) == call.key
    assert request_key(call.messages, [], None) == request_key(call.messages, None, None)
    assert request_key(call.messages, None, None) != call.key
    changed = [*call.messages[:-1], {"role": "user", "content": text_of(call) + "!"}]
    assert request_key(changed, call.tools, None) != call.key
