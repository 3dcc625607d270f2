"""What a caller's schema may cost: its patterns, its size, how many are remembered."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

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
