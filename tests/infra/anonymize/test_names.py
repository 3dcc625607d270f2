"""Names by the real model: what it sees, and what it must leave alone."""

from __future__ import annotations

import json
import time

import pytest

from infra.anonymize.anonymizer import Anonymizer
from infra.anonymize.name_cues import _CUES, by_address, by_cue, foreign
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
        ("They met near DENTON, as we heard.", "PLACE", "DENTON"),
        ("She lives in Qualburg now.", "PLACE", "Qualburg"),
        ("He lives at 12 Elm Row 4, Qualburg", "PLACE", "Qualburg"),
        ("I ask for my friend Hleb today.", "PERSON", "Hleb"),
        ("The song was sung by Taiji Komori again.", "PERSON", "Taiji Komori"),
        ('Alette: "Who are you?"', "PERSON", "Alette"),
        ("That is the Lévai novel, of course.", "PERSON", "Lévai"),
        ("Dr. Mia Kim. What else?", "PERSON", "Mia Kim"),
        ("Vera Qadir\n17 Elm Row\nSuite 4\nQUALBURG\nQueria 1060", "PERSON", "Vera Qadir"),
        ("Vera Qadir\n17 Elm Row\nSuite 4\nQUALBURG\nQueria 1060", "PLACE", "QUALBURG"),
        ("}} Vera Qadir\n}} 17 Elm Row\n}} Suite 4\n}} Queria 1060", "PLACE", "Queria"),
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


@pytest.mark.parametrize(
    "text",
    [
        "1. Getting Started\nOutput Format\nWhat To Do",
        "3 Files Changed\nOutput Format",
        "Größe und Länge wähle schön für Österreichs Bäume, über Äste hörst Böen",
        "write it in Python by Friday",
    ],
)
def test_what_only_looks_like_a_cue(text: str) -> None:
    assert [*by_cue(text), *by_address(text), *foreign(text)] == []


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


@pytest.mark.parametrize(
    "unit",
    [
        "A.",
        "A-",
        "A_",
        "A& ",
        "A.A.A.A.A.A.A.A. ",
        "Mr A de de ",
        "9 Elm 9\n",
        "É ",
        "lives at 9 Elm 9, ",
    ],
)
def test_one_long_word_takes_no_more_than_its_length(unit: str) -> None:
    def work(length: int) -> float:
        """Processor seconds of this thread, of the quickest of five."""
        text, taken = (unit * length)[:length], []
        for _ in range(5):
            began = time.thread_time()
            for pattern in (pattern for _, patterns in _CUES for pattern in patterns):
                assert sum(1 for _ in pattern.finditer(text)) <= length
            assert sum(1 for _ in (*by_address(text), *foreign(text))) <= length
            taken.append(time.thread_time() - began)
        return min(taken)

    # In proportion: 8. By the square: 64.
    assert work(4000) < 30 * work(500)
