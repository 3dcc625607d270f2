from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.tasks.embedding import cosine_distances, embed
from infra.tasks.masking import mask
from tests.trainers.recorded import home, summary, ticket, translation
from trainers.discover.clusters import Rival, centre, separate_groups
from trainers.discover.naming import task_id
from trainers.discover.phrases import ends_of, instruction
from trainers.discover.purity import purity
from trainers.discover.scoring import kind_of_answer, score, volume
from trainers.ingest.features import features
from trainers.readers import making


def texts(kind, count=80):
    return sorted({kind(n).request["messages"][1]["content"] for n in range(count)})


def groups(prompts, need=20, against=()):
    vectors = embed(prompts)
    actions = embed(["text"] * len(prompts))
    return separate_groups(vectors, actions, np.ones(len(prompts), dtype=np.int64), need, against)


def test_clearly_different_prompts_are_told_apart():
    a, b = texts(translation), texts(summary)
    labels = groups([*a, *b])
    assert len(set(labels[: len(a)])) == 1
    assert len(set(labels[len(a) :])) == 1
    assert set(labels) == {0, 1}


def test_topics_of_one_task_are_not():
    assert set(groups(texts(ticket, 200))) <= {0, -1}


def test_a_group_stands_apart_from_known_tasks_too():
    known = centre(embed(texts(translation)), 0.3, 0.95)
    assert set(groups(texts(summary), against=[Rival(known.centroid)])) == {0}
    assert set(groups(texts(translation), against=[Rival(known.centroid)])) == {-1}


SUBJECTS = ("printer", "laptop", "invoice", "router", "camera", "refund", "account", "bicycle")
STORIES = [
    f"My {one} came before the {two}, and since {day} the {one} and the {two} have both failed when I "
    f"use them at {place} in the evening, so I wrote to the {two} shop, which sent me to the {one} shop, "
    f"which told me that the {two} was never theirs and that I should ask you about it instead of them"
    for one in SUBJECTS
    for two in SUBJECTS
    for day, place in (("Monday", "home"), ("Easter", "work"))
    if one != two
]


def test_two_instructions_about_the_same_things_are_two_tasks():
    first = [f"Summarize this case for the night shift. {story}" for story in STORIES]
    second = [f"{story}. Say whether the customer sounds angry." for story in STORIES]
    prompts = [*first, *second]
    phrases = [ends_of(mask(prompt)) for prompt in prompts]
    vectors, sizes = embed(prompts), np.ones(len(prompts), dtype=np.int64)
    labels = separate_groups(vectors, vectors * 0, sizes, 20, (), phrases)
    assert set(labels) == {0, 1}
    assert len(set(labels[: len(first)])) == len(set(labels[len(first) :])) == 1
    # Without them, they are topics of one task.
    assert len(set(separate_groups(vectors, vectors * 0, sizes, 20)) - {-1}) <= 1
    # A known task with the same instruction keeps its own; one with another does not take it.
    known = Rival(centre(vectors[: len(first)], 0.3, 0.95).centroid, instruction(phrases[:110]))
    left = slice(len(first), None)
    fresh = separate_groups(
        vectors[left], vectors[left] * 0, sizes[left], 20, [known], phrases[left]
    )
    assert (fresh == 0).mean() >= 0.8 and set(fresh) <= {0, -1}
    same = slice(0, len(first))
    again = separate_groups(
        vectors[same], vectors[same] * 0, sizes[same], 20, [known], phrases[same]
    )
    assert set(again) == {-1}


def test_too_few_calls_make_no_group():
    assert set(groups(texts(home), need=1000)) == {-1}
    assert set(groups(["one", "two"], need=1)) == {-1}


def test_the_radius_is_calibrated_within_its_bounds():
    vectors = embed(texts(home))
    found = centre(vectors, 0.1, 1.0)
    inside = (cosine_distances(vectors, found.centroid) <= found.radius).mean()
    assert inside >= 0.98
    assert found.radius < 0.95
    assert centre(vectors, 0.9, 1.0).radius == 0.9
    assert centre(vectors, 0.1, 0.2).radius == 0.2
    assert np.linalg.norm(found.centroid) == pytest.approx(1, abs=1e-4)


@given(st.lists(st.text(max_size=30), max_size=6), st.text(max_size=10))
def test_every_task_id_is_valid_and_told_apart_by_its_identity(words, identity):
    import re

    made = task_id(words, identity)
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]{0,40}", made)
    assert made != task_id(words, identity + "x")


def test_task_ids_are_readable():
    assert task_id(["HassTurnOn", "get_order"], "x").startswith("hass-turn-on-get-order-")
    assert task_id(["a" * 30, "too-long-to-follow"], "x").startswith("a" * 30 + "-")
    assert task_id(["\u00fc"], "x").startswith("task-")


def test_purity_by_task():
    tasks = {"1": "a", "2": "a", "3": "a", "4": "b", "5": "b"}
    labels = {"1": "x", "2": "x", "3": "y", "4": "y"}
    assert purity(tasks, labels) == {"a": pytest.approx(2 / 3), "b": 1.0}


def kind(records):
    return kind_of_answer([features(record) for record in records])


def test_kinds_of_answer():
    from tests.trainers.recorded import call

    assert kind([home(n) for n in range(9)]) == "tool_call"
    assert kind([ticket(n) for n in range(9)]) == "structured"
    assert kind([call(n, answer=["spam", "no spam"][n % 2]) for n in range(9)]) == "label"
    assert kind([call(n, answer=f"a poem number {n} of many words") for n in range(9)]) == "text"
    assert kind([call(1, response={"error": "x"})]) == "text"


def test_examples_without_a_time_are_no_traffic():
    days = [datetime(2026, 3, day, tzinfo=UTC) for day in (1, 2, 3)]
    undated = [making.undated(step) for step in range(4)]
    several = [features(home(n)) for n in range(7)]
    told = volume([*undated[:3], making.undated(10**12), *days], several)
    assert told["calls_per_day"] == 1.5  # three calls in two days
    assert told["tokens_per_day"] == 1.5 * several[0].tokens
    assert volume(undated, several[:4])["calls_per_day"] == 4.0


def test_a_repetitive_bound_task_scores_above_free_text():
    from tests.trainers.recorded import call

    bound = [features(home(n)) for n in range(100)]
    free = [features(call(n, answer=f"a poem number {n} of many words")) for n in range(100)]
    assert score(bound, "tool_call", 50)["value"] > score(free, "text", 50)["value"]
    assert 0 <= score(free, "text", 50)["value"] <= score(bound, "tool_call", 50)["value"] <= 1
