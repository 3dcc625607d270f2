"""Where the teacher disagrees with itself it is asked again, over a socket and within a budget."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from infra.objects.store import ObjectStore
from tests.teacher_server import FakeTeacher
from trainers.data_sets.labels import Example, Source
from trainers.resampling import (
    TeacherAway,
    disagreeing,
    kept_labels,
    labels_digest,
    majority,
    open_teacher,
    relabel,
    resample,
)

DATASET = "d" * 64


@pytest.fixture
def teacher() -> Iterator[FakeTeacher]:
    fake = FakeTeacher(
        {
            "one": ["red", "blue", "red"],
            "two": ["red", "blue", "green"],
            "three": [400, 400, 400],
        }
    )
    yield fake
    fake.close()


def example(number: int, prompt: str, answer: str, source: Source = "teacher") -> Example:
    return Example(
        call_id=f"c{number}",
        session=f"s{number}",
        time=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number),
        request={"messages": [{"role": "user", "content": prompt}]},
        answer={"role": "assistant", "content": answer},
        weight=1.0,
        source=source,
        signature="s",
    )


# "one" is the most divided, then "two", then "three"; "calm" is not.
EXAMPLES = [
    example(number, prompt, answer, source)
    for number, (prompt, answer, source) in enumerate(
        [
            ("one", "blue", "teacher"),
            ("one", "red", "teacher"),
            ("one", "grey", "correction"),
            ("two", "blue", "teacher"),
            ("two", "blue", "teacher"),
            ("two", "red", "teacher"),
            ("three", "blue", "teacher"),
            ("three", "blue", "teacher"),
            ("three", "blue", "teacher"),
            ("three", "red", "audit"),
            ("calm", "blue", "teacher"),
            ("calm", "blue", "teacher"),
        ]
    )
]


def answers(examples: list[Example]) -> list[tuple[str, str]]:
    return [(e.request["messages"][0]["content"], e.answer["content"]) for e in examples]


def test_the_majority_replaces_and_without_one_examples_are_dropped(
    teacher: FakeTeacher, store: ObjectStore
) -> None:
    ask, close = open_teacher(teacher.settings)
    resample(store, DATASET, EXAMPLES, ask, calls=100, answers=3)
    close()
    assert sorted(teacher.asked) == ["one"] * 3 + ["three"] * 3 + ["two"] * 3
    labels = kept_labels(store, DATASET)
    assert len(labels) == 2
    assert (
        answers(relabel(EXAMPLES, labels))
        == [
            ("one", "red"),
            ("one", "red"),
            ("one", "grey"),  # a person said so
            *answers(EXAMPLES[6:]),  # "two" is gone; what the teacher refuses stays as logged
        ]
    )
    assert labels_digest(labels) == labels_digest(kept_labels(store, DATASET)) is not None
    assert labels_digest({}) is None


def test_the_budget_is_in_calls_over_all_nights(teacher: FakeTeacher, store: ObjectStore) -> None:
    ask, close = open_teacher(teacher.settings)
    for calls, asked in ((2, 0), (5, 3), (5, 3), (6, 6)):
        resample(store, DATASET, EXAMPLES, ask, calls=calls, answers=3)
        assert len(teacher.asked) == asked
    close()
    assert teacher.asked == ["one"] * 3 + ["two"] * 3


def test_a_teacher_that_goes_away_loses_nothing_and_is_asked_for_the_rest(
    teacher: FakeTeacher, store: ObjectStore
) -> None:
    teacher.script["two"] = [503, 503, 503]
    ask, close = open_teacher(teacher.settings)
    with pytest.raises(TeacherAway, match="gave no answer"):
        resample(store, DATASET, EXAMPLES, ask, calls=100, answers=3)
    before = kept_labels(store, DATASET)
    assert [label["content"] for label in before.values() if label] == ["red"]
    # The first refusal may have called off a question that was not asked yet: not all three are used up.
    teacher.script["two"] = ["red", "red", "red"]
    resample(store, DATASET, EXAMPLES, ask, calls=100, answers=3)
    close()
    assert teacher.asked.count("one") == 3
    after = kept_labels(store, DATASET)
    assert len(after) == 2
    assert before.items() <= after.items()
    assert labels_digest(before) != labels_digest(after)


def test_the_most_divided_prompt_is_asked_first_and_a_persons_word_divides_nobody() -> None:
    late = [example(n, "late", answer) for n, answer in enumerate(["red", "blue", "grey"])]
    calm = [example(9, "set", "red"), example(10, "set", "grey", "correction")]
    asked = disagreeing([*EXAMPLES[3:6], *late, *calm]).values()
    assert [request["messages"][0]["content"] for request in asked] == ["late", "two"]


def test_each_question_is_one_call_of_the_budget(teacher: FakeTeacher) -> None:
    teacher.script["one"] = [503, "red", "red"]
    ask, close = open_teacher(teacher.settings)
    with pytest.raises(TeacherAway):
        ask(EXAMPLES[0].request)
    close()
    assert teacher.asked == ["one"]


def test_answers_of_no_use_and_single_refusals_make_no_label(
    teacher: FakeTeacher, store: ObjectStore
) -> None:
    teacher.script.update(one=["", "", "red"], two=[400, "red", "red"])
    ask, close = open_teacher(teacher.settings)
    resample(store, DATASET, EXAMPLES, ask, calls=6, answers=3)
    close()
    labels = kept_labels(store, DATASET).values()
    assert {label and label["content"] for label in labels} == {None, "red"}


def test_half_is_no_majority() -> None:
    red, blue = ({"role": "assistant", "content": word} for word in ("red", "blue"))
    assert majority([red, blue], 2) is None
    assert majority([red, red], 4) is None, "answers that were no use count as asked"
    assert majority([blue, red, red], 3) == red
