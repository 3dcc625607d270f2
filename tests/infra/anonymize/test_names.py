"""Names by the real model: what it sees, and what it must leave alone."""

from __future__ import annotations

import json
import time

import pytest

from infra.anonymize.anonymizer import Anonymizer
from infra.anonymize.names import _CUED, _FIRM, _TITLED
from infra.settings.serving import Anonymizer as AnonymizerSettings

pytest.importorskip("spacy")


@pytest.fixture(scope="module")
def anonymizer() -> Anonymizer:
    return Anonymizer(AnonymizerSettings(names="everywhere"))


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("Please ask John Smith about the invoice.", "PERSON", "John Smith"),
        ("Name: Klaudia Wiśniewska\\nAddress: none", "PERSON", "Klaudia Wiśniewska"),
        ("join accounts with ms. erzsok", "PERSON", "erzsok"),
        ("She flew to Paris on Monday.", "PLACE", "Paris"),
        ("He works at Microsoft Corporation now.", "ORGANIZATION", "Microsoft Corporation"),
        ("invoice to\nLarsen & Toubro Limited\nBox 3", "ORGANIZATION", "Larsen & Toubro Limited"),
        ("signed for SANTO CO.LTD. yesterday", "ORGANIZATION", "SANTO CO.LTD."),
        ("Alexis of Goldplat plc is here", "ORGANIZATION", "Goldplat plc"),
    ],
)
def test_finds(anonymizer: Anonymizer, text: str, kind: str, value: str) -> None:
    found = [(item.kind, text[item.start : item.end]) for item in anonymizer.find(text)]
    assert (kind, value) in found


@pytest.mark.parametrize(
    "text", ["please limited the amount", "send it co. by monday", "a b c d e f g h inc " * 50]
)
def test_no_firm(anonymizer: Anonymizer, text: str) -> None:
    assert "ORGANIZATION" not in {item.kind for item in anonymizer.find(text)}


def test_a_name_is_the_same_in_prompt_and_tool_arguments_and_keys_stay(
    anonymizer: Anonymizer,
) -> None:
    request = {
        "messages": [
            {"role": "user", "content": "My name is John Smith, find my order."},
            {
                "role": "assistant",
                "tool_calls": [
                    {"function": {"name": "Find", "arguments": '{"Paris": "John Smith"}'}}
                ],
            },
        ]
    }
    changed = anonymizer.scope().request(request)
    assert "<PERSON_1>" in changed["messages"][0]["content"]
    arguments = changed["messages"][1]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(arguments) == {"Paris": "<PERSON_1>"}


def test_off_in_the_gateway_where_ingest_alone_asks_for_them() -> None:
    settings = AnonymizerSettings(names="ingest")
    text = "Please ask John Smith about the invoice."
    assert Anonymizer(settings).find(text) == ()
    assert Anonymizer(settings, ingest=True).find(text) != ()


@pytest.mark.parametrize("unit", ["A.", "A-", "A_", "A& ", "A.A.A.A.A.A.A.A. ", "Mr A de de "])
def test_one_long_word_takes_no_more_than_its_length(unit: str) -> None:
    def work(length: int) -> float:
        """Processor seconds of this thread, of the quickest of five."""
        text, taken = (unit * length)[:length], []
        for _ in range(5):
            began = time.thread_time()
            for pattern in (_FIRM, _CUED, _TITLED):
                assert sum(1 for _ in pattern.finditer(text)) <= length
            taken.append(time.thread_time() - began)
        return min(taken)

    # In proportion: 8. By the square: 64.
    assert work(4000) < 30 * work(500)
