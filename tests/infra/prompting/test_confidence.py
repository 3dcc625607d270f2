"""What each score of confidence looks at, and what it does where it cannot see that."""

from __future__ import annotations

import math

import pytest

from infra.prompting.answers import parse_answer
from infra.prompting.confidence import (
    SCORES,
    agreement,
    agreement_name,
    all_confidences,
    answers_drawn,
    confidence_of,
)

TEXT = '{"name":"set","arguments":{"area":"living room","level":30}}'
TOKENS = (
    *('{"', "name", '":"', "set", '","', "arguments", '":{"', "area", '":"', "living", " room"),
    *('","', "level", '":', "30", "}}", "<|im_end|>"),
)
VALUES = frozenset({"set", "living", " room", "30", '":"', '","'})
"""Quotes belong to the value that they open or end: it could have begun or gone on otherwise."""


def doubt(place: int) -> list[float]:
    return [-1.0 if each == place else -0.01 for each in range(len(TOKENS))]


def test_the_least_value_is_blind_to_keys_and_braces() -> None:
    assert "".join(TOKENS).startswith(TEXT)
    for place, token in enumerate(TOKENS):
        found = all_confidences(TEXT, TOKENS, doubt(place))
        assert set(found) == set(SCORES)
        assert found["least_token"] == -1
        assert found["least_value"] == (-1 if token in VALUES else -0.01), token
        assert found["sequence"] == pytest.approx(-1.16)
        assert found["mean"] == pytest.approx(-1.16 / 17)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        (TEXT, ()),  # an engine that tells no tokens
        (TEXT, ("\ufffd", *TOKENS[1:])),  # half a character
        ("it is on", ("it", " is", " on")),
        ("{}", ("{}",)),
    ],
    ids=["none", "half", "words", "no values"],
)
def test_what_cannot_be_told_apart_counts_whole(text: str, tokens: tuple[str, ...]) -> None:
    values = [-0.5, *[-0.1] * (max(1, len(tokens)) - 1)]
    assert confidence_of("least_value", text, tokens, values) == -0.5


def test_an_unknown_score_and_no_tokens_are_never_sure() -> None:
    assert confidence_of("of-a-later-release", TEXT, TOKENS, doubt(0)) == -math.inf
    assert set(all_confidences("", (), ()).values()) == {-math.inf}


def test_agreement_is_the_share_of_sound_answers_that_say_the_same() -> None:
    request = {"tools": [{"type": "function", "function": {"name": "set"}}]}

    def read(text: str, complete: bool = True):
        return parse_answer(text, request, complete=complete)

    shown = read('{"name":"set","arguments":{"area":"hall","level":30}}')
    drawn = [
        read('{"name": "set", "arguments": {"level": 30.0, "area": "hall"}}'),  # the same
        read('{"name":"set","arguments":{"area":"hall","level":31}}'),
        read('{"name":"set","arguments":{"area":"hall","level":30}}', complete=False),
        read('{"name":"other","arguments":{}}'),
    ]
    assert agreement(shown, drawn) == 0.25
    words = read("It is on.")
    assert agreement(words, [read(" It is on. "), read("it is off")]) == 0.5


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        (agreement_name(5), 5),
        ("agreement_16", 16),
        *((name, 0) for name in ("agreement_17", "agreement_0", "agreement_", "agreement_5x")),
        *((name, 0) for name in ("mean", "of-a-later-release")),
    ],
)
def test_a_scores_name_says_how_many_answers_it_takes(name: str, drawn: int) -> None:
    assert answers_drawn(name) == drawn
    # Asked of one answer alone it is never reached.
    if name.startswith("agreement"):
        assert confidence_of(name, TEXT, TOKENS, doubt(0)) == -math.inf
