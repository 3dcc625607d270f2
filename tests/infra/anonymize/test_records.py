"""Whole log records: no field is skipped, and none is too large."""

from __future__ import annotations

import json

from infra.anonymize.anonymizer import Anonymizer
from infra.calls.codec import encode_line, parse_line
from infra.calls.record import Checks, FeedbackRecord, OtherAnswer
from infra.settings.serving import Anonymizer as AnonymizerSettings
from tests.infra.anonymize.examples import ANN, BOB, CARD, PHONE, SECRETS, call, scope


class TestRecords:
    def test_no_field_is_skipped(self) -> None:
        record = call(
            request={
                "messages": [
                    {"role": "system", "content": f"help {BOB}"},
                    {"role": "user", "content": [{"type": "text", "text": ANN}]},
                    {"role": "tool", "content": json.dumps({"ip": "203.0.113.7"})},
                ],
                "tools": [{"function": {"parameters": {"default": PHONE}}}],
                "user": ANN,
            },
            response={
                "choices": [
                    {"message": {"tool_calls": [{"function": {"arguments": f'{{"a":"{CARD}"}}'}}]}}
                ]
            },
            other_answers=[
                OtherAnswer(
                    model="m",
                    purpose="shadow",
                    message={"content": ANN},
                    error=f"refused {BOB}",
                    note=PHONE,
                )
            ],
            checks=Checks(parsed=False, reason=f"no tool named '{ANN}'"),
            task_tag=ANN,
            session=ANN,
            tenant=BOB,
            from_the_future={"x": [ANN]},
        )
        changed = scope().record(record)
        stored = encode_line(changed).decode()
        for secret in SECRETS:
            assert secret not in stored
        assert parse_line(stored.encode()) == changed
        assert changed.id == record.id
        assert changed.time == record.time
        assert changed.anonymization.policy == "replace/1"
        assert changed.anonymization.counts == {
            "CARD": 1,
            "EMAIL": 10,
            "IP_ADDRESS": 1,
            "PHONE": 2,
        }

    def test_what_other_writers_add_anywhere_is_looked_at(self) -> None:
        bad = Checks.model_validate({"parsed": False, "reason": f"no tool {ANN!r}", BOB: {ANN: 1}})
        record = call(
            usage={"prompt_tokens": 3, "note": ANN},
            checks=bad,
            answered_by={"model": "m", "escalation": f"checks:no tool {ANN!r}", "of": ANN},
            other_answers=[OtherAnswer(model="m", purpose="audit", checks=bad)],
            **{ANN: BOB},
        )
        changed = scope().record(record)
        said = encode_line(changed).decode()
        assert ANN not in said and BOB not in said
        assert changed.usage.prompt_tokens == 3
        assert changed.checks.reason == "no tool '<EMAIL_1>'"
        assert changed.answered_by.escalation == "checks:no tool '<EMAIL_1>'"
        assert changed.other_answers[0].checks.reason == "no tool '<EMAIL_1>'"
        assert scope().record(parse_line(said.encode())).request == changed.request

    def test_the_gateways_own_words_quote_no_value_either(self) -> None:
        bad = Checks(parsed=False, reason=f"no tool {ANN!r}")
        record = call(
            answered_by={"model": "m", "escalation": f"checks:no tool {ANN!r}"},
            other_answers=[OtherAnswer(model="m", purpose="audit", checks=bad)],
        )
        changed = scope().fields(record.model_dump(mode="json"))
        assert ANN not in json.dumps(changed)
        assert changed == json.loads(encode_line(scope().record(record)))

    def test_a_requests_constant_parts_come_first_in_a_record_too(self) -> None:
        tools = [{"type": "function", "function": {"name": "mail", "description": f"as {BOB}"}}]
        messages = [{"role": "user", "content": ANN}]
        changed = scope().record(call(request={"messages": messages, "tools": tools}))
        assert changed.request["tools"][0]["function"]["description"] == "as <EMAIL_1>"

    def test_sessions_stay_apart_and_together(self) -> None:
        anonymizer = Anonymizer(AnonymizerSettings())
        names = [
            anonymizer.scope().record(call(session=session)).session
            for session in (ANN, ANN, BOB, "plain-1")
        ]
        assert names[0] == names[1] != names[2]
        assert names[3] == "plain-1"

    def test_a_second_pass_changes_nothing(self) -> None:
        once = scope().record(call(session=ANN))
        assert scope().record(once) == once

    def test_feedback(self) -> None:
        record = FeedbackRecord(call_id="c", label=f"by {ANN}", correction={"content": f"hi {ANN}"})
        changed = scope().record(record)
        assert changed.label == "by <EMAIL_1>"
        assert changed.correction == {"content": "hi <EMAIL_1>"}
        assert changed.anonymization.counts == {"EMAIL": 2}

    def test_the_original_is_untouched(self) -> None:
        record = call()
        before = record.model_dump_json()
        scope().record(record)
        assert record.model_dump_json() == before


class TestSize:
    def test_a_prompt_of_10_mb_is_cut_between_words_and_says_so(self) -> None:
        session = scope()
        text = session.text(f"{ANN} likes tea. " * 400_000)
        assert ANN not in text
        assert text.startswith("<EMAIL_1> likes tea.")
        assert text.endswith("characters left out]")
        assert "@" not in text
        assert session.counts["TOO_LONG"] == 1

    def test_a_long_json_string_stays_json(self) -> None:
        session = scope(max_text_characters=1000)
        changed = session.text(json.dumps({"a": f"{ANN} " * 1000, "b": [ANN] * 1000}))
        assert "@" not in changed
        assert json.loads(changed)["b"] == ["<EMAIL_1>"] * 1000

    def test_pictures_are_left_alone(self) -> None:
        picture = "data:image/png;base64," + "iVBORw0KGgo4111111111111111" * 10 + "=="
        assert scope().text(picture) == picture
        assert scope().text(f"data:x;base64,abc {ANN}") == "data:x;base64,abc <EMAIL_1>"
