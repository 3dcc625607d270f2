"""Which task, which arm: the pure decisions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.prompting.template import FULL, PromptFormat
from infra.tasks.embedding import embed, prompt_text
from infra.tasks.signature import signature
from serving.gateway.arms import TEACHER, assign
from serving.gateway.options import beyond_small_model
from serving.gateway.routes import AdapterRoute, Snapshot, TaskRoute, frame_of
from serving.gateway.routing import Routed, Router
from serving.rollout.assignment import bucket
from tests.serving.gateway.world import chat

LIGHT = "switch the kitchen light on please"
MUSIC = "play some jazz music by miles davis"


def task(task_id: str, text: str, radius: float = 0.6, **more: object) -> TaskRoute:
    like = chat(text)
    return TaskRoute(
        id=task_id,
        signature=str(more.pop("signature", signature(like).digest)),
        centroid=tuple(float(x) for x in embed([prompt_text(like)], 256)[0]),
        radius=radius,
        champion=AdapterRoute(f"{task_id}@{'0' * 16}", "0" * 64, "x", FULL.to_dict(), None),
        **more,  # type: ignore[arg-type]
    )


def routed(tasks: list[TaskRoute], text: str, tag: str | None = None, tenant: str = "t", **more):
    found = Router(Snapshot(tuple(tasks))).route(chat(text, **more), tag, tenant)
    return (found.task.id, found.how, found.same_signature) if found else None


def test_inside_one_structure_the_nearest_task_wins_and_strangers_have_none() -> None:
    tasks = [task("light", LIGHT), task("music", MUSIC)]
    assert routed(tasks, "switch the bedroom light on") == ("light", "signature", True)
    assert routed(tasks, "play jazz music") == ("music", "signature", True)
    assert routed(tasks, "what is the capital of Portugal") is None
    assert routed([], LIGHT) is None


def test_personal_data_does_not_change_the_task() -> None:
    tasks = [task("light", LIGHT), task("music", MUSIC)]
    raw = "switch the kitchen light on, ann@example.com, +1 555 010 9999"
    assert routed(tasks, raw) == routed(tasks, "switch the kitchen light on, <EMAIL_1>, <PHONE_1>")


def test_a_tag_always_wins_and_an_unknown_tag_is_no_task_of_ours() -> None:
    tasks = [task("light", LIGHT), task("music", MUSIC, tag="songs")]
    assert routed(tasks, LIGHT, tag="songs") == ("music", "tag", True)
    assert routed(tasks, MUSIC, tag="light") == ("light", "tag", True)
    assert routed(tasks, LIGHT, tag="new-thing") is None
    # A tagged task is made of tagged calls only.
    assert routed(tasks, MUSIC) is None


def test_a_model_name_of_ours_names_the_task() -> None:
    tasks = [task("light", LIGHT), task("music", MUSIC)]
    assert routed(tasks, LIGHT, model="nightschool/music") == ("music", "model", True)
    assert routed(tasks, LIGHT, model="music") == ("music", "model", True)


def test_another_system_prompt_matches_by_centroid_inside_the_same_frame_and_says_so() -> None:
    text, elsewhere = frame_of([], "text", ""), "f" * 64
    tasks = [
        task("light", LIGHT, signature=elsewhere, frame=text),
        task("music", MUSIC, signature=elsewhere, frame=frame_of(["play"], "text", "")),
    ]
    assert routed(tasks, "switch the bedroom light on") == ("light", "centroid", False)
    assert routed(tasks, MUSIC) is None  # music is asked for with a tool


@pytest.mark.parametrize(
    ("form", "same_signature", "same_frame", "fit"),
    [
        (PromptFormat(), False, False, True),
        (PromptFormat(drop_system=True), False, True, False),
        (PromptFormat(drop_system=True), True, True, True),
        (PromptFormat(drop_tools=True), False, True, True),
        (PromptFormat(drop_tools=True), False, False, False),
        (PromptFormat(drop_response_format=True), False, False, False),
    ],
)
def test_an_adapter_answers_only_what_it_learnt(
    form: PromptFormat, same_signature: bool, same_frame: bool, fit: bool
) -> None:
    adapter = replace(ONE, format=form.to_dict())
    found = Routed(replace(CANARY, candidate=adapter), "tag", same_signature, same_frame)
    assert found.fit() is fit


def test_a_tagged_call_says_how_much_of_the_structure_it_shares() -> None:
    known = task("light", LIGHT, tag="light", frame=frame_of([], "text", ""))
    router = Router(Snapshot((known,)))
    other = chat(LIGHT)
    other["messages"][0]["content"] = "You are a pirate."
    shares = [
        (found.same_signature, found.same_frame)
        for request in (chat(LIGHT), other, {**chat(LIGHT), "tools": [{"function": {"name": "f"}}]})
        if (found := router.route(request, "light", "t"))
    ]
    assert shares == [(True, True), (False, True), (False, False)]


def test_a_request_too_long_to_look_into_has_only_its_tag() -> None:
    router = Router(Snapshot((task("light", LIGHT),)))
    assert router.route(chat(LIGHT), None, "t", look=False) is None
    found = router.route(chat(LIGHT), "light", "t", look=False)
    assert found is not None and (found.task.id, found.same_signature) == ("light", False)


def test_one_tenants_task_is_not_anothers() -> None:
    tasks = [task("light", LIGHT, tenant="acme")]
    assert routed(tasks, LIGHT, tenant="acme") is not None
    assert routed(tasks, LIGHT, tenant="other") is None
    assert routed(tasks, LIGHT, tag="light", tenant="other") is None


ONE = AdapterRoute("light@" + "1" * 16, "1" * 64, "x", FULL.to_dict(), None)
TWO = AdapterRoute("light@" + "2" * 16, "2" * 64, "x", FULL.to_dict(), None)
CANARY = TaskRoute(
    "light", champion=ONE, candidate=TWO, stage="canary", weight=0.5, salt="s", rollout_id="r"
)
BOTH = frozenset({ONE.name, TWO.name})
EXPOSED = next(f"x{i}" for i in range(100) if bucket("s", f"x{i}") < 0.5)
OTHER = next(f"x{i}" for i in range(100) if bucket("s", f"x{i}") >= 0.5)


def arms(route: TaskRoute, session: str, ready=BOTH, killed=False, tended=True):
    got = assign(route, session, ready=ready, killed=killed, tended=tended)
    name = got.answerer.name if got.answerer else None
    return name, got.arm, got.rollout, got.escalation


def test_arms_of_a_canary() -> None:
    assert arms(CANARY, EXPOSED) == (TWO.name, "canary", "r", None)
    assert arms(CANARY, OTHER) == (ONE.name, "champion", "r", None)


def test_a_killed_canary_keeps_its_arm_and_the_champion_answers() -> None:
    assert arms(CANARY, EXPOSED, killed=True) == (ONE.name, "canary", "r", "kill_switch")
    assert arms(CANARY, OTHER, killed=True) == (ONE.name, "champion", "r", None)
    only_champion = frozenset({ONE.name})
    assert arms(CANARY, EXPOSED, ready=only_champion, killed=True)[3] == "kill_switch"


@pytest.mark.parametrize("session", [EXPOSED, OTHER])
def test_a_rollout_that_is_not_running_here_has_no_arms(session: str) -> None:
    assert arms(CANARY, session, tended=False) == (ONE.name, None, None, None)
    assert arms(CANARY, session, ready=frozenset({ONE.name})) == (ONE.name, None, None, None)


def test_a_champion_that_is_not_there_is_replaced_by_the_teacher() -> None:
    assert arms(CANARY, OTHER, ready=frozenset({TWO.name})) == (
        None,
        "champion",
        "r",
        "engine_absent",
    )


def test_shadow_exposes_nobody() -> None:
    shadow = replace(CANARY, stage="shadow", weight=1.0)
    got = assign(shadow, EXPOSED, ready=BOTH, killed=False, tended=True)
    assert (got.answerer, got.arm, got.shadow) == (ONE, "champion", TWO)
    assert assign(shadow, EXPOSED, ready=BOTH, killed=True, tended=True).shadow is None


def test_policies_hold_back() -> None:
    assert assign(
        replace(CANARY, policy="teacher"), EXPOSED, ready=BOTH, killed=False, tended=True
    ) == replace(TEACHER)
    held = assign(replace(CANARY, policy="shadow"), EXPOSED, ready=BOTH, killed=False, tended=True)
    assert (held.answerer, held.arm) == (None, None)


@given(st.text(max_size=20), st.floats(0, 1), st.floats(0, 1))
def test_raising_the_weight_never_moves_a_session_back(session: str, a: float, b: float) -> None:
    low, high = sorted((a, b))
    at = [
        assign(replace(CANARY, weight=w), session, ready=BOTH, killed=False, tended=True).arm
        for w in (low, high)
    ]
    assert at != ["canary", "champion"]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({}, None),
        ({"n": 1, "temperature": 0.2, "tools": []}, None),
        ({"tools": [{"function": {"name": "f"}}], "tool_choice": "required"}, None),
        ({"temperature": 0, "top_p": 1, "seed": 7, "max_tokens": 50, "user": "u"}, None),
        ({"logprobs": False, "stop": None, "logit_bias": None, "presence_penalty": 0}, None),
        ({"store": False, "functions": [], "modalities": ["text"], "service_tier": "flex"}, None),
        ({"stream": True, "stream_options": {"include_usage": True}}, None),
        ({"response_format": {"type": "json_object"}, "parallel_tool_calls": False}, None),
        ({"content": None}, None),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"function": {"name": "f"}}], "tool_choice": "any"}, "tool_choice"),
        (
            {
                "tools": [{"function": {"name": "f"}}],
                "tool_choice": {"type": "function", "function": {"name": "f"}},
            },
            "tool_choice",
        ),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"50256": -100}}, "logit_bias"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"presence_penalty": -1}, "presence_penalty"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"audio": {"voice": "a"}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"store": True}, "store"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"guided_choice": ["a", "b"]}, "guided_choice"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"n": 3}, "n"),
        ({"stop": ["x"]}, "stop"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"tools": [{"type": "custom"}]}, "tools"),
        ({"tools": [{"function": {"name": "f"}}], "tool_choice": "none"}, "tool_choice"),
    ],
)
def test_what_is_beyond_the_small_model(more: dict, reason: str | None) -> None:
    assert beyond_small_model(chat("x", **more)) == reason
