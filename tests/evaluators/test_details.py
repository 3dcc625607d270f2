from __future__ import annotations

import json

import pytest

from evaluators.details import NONE, OTHER, by_class, details_of
from evaluators.scorecard import Scorecard, make_scorecard
from evaluators.scoring import score_answer
from evaluators.texts import text_stages
from tests.evaluators.making import Example, outcome, says
from tests.evaluators.test_scoring import WITH_TOOLS, calls


def answered(example: Example, got: dict | None, *, passed: bool = True):
    made = outcome(example.call_id, session=example.session, passed=passed)
    score = score_answer(example.answer, got, example.request)
    return made.__class__(**{**vars(made), "message": got, "score": score})


def asked(number: int, answer: dict, request: dict | None = None, session: str | None = None):
    return Example(request or {"messages": []}, answer, session or f"s{number}", f"c{number}")


def test_labels_are_told_by_class():
    found = by_class([("a", "a"), ("a", "b"), ("b", "b"), ("b", "a lot of prose"), ("c", NONE)])
    assert (found["rows"], found["classes"], found["accuracy"]) == (5, 3, 0.4)
    assert found["f1"] == {"a": pytest.approx(2 / 3), "b": 0.5, "c": 0.0}
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0.5) / 3)
    assert found["confusion"] == {"a": {"a": 1, "b": 1}, "b": {"b": 1, OTHER: 1}, "c": {NONE: 1}}


def test_the_same_label_for_all_is_accurate_and_has_no_macro_f1():
    found = by_class([("no", "no")] * 95 + [("yes", "no")] * 5)
    assert found["accuracy"] == 0.95 and found["macro_f1"] < 0.49


def test_the_kind_of_task_is_chosen_from_its_rows_and_said():
    examples = [asked(n, says("urgent")) for n in range(3)] + [asked(3, says("Yes, I can."))]
    rows = [answered(one, says("Urgent")) for one in examples[:2]]
    rows.append(answered(examples[2], says("urgent"), passed=False))
    found = details_of(examples, rows)
    assert found["kind"] == "label"
    assert found["why"] == "3 of 3 rows are rightly answered by a short line"
    assert found["labels"]["confusion"] == {"urgent": {"urgent": 2, NONE: 1}}
    assert "steps" not in found and details_of([], []) == {}
    card = make_scorecard("adapter", "d" * 64, rows, details=found)
    assert Scorecard.from_dict(json.loads(json.dumps(card.to_dict()))) == card


def test_the_calls_of_a_sessions_steps_are_one_set():
    first, second = ("play", {"n": 1}), ("set_light", {"room": "hall", "level": 3})
    examples = [
        asked(0, calls(first), WITH_TOOLS, "one"),
        asked(1, calls(second), WITH_TOOLS, "one"),
        asked(2, calls(first), WITH_TOOLS, "two"),
        asked(3, calls(second), WITH_TOOLS, "two"),
        asked(4, calls(first), WITH_TOOLS, "alone"),
    ]
    swapped = [answered(examples[0], calls(second)), answered(examples[1], calls(first))]
    assert [row.correct for row in swapped] == [0, 0]
    half = [answered(examples[2], calls(first)), answered(examples[3], says("done"))]
    found = details_of(examples, [*swapped, *half, answered(examples[4], None)])["steps"]
    assert (found["sessions"], found["values"], found["all_right"]) == (2, 0.75, 0.5)
    hidden = [
        answered(examples[2], calls(first)),
        answered(examples[3], calls(second), passed=False),
    ]
    assert details_of(examples, hidden)["steps"]["values"] == 0.5


def test_texts_are_alike_by_characters_and_words():
    right = "The parcel arrives on Monday morning."
    near = text_stages(right, "The parcels arrive Monday morning.")
    far = text_stages(right, "I cannot help with that.")
    assert near["chrf"] > 0.5 > far["chrf"] and near["embedding"] > 0.4 > far["embedding"]
    assert text_stages("a", "a") == {"chrf": 1.0, "embedding": 1.0}
    assert text_stages(right, "") == text_stages("", "") == {"chrf": 0.0, "embedding": 0.0}
    endless = text_stages(right, "\ud800 Monday " * 1_000_000)
    assert all(0 <= value <= 1 for value in endless.values())


def test_longer_stages_are_taken_only_where_nobody_waits():
    right, said = says("The parcel arrives on Monday."), says("it arrives on Monday")
    quick, thorough = (score_answer(right, said, {}, thorough=way) for way in (False, True))
    assert set(thorough.stages) - set(quick.stages) == {"chrf", "embedding"}
    assert thorough.correct == quick.correct
    assert score_answer(right, None, {}, thorough=True).stages["chrf"] == 0
