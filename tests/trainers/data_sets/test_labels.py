import json

import pytest

from infra.calls.record import AnsweredBy, CallRecord, FeedbackRecord, OtherAnswer
from tests.trainers.recorded import START, call, home, ticket, tool_answer
from trainers.data_sets.labels import Example, Label, agreement, answer_key, label_of, prompt_key

SMALL = AnsweredBy(model="small", adapter="task@0123456789abcdef")
RIGHT = {"role": "assistant", "content": "right"}


def said(**fields):
    return FeedbackRecord(call_id="x", time=START, **fields)


def audit(message=RIGHT, **fields):
    return OtherAnswer(**{"model": "teacher", "purpose": "audit", "message": message, **fields})


def test_the_teachers_answer_is_the_label():
    assert label_of(home(1), ()) == Label(home(1).answer, "teacher")


def test_a_small_models_answer_is_never_a_label():
    assert label_of(call(1, answered_by=SMALL), ()) == "small-model"
    assert label_of(call(1, answered_by=SMALL), [said(score=1.0)]) == "small-model"
    shadow = OtherAnswer(model="small", adapter="task@1", purpose="shadow", message=RIGHT)
    assert label_of(call(1, answered_by=SMALL, other_answers=[shadow]), ()) == "small-model"
    assert label_of(call(1, other_answers=[shadow]), ()) == Label(call(1).answer, "teacher")
    fake = audit(adapter="task@1")
    assert label_of(call(1, answered_by=SMALL, other_answers=[fake]), ()) == "small-model"


def test_an_audit_gives_the_label_unless_it_failed():
    record = call(1, answered_by=SMALL, other_answers=[audit(None, error="timeout"), audit()])
    assert label_of(record, [said(score=0.0)]) == Label(RIGHT, "audit")
    failed = call(1, answered_by=SMALL, other_answers=[audit(None, error="timeout")])
    assert label_of(failed, ()) == "small-model"


def test_a_correction_wins_over_everything():
    for record in (
        call(1),
        call(1, answered_by=SMALL, other_answers=[audit(dict(RIGHT, content="no"))]),
    ):
        assert label_of(record, [said(correction=RIGHT), said(score=0.0)]) == Label(
            RIGHT, "correction"
        )
    two = [said(correction={"content": "first"}), said(correction=RIGHT)]
    assert label_of(call(1), two) == Label(RIGHT, "correction")


def test_a_rejected_answer_is_dropped():
    assert label_of(call(1), [said(score=0.0)]) == "rejected"
    assert label_of(call(1), [said(score=0.0), said(score=1.0)]) == Label(call(1).answer, "teacher")


def test_an_answer_by_the_teacher_in_the_small_models_place_teaches():
    escalated = AnsweredBy(model="teacher", arm="canary", rollout="r", escalation="confidence")
    assert label_of(home(1, answered_by=escalated), ()) == Label(home(1).answer, "teacher")


@pytest.mark.parametrize(
    "record",
    [
        call(1, response={"error": {"message": "overloaded"}}),
        call(1, response={"choices": []}),
        call(1, response={"choices": [{"message": None}]}),
    ],
)
def test_an_error_is_no_answer(record):
    assert label_of(record, ()) == "unanswered"


@pytest.mark.parametrize(
    "answer",
    [
        {"role": "assistant", "content": ""},
        tool_answer("no_such_tool", "{}"),
        tool_answer("turn_on", "not json"),
        tool_answer("turn_on", '{"area": 7}'),
        {"role": "assistant", "content": None, "tool_calls": [{"function": 7}]},
        {"role": "assistant", "content": None, "tool_calls": ["x"]},
    ],
)
def test_an_answer_that_serving_would_refuse_teaches_nothing(answer):
    record = home(1, response={"choices": [{"message": answer}]})
    assert label_of(record, ()) == "invalid"


def test_an_answer_that_was_cut_off_teaches_nothing():
    choices = [{"message": RIGHT, "finish_reason": "length"}]
    assert label_of(call(1, response={"choices": choices}), ()) == "invalid"


def test_a_request_that_cannot_be_rendered_teaches_nothing():
    messages = [{"role": "assistant", "tool_calls": [{"odd": 1}]}, {"role": "user", "content": "x"}]
    assert label_of(call(1, request={"messages": messages}), ()) == "invalid"


def example(record: CallRecord, answer=None, source="teacher"):
    return Example(
        record.id,
        record.session,
        record.time,
        record.request,
        answer or record.answer,
        1.0,
        source,
        "s",
    )


def test_agreement_counts_only_prompts_asked_more_than_once():
    assert agreement([]) == {"value": None, "prompts": 0}
    a, b = call(1, user="a"), call(2, user="b")
    answers = [{"content": "x"}, {"content": "x"}, {"content": "y"}]
    asked = [example(a, answer) for answer in answers] + [example(b, {"content": "z"})]
    assert agreement(asked) == {"value": pytest.approx(2 / 3, abs=1e-5), "prompts": 1}
    corrected = [*asked, example(a, {"content": "w"}, "correction")]
    assert agreement(corrected) == agreement(asked)


def test_sampling_options_and_formatting_do_not_make_another_prompt_or_answer():
    record = ticket(1)
    assert prompt_key({**record.request, "temperature": 1}) == prompt_key(record.request)
    spaced = {"content": json.dumps(json.loads(record.answer["content"]), indent=2)}
    assert answer_key(spaced) == answer_key(record.answer)
    assert answer_key(tool_answer("f", '{"a": 1}')) == answer_key(tool_answer("f", '{"a":1}'))
    assert answer_key(tool_answer("f", '{"a": 1}')) != answer_key(tool_answer("f", '{"a": 2}'))
