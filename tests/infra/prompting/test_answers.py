"""The check of an answer says what is wrong with any shape of one, and raises for none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.prompting.answers import check_answer

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
