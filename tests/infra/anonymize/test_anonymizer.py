"""Placeholders: consistent, reversible, never breaking JSON, and no field skipped."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from infra.anonymize.anonymizer import Anonymizer, RecordDropped
from infra.anonymize.finding import Finding
from infra.anonymize.restoring import placeholders
from infra.calls.record import FeedbackRecord, OtherAnswer
from infra.settings.serving import Anonymizer as AnonymizerSettings
from tests.infra.anonymize.examples import ANN, BOB, CARD, PHONE, SECRETS, call, scope


def plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


class TestConsistency:
    def test_the_same_value_has_the_same_placeholder_across_calls(self) -> None:
        session = scope()
        assert session.text(f"{ANN} {BOB} {ANN}") == "<EMAIL_1> <EMAIL_2> <EMAIL_1>"
        assert session.text(f"{BOB} {PHONE}") == "<EMAIL_2> <PHONE_1>"
        assert session.counts == {"EMAIL": 4, "PHONE": 1}

    def test_scopes_do_not_link(self) -> None:
        anonymizer = Anonymizer(AnonymizerSettings())
        first, second = anonymizer.scope(), anonymizer.scope()
        assert first.text(ANN) == second.text(BOB) == "<EMAIL_1>"
        assert second.restore("<EMAIL_1>") == BOB

    def test_a_value_copied_into_arguments_stays_the_same(self) -> None:
        session = scope()
        request = session.request({"messages": [{"role": "user", "content": f"write to {ANN}"}]})
        answer = session.value({"function": {"arguments": json.dumps({"to": ANN})}})
        assert request["messages"][0]["content"] == "write to <EMAIL_1>"
        assert json.loads(answer["function"]["arguments"]) == {"to": "<EMAIL_1>"}

    def test_constant_parts_get_the_same_numbers_in_every_session(self) -> None:
        tools = [{"function": {"name": "mail", "description": "such as help@example.com"}}]
        for content in ("hello", f"I am {ANN}", f"{BOB} and {ANN}"):
            request = {"messages": [{"role": "user", "content": content}], "tools": tools}
            changed = scope().request(request)
            assert changed["tools"][0]["function"]["description"] == "such as <EMAIL_1>"
            assert list(changed) == ["messages", "tools"]

    def test_placeholders_already_there_are_left_alone_and_not_reused(self) -> None:
        session = scope()
        assert session.text(f"<EMAIL_1> <EMAIL_7> {ANN} <PHONE_2>") == (
            "<EMAIL_1> <EMAIL_7> <EMAIL_8> <PHONE_2>"
        )
        assert session.text(BOB) == "<EMAIL_9>"
        assert session.counts == {"EMAIL": 2}
        late = scope().request({"a": ANN, "b": "<EMAIL_1>"})
        assert late == {"a": "<EMAIL_2>", "b": "<EMAIL_1>"}

    def test_a_placeholder_in_a_later_message_is_not_given_to_an_earlier_one(self) -> None:
        said = [f"write to {ANN}", "also <EMAIL_1> please"]
        messages = [{"role": "user", "content": text} for text in said]
        changed = scope().request({"messages": messages})["messages"]
        assert [message["content"] for message in changed] == ["write to <EMAIL_2>", said[1]]

    def test_threads_agree(self) -> None:
        session = scope()
        values = [f"user{n}@example.com" for n in range(40)]
        with ThreadPoolExecutor(8) as pool:
            texts = list(pool.map(lambda n: session.text(" ".join(values[n % 7 :])), range(40)))
        assert len({session.text(value) for value in values}) == 40
        for number, text in enumerate(texts):
            assert session.restore(text) == " ".join(values[number % 7 :])


class TestJson:
    def test_arguments_keep_everything_but_the_value(self) -> None:
        text = '{ "to" : "ann@example.com",\t"n": 1.50e3, "n": 2, "x": "\\u00e9", "b": [1,2 ] }'
        assert scope().text(text) == text.replace(ANN, "<EMAIL_1>")

    def test_json_inside_json_inside_json(self) -> None:
        value = json.dumps({"body": json.dumps({"inner": json.dumps({"to": ANN})})})
        session = scope()
        changed = session.text(value)
        assert json.loads(json.loads(json.loads(changed)["body"])["inner"]) == {"to": "<EMAIL_1>"}
        assert session.restore(changed) == value

    def test_values_with_quotes_and_newlines_go_back_into_json(self) -> None:
        key = '-----BEGIN PRIVATE KEY-----\nab"c\\d\n-----END PRIVATE KEY-----'
        session = scope()
        assert session.text(f"use {key}") == "use <PRIVATE_KEY_1>"
        restored = session.restore({"arguments": '{"key": "<PRIVATE_KEY_1>", "n": 1.0}'})
        assert json.loads(restored["arguments"]) == {"key": key, "n": 1.0}

    def test_keys_are_not_skipped(self) -> None:
        session = scope()
        assert session.value({ANN: [1], "x": json.dumps({BOB: 1})}) == {
            "<EMAIL_1>": [1],
            "x": '{"<EMAIL_2>": 1}',
        }

    def test_a_field_that_holds_a_secret_is_replaced_whatever_it_looks_like(self) -> None:
        session = scope()
        changed = session.value({"password": "plain", "x": '{"client_secret": "it is"}', "n": "ok"})
        assert changed == {
            "password": "<PASSWORD_1>",
            "x": '{"client_secret": "<PASSWORD_2>"}',
            "n": "ok",
        }
        schema = {"properties": {"password": {"type": "string"}}, "required": ["password"]}
        assert session.value(schema) == schema

    def test_numbers_that_are_personal(self) -> None:
        value = {"card": int(CARD), "phone": 4155552671, "id": 4155552671, "n": 5, "ok": True}
        changed = {**value, "card": "<CARD_1>", "phone": "<PHONE_1>"}
        assert scope().value(value) == changed
        assert json.loads(scope().text(json.dumps(value))) == changed

    @given(
        st.recursive(
            st.sampled_from([*SECRETS, "plain", 'a "quoted" \\ text\n', 1, 2.5, None, True])
            | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["a", "b", *SECRETS]), inner, max_size=3)
                | inner.map(json.dumps)
                | inner.map(lambda value: json.dumps(value, ensure_ascii=False, indent=2))
            ),
            max_leaves=12,
        )
    )
    def test_nothing_is_left_all_is_restored_and_json_stays_json(self, value: Any) -> None:
        session = scope()
        changed = session.value(value)
        for secret in SECRETS:
            assert secret not in plain(changed)
        assert meaning(session.restore(changed)) == meaning(value)
        assert shape(changed) == shape(value)
        assert session.value(changed) == changed

    def test_what_is_nested_too_deep_is_not_kept(self) -> None:
        value: Any = ANN
        for _ in range(200):
            value = [value]
        session = scope()
        assert ANN not in plain(session.value(value))
        assert session.counts == {"TOO_DEEP": 1}
        assert ANN not in session.text("[" * 50_000 + f'"{ANN}"' + "]" * 50_000)


def meaning(value: Any) -> Any:
    """The value with JSON inside strings read, so that the spelling of an escape is no matter."""
    if isinstance(value, dict):
        return {key: meaning(item) for key, item in value.items()}
    if isinstance(value, list):
        return [meaning(item) for item in value]
    if isinstance(value, str) and value[:1] in ("{", "[", '"'):
        try:
            return ["json", meaning(json.loads(value))]
        except ValueError:
            return value
    return value


def shape(value: Any) -> Any:
    """Which strings are JSON, and of what form."""
    if isinstance(value, dict):
        return [shape(item) for item in value.values()]
    if isinstance(value, list):
        return [shape(item) for item in value]
    if isinstance(value, str) and value[:1] in ("{", "[", '"'):
        try:
            return ["json", shape(json.loads(value))]
        except ValueError:
            return "text"
    return type(value).__name__


class TestRestore:
    def test_only_what_this_scope_gave_out(self) -> None:
        session = scope()
        session.text(ANN)
        value = {"a": "<EMAIL_1> <EMAIL_2>", "<EMAIL_1>": 1}
        assert session.restore(value) == {"a": f"{ANN} <EMAIL_2>", ANN: 1}
        assert placeholders(session.restore(value)) == {"<EMAIL_2>"}
        assert scope().restore(value) == value

    def test_placeholders_are_found_wherever_they_stand(self) -> None:
        value = {
            "a": ["x <EMAIL_1>", {"b": '{"to": "<EMAIL_h0123456789abcdef>"}'}],
            "c": "<b> <EMAIL>",
        }
        assert placeholders(value) == {"<EMAIL_1>", "<EMAIL_h0123456789abcdef>"}

    def test_what_a_value_looks_like_does_not_matter(self) -> None:
        session = scope()
        session.text("password: <EMAIL_1>a")
        session.text(ANN)
        assert session.restore("<EMAIL_1>") in ("<EMAIL_1>", ANN)


class TestPolicies:
    def test_hash_links_across_scopes_and_needs_a_key(self) -> None:
        with pytest.raises(ValueError, match="HASH_KEY"):
            scope(policy="hash")
        first = scope(policy="hash", hash_key=SecretStr("one"))
        second = scope(policy="hash", hash_key=SecretStr("one"))
        other = scope(policy="hash", hash_key=SecretStr("two"))
        assert first.text(ANN) == second.text(ANN) != other.text(ANN)
        assert first.text(ANN) != first.text(BOB)
        assert first.restore(first.text(ANN)) == ANN
        assert first.text(first.text(ANN)) == first.text(ANN)

    def test_drop_keeps_nothing_to_restore(self) -> None:
        session = scope(policy="drop")
        assert session.text(f"{ANN} {BOB}") == "<EMAIL> <EMAIL>"
        assert session.restore("<EMAIL>") == "<EMAIL>"

    def test_kept_kinds_stay(self) -> None:
        assert scope(keep_kinds=["EMAIL"]).text(f"{ANN} {PHONE}") == f"{ANN} <PHONE_1>"

    def test_each_kind_has_its_own_policy(self) -> None:
        session = scope(
            kinds={"EMAIL": "hash", "PHONE": "drop", "IP_ADDRESS": "keep"}, hash_key=SecretStr("k")
        )
        changed = session.text(f"{ANN} {PHONE} 203.0.113.7 {CARD}")
        mail, phone, address, card = changed.split()
        assert (phone, address, card) == ("<PHONE>", "203.0.113.7", "<CARD_1>")
        assert mail.startswith("<EMAIL_h") and session.restore(mail) == ANN
        assert session.record(call()).anonymization.policy == (
            "replace/1;EMAIL=hash;IP_ADDRESS=keep;PHONE=drop"
        )
        with pytest.raises(ValueError, match="HASH_KEY"):
            scope(kinds={"CARD": "hash"})

    def test_a_record_with_an_unwanted_kind_is_dropped_wherever_it_stands(self) -> None:
        session = scope(kinds={"CARD": "drop_record"})
        clean = session.record(call())
        assert clean.anonymization.counts
        said = {"role": "assistant", "content": f"paid by {CARD}"}
        for values in (
            {"request": {"messages": [{"role": "user", "content": CARD}]}},
            {"response": {"choices": [{"message": said}]}},
            {"other_answers": [OtherAnswer(model="m", purpose="audit", message=said)]},
            {"task_tag": CARD},
            {"unknown": {"deep": [CARD]}},
        ):
            with pytest.raises(RecordDropped, match="CARD") as dropped:
                session.record(call(**values))
            assert CARD not in str(dropped.value)
        # What another writer replaced before is no such value any more.
        assert session.record(clean.model_copy(update={"session": "s2"})).session == "s2"
        with pytest.raises(RecordDropped):
            session.record(FeedbackRecord(call_id="c", label=CARD))

    def test_kinds_are_checked(self) -> None:
        assert AnonymizerSettings(kinds={"email": "keep"}).kinds == {"EMAIL": "keep"}
        with pytest.raises(ValueError, match="EMIAL is no kind"):
            AnonymizerSettings(kinds={"EMIAL": "keep"})
        with pytest.raises(ValueError, match="in keep_kinds"):
            AnonymizerSettings(kinds={"EMAIL": "hash"}, keep_kinds=("EMAIL",))

    def test_no_policy_for_names_that_nobody_looks_for(self) -> None:
        for policy in ("replace", "hash", "drop", "drop_record"):
            with pytest.raises(ValueError, match="set names to ingest or everywhere"):
                AnonymizerSettings(kinds={"PERSON": policy})
        with pytest.raises(ValueError, match=r"drop_record for PLACE.*set names to everywhere"):
            AnonymizerSettings(kinds={"place": "drop_record", "PERSON": "drop"}, names="ingest")
        for good in (
            {"names": "ingest", "kinds": {"PERSON": "drop"}},
            {"names": "everywhere", "kinds": {"PERSON": "drop_record"}},
            {"kinds": {"ORGANIZATION": "keep"}},
            {"enabled": False, "kinds": {"PERSON": "drop"}},
        ):
            assert AnonymizerSettings.model_validate(good).kinds

    def test_disabled_changes_nothing(self) -> None:
        record = call()
        assert scope(enabled=False).record(record) == record
        assert scope(enabled=False).text(ANN) == ANN

    def test_more_recognizers_are_trusted_less(self) -> None:
        def names(text: str) -> list[Finding]:
            place = text.find("ann")
            return [Finding("NAME", place, place + 3)] if place >= 0 else []

        anonymizer = Anonymizer(AnonymizerSettings(), [names])
        assert anonymizer.scope().text("ann here") == "<NAME_1> here"
        assert anonymizer.scope().text(ANN) == "<EMAIL_1>"
