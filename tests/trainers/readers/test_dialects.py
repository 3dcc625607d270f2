"""What single formats say in ways of their own."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from infra.calls.codec import RecordError
from infra.calls.record import FeedbackRecord
from tests.trainers.readers import run_of_agent as agent
from tests.trainers.readers.one_row import one, problem, read
from tests.trainers.readers.samples import SAMPLES
from trainers.readers.completions import completion
from trainers.readers.formats import reader_named, reader_of
from trainers.readers.making import request
from trainers.readers.messages import messages, tools
from trainers.readers.reader import Skipped


class TestStreams:
    def chunks(self) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = [
            {"role": "assistant", "content": "Let "},
            {"content": "me look."},
            {"tool_calls": [{"index": 0, "id": "call_a", "function": {"name": "find_part"}}]},
            {"tool_calls": [{"index": 1, "id": "call_b", "function": {"name": "ask"}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": '{"name": "fr'}}]},
            {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": 'ont"}'}}]},
        ]
        made = [
            {
                "id": "chatcmpl-1",
                "object": "chat.completion.chunk",
                "model": "m",
                "choices": [{"index": 0, "delta": delta, "finish_reason": None}],
            }
            for delta in deltas
        ]
        made[-1]["choices"][0]["finish_reason"] = "tool_calls"  # type: ignore[index]
        usage = {"prompt_tokens": 7, "completion_tokens": 5}
        return [*made, {"object": "chat.completion.chunk", "choices": [], "usage": usage}]

    def events(self) -> str:
        lines = [f"data: {json.dumps(chunk)}\n" for chunk in self.chunks()]
        return "\n".join([*lines, "data: [DONE]\n"])

    @pytest.mark.parametrize("form", ["chunks", "events", "text of chunks"])
    def test_a_streamed_answer_is_put_together(self, form: str):
        given: Any = self.events() if form == "events" else self.chunks()
        if form == "text of chunks":
            given = json.dumps(given)
        made = completion(given)
        (choice,) = made["choices"]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] == "Let me look."
        first, second = choice["message"]["tool_calls"]
        assert first["function"] == {"name": "find_part", "arguments": '{"name": "front"}'}
        assert (second["id"], second["function"]["arguments"]) == ("call_b", "{}")
        assert made["usage"]["prompt_tokens"] == 7
        assert made["object"] == "chat.completion"

    def test_in_a_record(self):
        row = {**SAMPLES["litellm"].rows[0], "response": self.chunks(), "stream": True}
        record = one("litellm", row)
        assert record.request["stream"] is True
        assert record.answer is not None
        assert len(record.answer["tool_calls"]) == 2


class TestMessages:
    def test_results_inside_a_users_message_become_messages(self):
        said = [
            {"role": "user", "content": "go"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "find", "input": {"q": "ü"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "[1]"},
                    {"type": "text", "text": "and now?"},
                ],
            },
        ]
        _, action, result, user = messages(said)
        assert action["content"] == "I look."
        assert action["reasoning_content"] == "hm"
        assert action["tool_calls"][0]["function"] == {"name": "find", "arguments": '{"q":"ü"}'}
        assert result == {"role": "tool", "tool_call_id": "t1", "content": "[1]"}
        assert user == {"role": "user", "content": [{"type": "text", "text": "and now?"}]}

    def test_older_function_calls(self):
        said = [
            {"role": "user", "content": "go"},
            {
                "role": "assistant",
                "content": None,
                "function_call": {"name": "f", "arguments": "{}"},
            },
            {"role": "function", "name": "f", "content": "done"},
        ]
        _, action, result = messages(said)
        assert action["tool_calls"][0]["id"] == result["tool_call_id"] == "call_f"

    def test_inline_pictures_and_unknown_parts_are_kept(self):
        content = [
            {
                "type": "image",
                "source": {"type": "base64", "media_type": "image/gif", "data": "R0"},
            },
            {"type": "input_audio", "input_audio": {"data": "UklG", "format": "wav"}},
        ]
        (message,) = messages([{"role": "user", "content": content}])
        assert message["content"][0]["image_url"]["url"] == "data:image/gif;base64,R0"
        assert message["content"][1] == content[1]

    def test_the_parts_beside_openais_stored_messages(self):
        said = [{"role": "user", "content": None, "id": "m", "content_parts": agent.USER}]
        assert messages(said) == [{"role": "user", "content": agent.USER}]

    def test_a_name_and_json_text_content_stay(self):
        said = [{"role": "tool", "tool_call_id": "a", "content": "[1, 2]", "name": "f"}]
        assert messages(said) == said

    @pytest.mark.parametrize(
        "bad", [None, [], 7, [7], [{"content": "x"}], [{"role": "elf"}], [[], []]]
    )
    def test_no_conversation(self, bad: Any):
        with pytest.raises(RecordError):
            messages(bad)

    def test_tools_in_every_spelling(self):
        schema = {"type": "object"}
        wanted = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
        for given in (
            wanted,
            [{"name": "f", "input_schema": schema}],
            [{"type": "function", "name": "f", "parameters": schema}],
            [json.dumps({"name": "f", "parameters": json.dumps(schema)})],
            {"f": json.dumps({"parameters": schema})},
            json.dumps(wanted),
        ):
            assert tools(given) == wanted
        assert tools([{"no": "name"}, 3]) == tools("nonsense") == []

    def test_parts_alone_are_an_answer(self):
        made = completion(
            [
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "find", "input": {"q": 1}},
            ]
        )
        (choice,) = made["choices"]
        assert choice["message"]["content"] == "I look."
        assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"q":1}'


class TestOptions:
    @pytest.mark.parametrize("system", ["Be brief.", [{"type": "text", "text": "Be brief."}]])
    def test_anthropics_system_prompt_beside_the_messages(self, system: Any):
        made = request([{"role": "user", "content": "hi"}], "m", {"system": system})
        assert [message["role"] for message in made["messages"]] == ["system", "user"]
        assert made["messages"][0]["content"] == system

    def test_a_conversation_that_has_one_keeps_it(self):
        said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
        assert request(said, "m", {"system": "Be brief."})["messages"] == said

    def test_numbers_are_numbers(self):
        options = {"temperature": "0.5", "max_tokens": "inf", "seed": "7", "n": True, "top_p": 0.9}
        made = request("hi", None, options)
        del made["messages"]
        assert made == {"temperature": 0.5, "seed": 7, "top_p": 0.9}


class TestTrainingFiles:
    def example(self) -> dict[str, Any]:
        said = [*agent.SECOND, agent.SAID]
        return {"messages": said, "tools": agent.TOOLS, "parallel_tool_calls": False}

    def test_each_answer_is_a_call_of_one_session(self):
        first, second = read("openai", self.example())
        assert first.answer["tool_calls"][0]["function"]["name"] == "find_part"
        assert second.answer["content"] == agent.ANSWER
        assert (len(first.messages), len(second.messages)) == (2, 4)
        assert first.session == second.session
        assert first.id != second.id
        assert first.time < second.time < datetime(1971, 1, 1, tzinfo=UTC)
        assert first.request["parallel_tool_calls"] is False

    def test_an_answer_of_no_weight_is_none(self):
        row = self.example()
        row["messages"] = [
            {**message, "weight": 0} if message.get("tool_calls") else message
            for message in row["messages"]
        ]
        only = one("openai", row)
        assert only.answer == agent.SAID
        assert all("weight" not in message for message in only.messages)

    def test_the_same_example_twice_is_two_calls(self):
        (first, _), (again, _) = (
            read("openai", self.example()),
            read("openai", self.example(), "line 2"),
        )
        assert first.id != again.id

    def test_a_preference_is_its_better_answer(self):
        row = {
            "input": {"messages": agent.FIRST, "tools": agent.TOOLS},
            "preferred_output": [agent.SAID],
            "non_preferred_output": [{"role": "assistant", "content": "no"}],
        }
        assert reader_of(row) is reader_named("openai")
        assert one("openai", row).answer == agent.SAID

    def test_a_stored_completion_without_its_messages(self):
        row = SAMPLES["stored_completions"].rows[0] | {"messages": None}
        assert problem("openai", row).startswith("a stored completion without its messages")


class TestLitellm:
    def test_other_calls_are_skipped(self):
        (found,) = read("litellm", {**SAMPLES["litellm"].rows[0], "call_type": "aembedding"})
        assert isinstance(found, Skipped)

    def test_what_the_logger_left_out(self):
        said = [{"role": "user", "content": "redacted-by-litellm"}]
        row = {**SAMPLES["litellm"].rows[0], "messages": said}
        assert problem("litellm", row) == "the logger wrote this call without what was said"

    def test_inside_the_loggers_own_arguments(self):
        row = {"standard_logging_object": SAMPLES["litellm"].rows[0], "model": "m"}
        assert reader_of(row) is reader_named("litellm")
        assert one("litellm", row).session == agent.SESSION

    def test_a_clock_that_was_set_back(self):
        row = {**SAMPLES["litellm"].rows[0], "response_time": -3.0}
        assert one("litellm", row).latency_seconds == 0.0


class TestLangfuse:
    def test_from_the_interface_in_the_other_spelling(self):
        row = dict(SAMPLES["langfuse"].rows[0])
        for old, new in (
            ("trace_id", "traceId"), ("start_time", "startTime"), ("end_time", "endTime"),
            ("session_id", "sessionId"), ("usage_details", "usageDetails"),
            ("provided_model_name", "providedModelName"), ("model_parameters", "modelParameters"),
            ("parent_observation_id", "parentObservationId"),
        ):  # fmt: skip
            row[new] = row.pop(old)
        assert reader_of(row) is reader_named("langfuse")
        assert one("langfuse", row) == one("langfuse", SAMPLES["langfuse"].rows[0])

    def test_a_score_is_feedback_on_its_call(self):
        score = {
            "id": "s1", "trace_id": "trace-1", "observation_id": "obs-1", "name": "helpful",
            "timestamp": "2026-03-02 10:00:00.000000", "value": 1, "data_type": "BOOLEAN",
            "string_value": "True",
        }  # fmt: skip
        (found,) = read("langfuse", score)
        assert isinstance(found, FeedbackRecord)
        assert found.call_id == one("langfuse", SAMPLES["langfuse"].rows[0]).id
        assert found.score == 1.0
        (label,) = read("langfuse", {**score, "data_type": "CATEGORICAL", "string_value": "good"})
        assert (label.score, label.label) == (None, "good")
        (whole,) = read("langfuse", {**score, "observation_id": None})
        assert isinstance(whole, Skipped)
        (scale,) = read(
            "langfuse", {**score, "data_type": "NUMERIC", "value": 7, "string_value": None}
        )
        assert isinstance(scale, Skipped)

    def test_tools_among_the_messages_as_its_langchain_handler_writes_them(self):
        row = dict(SAMPLES["langfuse"].rows[0])
        for name in ("tool_definitions", "metadata"):
            row.pop(name, None)
        said = [*agent.SECOND, *({"role": "tool", "content": tool} for tool in agent.TOOLS)]
        record = one("langfuse", {**row, "input": json.dumps(said)})
        assert record.messages == agent.SECOND
        assert record.request["tools"] == agent.TOOLS

    def test_without_a_session_the_trace_is_one(self):
        row = {k: v for k, v in SAMPLES["langfuse"].rows[0].items() if k != "session_id"}
        assert one("langfuse", row).session == "trace-1"
        (skipped,) = read("langfuse", {**row, "type": "SPAN"})
        assert isinstance(skipped, Skipped)


class TestLangsmith:
    def test_openais_own_shape_and_no_thread(self):
        row = dict(SAMPLES["langsmith"].rows[0])
        row["inputs"] = {"messages": agent.FIRST, "model": "m"}
        row["outputs"] = agent.completion(1, agent.ACTION, agent.TIME)
        row["extra"] = {"metadata": {"ls_model_name": "other"}}
        record = one("langsmith", row)
        assert record.answer == agent.ACTION
        assert record.session == row["trace_id"]
        assert record.answered_by.model == "other"
        (skipped,) = read("langsmith", {**row, "run_type": "tool"})
        assert isinstance(skipped, Skipped)
