"""What people said of answers, for measuring the judge by."""

from __future__ import annotations

import pytest

from infra.calls.codec import encode_lines, log_key
from infra.calls.record import FeedbackRecord
from tests.trainers.recorded import SETTINGS, START, home, opened
from trainers.data_sets.opinions import opinions, opinions_of
from trainers.discover.discover import discover
from trainers.ingest.ingest import ingest

BETTER = {"role": "assistant", "content": "better"}


def said(number: int = 1, **fields) -> FeedbackRecord:
    return FeedbackRecord(call_id=home(number).id, time=START, **fields)


@pytest.mark.parametrize(
    ("feedback", "good"),
    [
        ([], []),
        ([said(label="noted")], []),
        ([said(score=1.0)], [True]),
        ([said(score=0.4)], [False]),
        ([said(score=0.0), said(score=1.0)], [True]),
        ([said(correction=home(1).answer)], [True]),
        ([said(correction=BETTER)], [False, True]),
        ([said(correction=BETTER), said(score=1.0)], [False, True]),
        ([said(score=0.0, tenant="stranger")], []),
    ],
)
def test_an_answer_is_good_or_bad_as_its_own_caller_says(feedback, good):
    found = opinions_of(home(1), feedback)
    assert [opinion.good for opinion in found] == good
    if len(found) == 2:
        assert (found[0].answer, found[0].better) == (home(1).answer, BETTER)
        assert (found[1].answer, found[1].better) == (BETTER, None)
        assert found[0].id != found[1].id


def test_a_call_without_an_answer_is_no_opinion():
    assert opinions_of(home(1).model_copy(update={"response": {}}), [said(score=0.0)]) == []


def test_the_newest_of_the_task_are_found_also_those_that_nothing_learns_from(tmp_path):
    store, database = opened(tmp_path)
    records = [*(home(n) for n in range(40)), *(said(n, score=n % 2) for n in range(10, 20))]
    records.append(said(3, correction=BETTER))
    store.put(log_key(START, "gateway", 1), encode_lines(records))
    assert opinions(store, database, SETTINGS, "home", 10) == []
    ingest(store, database, SETTINGS, holder="night")
    (task,) = discover(store, database, SETTINGS)
    found = opinions(store, database, SETTINGS, task.id, 100)
    assert len(found) == 12 and sum(opinion.better is not None for opinion in found) == 1
    assert sum(opinion.good for opinion in found) == 6
    few = opinions(store, database, SETTINGS, task.id, 4)
    assert {opinion.id for opinion in few} == {home(n).id for n in range(16, 20)}
    assert opinions(store, database, SETTINGS, "other", 100) == []
    database.close()
