"""The check of an answer: no shape of one makes it raise, and no schema of a caller holds it up."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.prompting import answers
from infra.prompting.answers import TOO_DEAR, check_answer, uncheckable
from infra.prompting.schema_cost import expanded


def problem(value: Any, schema: Any) -> str:
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    checks = check_answer({"content": json.dumps(value)}, {"response_format": form})
    return checks.reason


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"^(a+)+$", "a" * 60 + "!"),
        (r"^(a|aa)+$", "a" * 60 + "!"),
        # A group that is looked back to has no linear engine: it is given up.
        (r"^(?=(a+)+\1$)(a|aa)+\1b$", "a" * 60 + "!"),
    ],
)
def test_a_pattern_cannot_hold_the_checks(pattern: str, text: str) -> None:
    """In a process of its own, because what holds them could not be interrupted."""
    code = (
        "import json, sys; from infra.prompting.answers import check_answer\n"
        "pattern, text = json.loads(sys.argv[1])\n"
        "form = {'type': 'json_schema', 'json_schema': {'schema': {'pattern': pattern}}}\n"
        "print(check_answer({'content': json.dumps(text)}, {'response_format': form}).reason)\n"
    )
    asked = [sys.executable, "-c", code, json.dumps([pattern, text])]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "breaks pattern at top"


def test_patterns_mean_what_they_mean_elsewhere() -> None:
    for pattern, fits, breaks in (
        ("^a+$", "aa", "b"),
        (r"^(?!no)\w+$", "yes", "no"),
        (r"^(\w)\1$", "aa", "ab"),
        ("b", "abc", "ac"),
    ):
        assert problem(fits, {"pattern": pattern}) == ""
        assert problem(breaks, {"pattern": pattern}) == "breaks pattern at top"
    nested = {"properties": {"a": {"items": {"type": "integer"}}}}
    assert problem({"a": [1, "x"]}, nested) == "breaks type at a/1"
    assert problem({"a": 10**40}, {"properties": {"a": {"maximum": 10**30}}}) == (
        "breaks maximum at a"
    )


@pytest.mark.parametrize(
    "schema",
    [{"pattern": "("}, {"type": "strin"}, {"$ref": "http://127.0.0.1:1/x"}, {"$ref": "#/no"}, 5],
)
def test_what_is_no_schema_fails_the_check_and_nothing_is_fetched(schema: Any) -> None:
    assert problem({}, schema) == "the caller's schema is not valid JSON Schema"


def doubling(levels: int) -> dict[str, Any]:
    """Each level refers twice to the one below."""
    twice = {n: [{"$ref": f"#/$defs/{n - 1}"}] * 2 for n in range(1, levels + 1)}
    return {
        "$ref": f"#/$defs/{levels}",
        "$defs": {"0": {"type": "string"}} | {str(n): {"allOf": r} for n, r in twice.items()},
    }


def test_references_that_multiply_are_not_followed() -> None:
    assert problem("x", doubling(8)) == "" and problem(1, doubling(8)) == "breaks type at top"
    assert problem("x", doubling(60)) == TOO_DEAR, "2^60 steps"
    fields = {"$ref": "#"}
    tree = {"properties": {"x": fields}, "patternProperties": {"x": fields}, "type": "object"}
    value: Any = {}
    for _ in range(40):
        value = {"x": value}
    assert problem(value, tree) == TOO_DEAR, "2^40 steps on this value"
    assert problem({"x": {"x": {}}}, tree) == ""
    assert problem({"x": {"x": 3}}, tree) == "breaks type at x/x"


def test_recursive_schemas_that_do_not_multiply_are_checked_in_depth_and_breadth() -> None:
    node = {"properties": {"next": {"$ref": "#/$defs/node"}, "n": {"type": "integer"}}}
    schema = {"$defs": {"node": node}, "$ref": "#/$defs/node"}
    chain: Any = {"n": "no"}
    for _ in range(30):
        chain = {"n": 1, "next": chain}
    assert problem(chain, schema).startswith("breaks type at next/next")
    many = {"items": {"$ref": "#/$defs/node"}, "$defs": {"node": node}}
    assert problem([{"n": 1, "next": {"n": 2}}] * 200, many) == ""
    same_place = {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}
    assert problem(1, same_place) == "", "a part that comes back to itself says nothing"


@pytest.mark.parametrize(
    ("schema", "dear"),
    [
        (doubling(8), False),
        (doubling(60), True),
        ({"$dynamicRef": "#/$defs/a", "$defs": {"a": {}}}, True),
        ({"properties": {"$ref": {"type": "string"}}}, False),
        ({"$ref": "#/no"}, True),
        ({"type": "strnig"}, True),
        ({}, False),
    ],
)
def test_a_request_tells_what_no_answer_is_checked_against(schema: Any, dear: bool) -> None:
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    assert uncheckable({"response_format": form}) is dear
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    assert uncheckable({"tools": [tool]}) is dear
    assert not uncheckable({"tools": [None, {"function": {}}], "response_format": None})


def test_what_is_remembered_of_schemas_is_bounded_in_bytes_and_number() -> None:
    answers._known.cache_clear()
    big = {"description": "x" * answers.MAX_KNOWN_SCHEMA_BYTES, "type": "object"}
    for _ in range(2):
        assert problem({}, big) == ""
        assert problem([], big) == "breaks type at top"
    assert answers._known.cache_info().currsize == 0
    for number in range(answers.MAX_KNOWN_SCHEMAS + 10):
        assert problem({}, {"maxProperties": number}) == ""
    assert answers._known.cache_info().currsize == answers.MAX_KNOWN_SCHEMAS


def test_what_a_long_schema_costs_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []

    def counted(schema: Any) -> int:
        said.append(schema)
        return expanded(schema)

    monkeypatch.setattr(answers, "expanded", counted)
    long = "x" * answers.MAX_KNOWN_SCHEMA_BYTES
    recursive = {"properties": {"next": {"$ref": "#"}}, "type": "object", "description": long}
    for number, (schema, dear, reason) in enumerate(
        (
            ({"type": "object", "title": "cost", "description": long}, False, "breaks type at top"),
            (doubling(60) | {"description": long}, True, TOO_DEAR),
            (recursive, False, "breaks type at top"),
        ),
        1,
    ):
        for _ in range(3):
            form = {
                "type": "json_schema",
                "json_schema": {"schema": json.loads(json.dumps(schema))},
            }
            assert uncheckable({"response_format": form}) is dear
            assert problem([], schema) == reason
        assert len(said) == number


REQUEST = {"tools": [{"type": "function", "function": {"name": "go", "parameters": {}}}]}
GOOD = {"id": "c", "type": "function", "function": {"name": "go", "arguments": "{}"}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize(
    "calls",
    [
        "go",
        {"function": {"name": "go"}},
        7,
        ["go"],
        [None],
        [GOOD, 1],
        [{"function": "go"}],
        [{"function": {"name": ["go"]}}],
        [{"function": {"name": "go", "arguments": {"a": 1}}}],
    ],
)
def test_tool_calls_of_another_shape_do_not_pass(calls: Any):
    checks = check_answer({"tool_calls": calls}, REQUEST)
    assert not checks.passed
    assert "not a list of function calls" in checks.reason


def test_a_well_formed_call_passes_and_an_unknown_tool_is_named():
    assert check_answer({"tool_calls": [GOOD]}, REQUEST).passed
    assert check_answer({"tool_calls": [{"function": {"name": "go"}}]}, REQUEST).passed
    assert "'go'" in check_answer({"tool_calls": [GOOD]}, {"tools": "none"}).reason


@given(JSON, JSON, JSON)
def test_no_shape_raises(calls: Any, content: Any, tools: Any):
    check_answer({"tool_calls": calls, "content": content}, {"tools": tools})
    check_answer({"content": content}, {"response_format": {"type": "json_object"}})
    assert not check_answer({"tool_calls": [calls]}, {"tools": []}).passed
