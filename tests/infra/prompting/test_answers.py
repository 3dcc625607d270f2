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
from infra.prompting.answers import check_answer


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


def test_what_is_remembered_of_schemas_is_bounded_in_bytes_and_number() -> None:
    answers._validator.cache_clear()
    big = {"description": "x" * answers.MAX_KNOWN_SCHEMA_BYTES, "type": "object"}
    for _ in range(2):
        assert problem({}, big) == ""
        assert problem([], big) == "breaks type at top"
    assert answers._validator.cache_info().currsize == 0
    for number in range(answers.MAX_KNOWN_SCHEMAS + 10):
        assert problem({}, {"maxProperties": number}) == ""
    assert answers._validator.cache_info().currsize == answers.MAX_KNOWN_SCHEMAS


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
