"""What counts as the teacher answering like prompts alike."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from trainers.data_sets.consistency import consistency
from trainers.data_sets.labels import Example


def example(said: str, answer: dict[str, Any], source: Any = "teacher") -> Example:
    request = {"messages": [{"role": "user", "content": said}]}
    return Example("c", "s", datetime(2026, 3, 2, tzinfo=UTC), request, answer, 1.0, source, "sig")


def call(name: str, **arguments: object) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"content": None, "tool_calls": [{"type": "function", "function": function}]}


def like(*examples: Example) -> tuple[float | None, int]:
    found = consistency(examples)["like"]
    return found["value"], found["prompts"]


def test_the_values_of_a_call_may_follow_the_prompt_but_not_its_tool() -> None:
    a = example("Set the timer to 5 minutes", call("timer", minutes=5))
    b = example("set the timer to 20 minutes!", call("timer", minutes=20))
    assert like(a) == (None, 0)
    assert like(a, b) == (1.0, 1)
    assert consistency([a, b])["prompts"] == 0, "no prompt came twice"
    other = example("set the timer to 7 minutes", call("alarm", minutes=7))
    silent = example("set the timer to 8 minutes", {"content": "I would rather not do that now."})
    assert like(a, other) == (0.5, 1)
    assert like(a, silent) == (0.5, 1)
    assert like(a, example("start a timer of 5 minutes", call("alarm"))) == (None, 0)
    assert like(a, example("set the timer to 7 minutes", call("alarm"), "correction")) == (None, 0)


def test_a_number_may_decide_a_label_but_case_and_punctuation_may_not() -> None:
    small = example("amount 5", {"content": "small"})
    large = example("amount 500", {"content": "large"})
    assert like(small, large) == (None, 0)
    assert like(small, example("Amount 5.", {"content": "large"})) == (0.5, 1)
    assert like(small, example("Amount 5.", {"content": "Small"})) == (1.0, 1)


def test_a_json_object_is_compared_by_its_fields() -> None:
    one = example("order <NAME_1>", {"content": '{"item": "a", "count": 1}'})
    same = example("order <NAME_2>", {"content": '{"count": 2, "item": "b"}'})
    less = example("order <NAME_3>", {"content": '{"item": "b"}'})
    assert like(one, same) == (1.0, 1)
    assert like(one, less) == (0.5, 1)
