"""What is told to hold nothing personal by its bytes holds nothing when it is walked."""

from __future__ import annotations

import json
import random
from typing import Any

import orjson
import pytest

from flows.demo.traffic import sessions
from infra.anonymize.anonymizer import Anonymizer
from infra.anonymize.memory import packed
from infra.anonymize.quiet import quiet
from infra.anonymize.recognizers import Structured, find
from infra.settings.serving import Anonymizer as AnonymizerSettings

PIECES = (
    *("12", "555", "1234", "+1", "(", ")", " ", "-", ".", ":", "::", "/", "@", "%40", "=", "\n"),
    *(
        '"',
        "\\",
        "\\n",
        "DE44",
        "GB29 NWBK",
        "pass",
        "word",
        "pwd",
        "secret",
        "api",
        "key",
        "token",
    ),
    *("access", "Bearer ", "sk-", "AKIA", "xox", "eyJ", "a" * 20, "f", "00", "00:1b", "fe80", "is"),
    *("é", "ſ", "K", "ı", "{", "}", "[", "]", "phone", "call me", "ssn", "<EMAIL_1>", "192.168"),
)
PERSONAL = (
    *("ann@example.com", "10.1.2.3", "fe80::1:2", "::ffff:1", "DE89370400440532013000"),
    *("00:1b:44:11:3a:b7", "AKIAIOSFODNN7EXAMPLE", "password=hunter22", "api_key: abcd1234"),
    *("xoxb-123abcdefgh", "Bearer abcdefghijklmnopqrstuvwx", "+1 (415) 555-2671", "536-90-4399"),
    *("call 5551234", "postgres://joe:pw@host/db", "pa\u017fsword: abc1x", "12345678Z"),
    "AB 12 34 56 C",
    "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0",
)


@pytest.fixture(scope="module")
def anonymizer() -> Anonymizer:
    return Anonymizer(AnonymizerSettings())


def found(anonymizer: Anonymizer, value: Any) -> dict[str, int]:
    """What a walk over every string finds; the value stands where nothing is told by its bytes."""
    scope = anonymizer.scope()
    scope._run((value,))
    return scope.counts


def loud(value: Any) -> bool:
    data = packed(value)
    return data is None or not quiet(data)


@pytest.mark.parametrize("text", PERSONAL)
def test_what_is_personal_is_loud_in_every_wrapping(text: str) -> None:
    arguments = orjson.dumps({"to": text}).decode()
    for value in (text, [text], {"a": {"b": f"so {text} then"}}, {"arguments": arguments}):
        assert loud(value)
    assert loud({"arguments": orjson.dumps({"inner": arguments}).decode()})
    assert loud(f"line\n{text}") and loud(f"é {text}")


def test_what_names_a_secret_or_cannot_be_seen_through_is_loud() -> None:
    deep: Any = "x"
    for _ in range(70):
        deep = [deep]
    for value in ({"password": "plain"}, {"client_secret": "it is"}, deep, "\x00", {"pin": 10**16}):
        assert loud(value)


def test_most_of_real_traffic_is_quiet() -> None:
    messages = [m for one in sessions(3, 20) for call in one.calls for m in call.messages]
    texts = [m for m in messages if "@" not in str(m["content"])]
    assert sum(not loud(m) for m in texts) > 0.7 * len(texts)


def test_a_walk_finds_nothing_in_what_is_quiet(
    anonymizer: Anonymizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that the walk does not ask what it is to check.
    monkeypatch.setattr(anonymizer, "quiet", lambda data: False)
    draw = random.Random(5)
    seen = 0
    for _ in range(4000):
        text = "".join(draw.choice(PIECES) for _ in range(draw.randint(1, 8)))
        name = draw.choice(("a", "phone", "password", "note"))
        value: Any = {name: draw.choice((text, [text], orjson.dumps({name: text}).decode()))}
        if loud(value):
            continue
        seen += 1
        assert not found(anonymizer, value), value
    assert seen > 500


def spelled(draw: random.Random, value: Any) -> str:
    """JSON as any writer may spell it."""
    blank = draw.choice(("", " "))
    text = json.dumps(
        value, ensure_ascii=draw.random() < 0.5, separators=("," + blank, ":" + blank)
    )
    return text.replace("/", "\\/") if draw.random() < 0.5 else text


@pytest.mark.parametrize("number", ["+33 1/23/45/67/89", "536/90/4399", "+1/415/555/2671"])
def test_a_number_in_json_that_escapes_its_slashes_is_loud(number: str) -> None:
    text = json.dumps({"tel": number}).replace("/", "\\/")
    assert loud({"content": text}) and loud({"content": json.dumps({"inner": text})})


def test_what_is_quiet_holds_nothing_however_the_json_in_it_is_spelt(
    anonymizer: Anonymizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anonymizer, "quiet", lambda data: False)
    draw, seen = random.Random(11), 0
    signs = ("/", "-", ".", " ", "", "\n", "\t", "\\", '"', "é", "+", "(", ":")
    for _ in range(6000):
        groups = ["".join(draw.choices("0123456789", k=draw.randint(1, 4))) for _ in range(5)]
        text = draw.choice(signs).join(groups[: draw.randint(1, 5)])
        text = draw.choice(("", "+", "tel ", *PIECES)) + text + draw.choice(("", *PIECES))
        for _ in range(draw.randint(1, 3)):
            text = spelled(draw, {draw.choice(("a", "phone")): text})
        if loud({"content": text}):
            continue
        seen += 1
        assert not found(anonymizer, {"content": text}), text
    assert seen > 300


def test_who_is_not_asked_would_have_found_nothing() -> None:
    structured, draw = Structured("US"), random.Random(7)
    more = ("AB 12 34 56 C", "X1234567L", "12345678", "2024-01-02", "no ", "ext 5", ",", "#", "_")
    for text in PERSONAL:
        assert find(text, structured.worth_asking(text)), text
    for _ in range(1500):
        text = "".join(draw.choice(PIECES + more) for _ in range(draw.randint(1, 8)))
        asked = find(text, structured.worth_asking(text))
        assert asked == find(text, structured.every()), text
