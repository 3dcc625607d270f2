"""The explanation says where and what, and nothing of the values, whatever they are."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from infra.anonymize.anonymizer import Anonymizer
from infra.anonymize.explain import explain, kind_of
from infra.settings.serving import Anonymizer as AnonymizerSettings

MAIL, CARD = "ann.lee@example.com", "4111 1111 1111 1111"


def explained(value: Any, **policy: Any) -> list[tuple[str, str, int]]:
    after = Anonymizer(AnonymizerSettings(**policy)).scope().value(value)
    return [(item.path, item.kind, item.count) for item in explain(value, after)]


def test_places_kinds_and_counts():
    value = {
        "messages": [{"content": f"{MAIL} or {MAIL}, card {CARD}"}],
        "arguments": f'{{"to": "{MAIL}"}}',
        "plain": "nothing here",
    }
    assert explained(value) == [
        ("messages.0.content", "EMAIL", 2),
        ("messages.0.content", "CARD", 1),
        ("arguments", "EMAIL", 1),
    ]
    assert explained(value, policy="drop") == explained(value)
    assert explained(value, policy="hash", hash_key="k") == explained(value)
    assert explained(value, keep_kinds=("EMAIL",)) == [("messages.0.content", "CARD", 1)]


def test_what_was_a_placeholder_before_is_not_counted():
    assert explained({"a": f"<EMAIL_1> wrote to {MAIL}"}) == [("a", "EMAIL", 1)]
    assert explained({"a": "<EMAIL_1>"}) == []


def test_keys_and_numbers():
    assert explained({MAIL: 1}) == [("<EMAIL_1> (key)", "EMAIL", 1)]
    assert explained({"card": 4111111111111111}) == [("card", "CARD", 1)]


def test_kinds_of_every_policy():
    for placeholder in ("<US_SSN_12>", "<US_SSN_h0123456789abcdef>", "<US_SSN>"):
        assert kind_of(placeholder) == "US_SSN"


texts = st.lists(
    st.sampled_from([MAIL, CARD, "hello", "<EMAIL_1>", '{"a": "', '"}', " "]), max_size=5
)
trees = st.recursive(
    texts.map(" ".join),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(texts.map(" ".join), inner, max_size=3)
    ),
    max_leaves=6,
)


@hypothesis_settings(max_examples=100, deadline=None)
@given(value=trees)
def test_no_value_is_ever_shown(value: Any):
    after = Anonymizer(AnonymizerSettings()).scope().value(value)
    for item in explain(value, after):
        shown = f"{item.path}{item.placeholder}{item.context}"
        assert MAIL not in shown
        assert CARD not in shown
