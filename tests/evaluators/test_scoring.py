from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.scoring import CallScore, answer_kind, score_answer, token_f1

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "set_light",
            "parameters": {
                "type": "object",
                "properties": {"room": {"type": "string"}, "level": {"type": "number"}},
                "required": ["room"],
            },
        },
    },
    {"type": "function", "function": {"name": "play", "parameters": {"type": "object"}}},
]
WITH_TOOLS = {"messages": [], "tools": TOOLS}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "items": {"type": "array"}},
    "required": ["name"],
}
WITH_SCHEMA = {
    "messages": [],
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
}


def calls(*made: tuple[str, Any]) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": f"call_{place}",
                "type": "function",
                "function": {
                    "name": name,
                    "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments),
                },
            }
            for place, (name, arguments) in enumerate(made)
        ],
    }


def says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def score(expected: dict[str, Any], got: dict[str, Any] | None, request: Any) -> CallScore:
    return score_answer(expected, got, request)


LIGHT = calls(("set_light", {"room": "hall", "level": 3}))


@pytest.mark.parametrize(
    ("got", "stages", "correct"),
    [
        (calls(("set_light", {"level": 3.0, "room": "hall"})), (1, 1, 1, 1, 1), 1.0),
        (calls(("set_light", {"room": "hall", "level": 4})), (1, 1, 1, 1, 0), 0.0),
        (calls(("set_light", {"room": "Hall", "level": 3})), (1, 1, 1, 1, 0), 0.0),
        (calls(("set_light", {"room": "hall"})), (1, 1, 1, 0, 0), 0.0),
        (calls(("play", {"room": "hall", "level": 3})), (1, 1, 0, 0, 0), 0.0),
        (calls(("set_light", "{room: hall")), (1, 0, 1, 0, 0), 0.0),
        (calls(("set_light", "[1]")), (1, 0, 1, 0, 0), 0.0),
        (says("done"), (0, 0, 0, 0, 0), 0.0),
        (None, (0, 0, 0, 0, 0), 0.0),
        ({"role": "assistant", "tool_calls": ["rubbish", {"function": 7}]}, (1, 0, 0, 0, 0), 0.0),
    ],
)
def test_tool_call_stages_say_where_it_went_wrong(got, stages, correct):
    result = score(LIGHT, got, WITH_TOOLS)
    named = tuple(result.stages[stage] for stage in ("called", "parsed", "name", "keys", "values"))
    assert (result.kind, named, result.correct) == ("tool_call", stages, correct)


def test_true_is_not_one():
    one, true = calls(("play", {"n": 1})), calls(("play", {"n": True}))
    assert score(one, true, WITH_TOOLS).correct == 0
    assert score(true, true, WITH_TOOLS).correct == 1


def test_parallel_calls_match_as_a_multiset():
    a, b = ("play", {"n": 1}), ("set_light", {"room": "hall"})
    assert score(calls(a, b), calls(b, a), WITH_TOOLS).correct == 1
    assert score(calls(a, a), calls(a), WITH_TOOLS).correct == 0
    assert score(calls(a), calls(a, a), WITH_TOOLS).stages["values"] == 0.5
    partly = score(calls(a, b), calls(a, ("set_light", {"room": "attic"})), WITH_TOOLS)
    assert (partly.stages["keys"], partly.stages["values"], partly.correct) == (1, 0.5, 0)


def test_rightly_no_tool():
    right = says("There is no oven here.")
    assert score(right, says("there is no oven here"), WITH_TOOLS).correct == 1
    assert score(right, LIGHT, WITH_TOOLS) == CallScore(
        "tool_call", 0.0, {"called": 0.0, "words": 0.0}
    )
    other = score(right, says("no oven"), WITH_TOOLS)
    assert other.stages["called"] == 1 and 0 < other.correct < 1


def test_structured_needs_the_schema_and_every_field():
    right = says('{"name": "ann", "items": [1, 2]}')
    assert score(right, says('{"items":[1,2.0],"name":"ann"}'), WITH_SCHEMA).correct == 1
    swapped = score(right, says('{"name": "ann", "items": [2, 1]}'), WITH_SCHEMA)
    assert (swapped.stages["fields"], swapped.stages["exact"], swapped.correct) == (1, 0, 0)
    partly = score(right, says('{"name": "bob", "items": [1, 2]}'), WITH_SCHEMA)
    assert partly.stages["fields"] == pytest.approx(2 / 3)
    unfit = score(right, says('{"items": [1, 2]}'), WITH_SCHEMA)
    assert unfit.stages["schema_valid"] == 0 and unfit.stages["fields"] == pytest.approx(0.8)
    assert score(right, says("{"), WITH_SCHEMA).stages["parsed"] == 0
    assert score(right, LIGHT, WITH_SCHEMA).correct == 0


def test_an_answer_outside_the_schema_is_wrong_even_if_expected():
    right = says('{"items": []}')
    assert score(right, right, WITH_SCHEMA).correct == 0


@pytest.mark.parametrize(
    "schema", [{"$ref": "#/nowhere"}, {"type": 7}, [1], {"properties": {"name": {"pattern": "("}}}]
)
def test_a_broken_schema_costs_only_its_own_answer(schema):
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    right = says('{"name": "ann"}')
    assert score(right, right, {"response_format": form}).correct == 0


def test_a_schema_of_the_callers_makes_nobody_fetch_a_url():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/schema"
        form = {"type": "json_schema", "json_schema": {"schema": {"$ref": url}}}
        right = says('{"name": "ann"}')
        assert score(right, right, {"response_format": form}).correct == 0
        with pytest.raises(BlockingIOError):
            server.accept()


def test_labels_ignore_case_and_spaces_only():
    right = says("Billing/Refund")
    assert score(right, says(" billing/refund\n"), {}).correct == 1
    assert score(right, says("billing refund"), {}).correct == 0
    assert score(right, None, {}).kind == "label"
    assert score(right, LIGHT, {}).correct == 0


def test_text_is_token_f1():
    right = says("The parcel arrives on Monday morning.")
    result = score(right, says("the parcel arrives Monday"), {})
    assert result.kind == "text" and result.correct == pytest.approx(2 * 4 / 10)
    assert score(right, says(""), {}).correct == 0
    assert token_f1("???", "???") == 1 and token_f1("???", "!") == 0
    assert token_f1("東京です", "東京") == pytest.approx(2 * 2 / 6)


@pytest.mark.parametrize(
    ("expected", "request_", "kind"),
    [
        (LIGHT, {}, "tool_call"),
        (says("no"), WITH_TOOLS, "tool_call"),
        (says("anything"), {"response_format": {"type": "json_object"}}, "structured"),
        (says('{"a": 1}'), {}, "structured"),
        (says("7"), {}, "label"),
        (says("Yes, I can."), {}, "text"),
        (says("one two three four five"), {}, "text"),
        ({"content": [{"type": "text", "text": "urgent"}]}, {}, "label"),
        ({}, {"response_format": "rubbish"}, "label"),
    ],
)
def test_kind_comes_from_the_right_answer_and_its_request(expected, request_, kind):
    assert answer_kind(expected, request_) == kind


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
MESSAGES = st.one_of(
    st.none(),
    st.builds(says, st.text(max_size=40)),
    st.builds(lambda value: says(json.dumps(value)), JSON),
    st.builds(
        lambda name, value: calls((name, json.dumps(value))),
        st.sampled_from(["set_light", "play", "unknown"]),
        JSON,
    ),
    st.fixed_dictionaries({"content": JSON, "tool_calls": JSON}),
)


@given(
    expected=MESSAGES.filter(lambda message: message is not None),
    got=MESSAGES,
    request_=st.sampled_from([{}, WITH_TOOLS, WITH_SCHEMA]),
)
def test_no_answer_breaks_the_scoring_and_scores_stay_in_range(expected, got, request_):
    result = score_answer(expected, got, request_)
    for value in (result.correct, *result.stages.values()):
        assert 0 <= value <= 1
    if "values" in result.stages:
        stages = result.stages
        assert stages["called"] >= stages["name"] >= stages["keys"] >= stages["values"]
    assert CallScore.from_dict(json.loads(json.dumps(result.to_dict()))) == result


@given(
    made=st.lists(
        st.tuples(
            st.sampled_from(["set_light", "play"]),
            st.dictionaries(st.text(max_size=4), JSON, max_size=3),
        ),
        min_size=1,
        max_size=4,
    ),
    order=st.randoms(),
)
def test_the_same_calls_in_any_order_are_right(made, order):
    shuffled = list(made)
    order.shuffle(shuffled)
    assert score_answer(calls(*made), calls(*shuffled), WITH_TOOLS).correct == 1


def test_deeply_nested_arguments_are_wrong_and_not_a_crash():
    deep = calls(("play", '{"a":' * 100_000 + "1" + "}" * 100_000))
    assert score(LIGHT, deep, WITH_TOOLS).correct == 0
    assert score(says('{"name": "a"}'), says("[" * 100_000), WITH_SCHEMA).correct == 0
