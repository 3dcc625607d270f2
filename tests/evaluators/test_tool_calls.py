from __future__ import annotations

from typing import Any

import pytest

from evaluators.normalizing import normalize
from evaluators.scoring import score_answer
from infra.prompting.values import canonical
from tests.evaluators.test_scoring import calls

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "n": {"type": "integer"},
        "on": {"type": "boolean"},
        "unit": {"enum": ["Celsius", "Kelvin"]},
        "day": {"type": "string", "format": "date-time"},
        "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        "size": {"type": "integer", "default": 1},
        "note": {"type": "string"},
        "who": {"$ref": "#/$defs/who"},
        "either": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    },
    "required": ["n"],
    "$defs": {"who": {"type": "object", "properties": {"age": {"type": "number"}}}},
}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"n": "5"}, {"n": 5.0}, True),
        ({"n": "5.5"}, {"n": 5}, False),
        ({"n": True}, {"n": 1}, False),
        ({"n": "10"}, {"n": 1}, False),
        ({"on": "True"}, {"on": True}, True),
        ({"unit": "kelvin "}, {"unit": "Kelvin"}, True),
        ({"unit": "kelvins"}, {"unit": "Kelvin"}, False),
        ({"day": "2026-03-01T08:00:00Z"}, {"day": "2026-03-01T08:00:00+00:00"}, True),
        ({"tags": ["b", "a"]}, {"tags": ["a", "b"]}, True),
        ({}, {"size": 1}, True),
        ({"size": 2}, {}, False),
        ({"note": None}, {}, True),
        ({"note": "Hall"}, {"note": "hall"}, False),
        ({"who": {"age": "7"}}, {"who": {"age": 7}}, True),
        ({"either": "3"}, {"either": 3}, True),
        ({"either": None}, {}, False),
        ({"unknown": "1"}, {"unknown": 1}, False),
    ],
)
def test_values_are_the_same_as_the_schema_means_them(one, other, same):
    found = [canonical(normalize(value, SCHEMA)) for value in (one, other)]
    assert (found[0] == found[1]) is same


@pytest.mark.parametrize(
    "schema",
    [None, 7, {"$ref": "#/a"}, {"$ref": 3}, {"properties": 3}, {"anyOf": [3]}, {"type": 3}],
)
def test_a_broken_schema_changes_nothing(schema):
    assert normalize({"a": [1, "x"]}, schema) == {"a": [1, "x"]}


def test_a_schema_that_refers_to_itself_ends():
    looped = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
    assert normalize({"a": 1}, looped) == {"a": 1}
    deep: Any = "1"
    for _ in range(200):
        deep = {"a": deep}
    assert normalize(deep, {"properties": {"a": {"$ref": "#"}}}) == deep


def test_the_normalized_stage_forgives_spelling_and_exact_does_not():
    tools = [{"type": "function", "function": {"name": "set", "parameters": SCHEMA}}]
    request = {"messages": [], "tools": tools}
    found = score_answer(calls(("set", {"n": 5})), calls(("set", {"n": "5", "size": 1})), request)
    assert (found.stages["values"], found.stages["normalized"], found.correct) == (0, 1, 0)
    wrong = score_answer(calls(("set", {"n": 1})), calls(("set", {"n": "10"})), request)
    assert wrong.stages["normalized"] == 0


@pytest.mark.parametrize("kind", ["integer", "number", "boolean", "string"])
def test_no_number_is_too_large(kind: str):
    for schema in ({"type": kind}, {"anyOf": [{"type": kind}]}):
        normalize({"n": 10**400}, {"properties": {"n": schema}})


def test_references_that_multiply_are_given_up():
    both = {"a": {"$ref": "#"}, "b": {"$ref": "#"}}
    twice = {"properties": {"c": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}}}
    assert normalize({}, {"properties": both, "default": {}})
    value: dict[str, Any] = {}
    for _ in range(30):
        value = {"c": value}
    assert normalize(value, twice) == value
