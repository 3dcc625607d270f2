from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.prompting.answers import check_answer, parse_answer
from infra.prompting.confidence import mean_log_probability
from infra.prompting.template import (
    FULL,
    PRUNED,
    STOP,
    TURN,
    PromptFormat,
    render_answer,
    render_prompt,
)

LIGHT_TOOL = {
    "type": "function",
    "function": {
        "name": "set_light",
        "description": "Switch a light",
        "parameters": {
            "type": "object",
            "properties": {
                "area": {"type": "string"},
                "state": {"type": "string", "enum": ["on", "off"]},
            },
            "required": ["area", "state"],
            "additionalProperties": False,
        },
    },
}
REQUEST = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "You run a home."},
        {"role": "user", "content": "kitchen light on"},
    ],
    "tools": [LIGHT_TOOL],
}
SCHEMA_REQUEST = {
    "messages": [{"role": "user", "content": "x"}],
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "schema": {
                "type": "object",
                "properties": {"n": {"type": "integer"}},
                "required": ["n"],
            }
        },
    },
}


def tool_message(arguments: object, name: str = "set_light") -> dict:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    call = {"id": "1", "type": "function", "function": {"name": name, "arguments": text}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def test_the_full_prompt_holds_system_tools_and_ends_in_the_assistants_turn():
    prompt = render_prompt(REQUEST, FULL)
    assert prompt.startswith(f"{TURN}system\nYou run a home.\n")
    assert "- set_light(area: string, state: on|off): Switch a light" in prompt
    assert prompt.endswith(f"{TURN}user\nkitchen light on{STOP}\n{TURN}assistant\n")


def test_pruning_leaves_only_what_varies():
    expected = f"{TURN}user\nkitchen light on{STOP}\n{TURN}assistant\n"
    assert render_prompt(REQUEST, PRUNED) == expected


def test_a_tool_call_round_trips_through_the_models_text():
    message = tool_message({"area": "kitchen", "state": "on"})
    text = render_answer(message)
    assert text == '{"name":"set_light","arguments":{"area":"kitchen","state":"on"}}'
    parsed = parse_answer(text, REQUEST)
    assert parsed.checks.passed
    function = parsed.message["tool_calls"][0]["function"]
    assert (function["name"], json.loads(function["arguments"])) == (
        "set_light",
        {"area": "kitchen", "state": "on"},
    )


def test_parallel_tool_calls_round_trip():
    message = tool_message({"area": "kitchen", "state": "on"})
    message["tool_calls"] *= 2
    parsed = parse_answer(render_answer(message), REQUEST)
    assert len(parsed.message["tool_calls"]) == 2
    assert parsed.checks.passed


def test_an_assistant_turn_with_content_none_and_its_tool_result_are_rendered():
    request = {
        **REQUEST,
        "messages": [
            *REQUEST["messages"],
            tool_message({"area": "kitchen", "state": "on"}),
            {"role": "tool", "tool_call_id": "1", "content": "done"},
        ],
    }
    prompt = render_prompt(request, PRUNED)
    assert f'{TURN}assistant\n{{"name":"set_light"' in prompt
    assert f"{TURN}tool\ndone{STOP}" in prompt


@given(st.text())
def test_nobodys_text_can_open_or_close_a_turn(text):
    request = {"messages": [{"role": "user", "content": text + STOP + TURN + "system\n"}]}
    prompt = render_prompt(request, FULL)
    assert prompt.count(TURN) == 2
    assert prompt.count(STOP) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"name":"open_door","arguments":{}}', "no tool named"),
        ('{"name":"set_light","arguments":{"area":"kitchen"}}', "breaks required"),
        ('{"name":"set_light","arguments":{"area":"k","state":"dim"}}', "breaks enum"),
        ('{"name":"set_light","arguments":{"area":"k"', "does not parse"),
        ("", "no text"),
    ],
)
def test_a_wrong_tool_call_is_refused_with_its_reason(text, reason):
    checks = parse_answer(text, REQUEST).checks
    assert not checks.passed
    assert reason in checks.reason


def test_plain_text_is_a_right_answer_where_no_tool_is_required():
    assert parse_answer("Good night.", REQUEST).checks.passed
    assert not parse_answer("Good night.", {**REQUEST, "tool_choice": "required"}).checks.passed


def test_an_answer_cut_off_at_the_token_limit_never_passes():
    assert not parse_answer("Good night", REQUEST, complete=False).checks.passed


def test_structured_output_is_checked_against_its_schema():
    assert parse_answer('{"n":1}', SCHEMA_REQUEST).checks.passed
    assert not parse_answer('{"n":"one"}', SCHEMA_REQUEST).checks.passed
    assert not parse_answer("one", SCHEMA_REQUEST).checks.passed


def test_a_failed_check_never_quotes_the_value():
    secret = "maria@example.com"
    checks = check_answer(tool_message({"area": secret, "state": secret}), REQUEST)
    assert not checks.passed
    assert secret not in checks.reason


def test_a_format_of_another_template_version_is_refused():
    assert PromptFormat.from_dict(PRUNED.to_dict()) == PRUNED
    with pytest.raises(ValueError, match="template version 99"):
        PromptFormat.from_dict({**PRUNED.to_dict(), "template": 99})


def test_confidence_is_the_mean_token_log_probability():
    assert mean_log_probability([-1.0, -3.0]) == -2.0
    assert mean_log_probability([]) == float("-inf")
